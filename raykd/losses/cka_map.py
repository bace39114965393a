"""CKA: similarity of two representations of the same samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEAST_SAMPLES = 4
"""Samples of a batch below which the unbiased estimate is not defined."""


class CkaMap:
    """Linear CKA between every layer of one network and every layer of another, over batches.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), where K and L are the (B, B) Gram matrices of
    the features of the two layers; Kornblith 2019 (arXiv:1905.00414), Eq. 4. Each HSIC is the mean
    over batches of the unbiased estimate (Song 2012; Nguyen 2020, arXiv:2010.15327, Eqs. 2 and 3),
    which depends neither on the batch size nor on the width of a layer. The value may be slightly
    negative. The loss `cka` uses the biased estimate instead.

    Args:
        rows, columns: names of the layers of the two networks.
    """

    def __init__(self, rows: tuple[str, ...], columns: tuple[str, ...]) -> None:
        self.rows, self.columns = rows, columns
        self._cross = torch.zeros(len(rows), len(columns), dtype=torch.float64)
        self._own_rows = torch.zeros(len(rows), dtype=torch.float64)
        self._own_columns = torch.zeros(len(columns), dtype=torch.float64)

    def add(self, rows: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> None:
        """Add the features of one batch by layer, (B, ...) each.

        Raises:
            ValueError: the batch has fewer than `LEAST_SAMPLES` samples.
        """
        left = torch.stack([_hollow_gram(rows[name]) for name in self.rows])
        right = torch.stack([_hollow_gram(columns[name]) for name in self.columns])
        self._cross += _hsic(left[:, None], right[None, :]).cpu()
        self._own_rows += _hsic(left, left).cpu()
        self._own_columns += _hsic(right, right).cpu()

    @property
    def values(self) -> Tensor:
        """Return (rows, columns) float64; NaN for a layer with equal outputs for all samples."""
        scale = (self._own_rows[:, None] * self._own_columns[None, :]).clamp_min(0).sqrt()
        return torch.where(scale > 0, self._cross / scale, torch.nan)


def _hollow_gram(features: Tensor) -> Tensor:
    """(B, ...) -> (B, B) float64: inner products of samples, with a diagonal of 0."""
    if len(features) < LEAST_SAMPLES:
        raise ValueError(
            f"a batch of {len(features)} samples says nothing of how alike layers are; take at "
            f"least {LEAST_SAMPLES}"
        )
    flat = features.detach().flatten(1).float()
    # Products of centred features are smaller, and lose less in float32; HSIC does not change.
    flat = flat - flat.mean(dim=0, keepdim=True)
    gram = (flat @ flat.T).double()
    return gram.fill_diagonal_(0)


def _hsic(k: Tensor, ell: Tensor) -> Tensor:
    """(..., B, B) Gram matrices with a diagonal of 0 -> (...): unbiased HSIC."""
    count = k.shape[-1]
    k, ell = torch.broadcast_tensors(k, ell)
    trace = (k * ell).sum(dim=(-2, -1))  # both are symmetric
    sums = k.sum(dim=(-2, -1)) * ell.sum(dim=(-2, -1)) / ((count - 1) * (count - 2))
    rows = (k.sum(dim=-1) * ell.sum(dim=-1)).sum(dim=-1) * 2 / (count - 2)
    return (trace + sums - rows) / (count * (count - 3))
