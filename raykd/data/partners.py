"""Partners: for a sample another one of its class."""

from __future__ import annotations

import torch
from torch import Tensor

from raykd.data.draws import Draws, key_of
from raykd.data.source import AnySplit

_PARTNERS = 0x706172746E657273  # keeps these random numbers apart from the order's and the views'


class Partners:
    """Draws each sample's partner from the samples of its class in a split.

    Args:
        split: whose rows are paired.
        device: where rows are given and wanted.
    """

    def __init__(self, split: AnySplit, device: torch.device) -> None:
        self._targets = split.targets.to(device)
        self._index = split.index.to(device)
        self._sizes = self._targets.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._by_class = self._targets.argsort(stable=True)
        self._place = torch.empty_like(self._by_class)
        self._place[self._by_class] = torch.arange(len(split), device=device)

    def of(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """(B,) rows -> (B,) rows of their partners: a pure function of (seed, epoch, sample).

        A sample that has its class to itself is its own partner.
        """
        targets = self._targets[rows]
        size, start = self._sizes[targets], self._starts[targets]
        draws = Draws(key_of(_PARTNERS, seed, epoch), self._index[rows])
        ahead = 1 + ((draws.below(1 << 31) * (size - 1)) >> 31)  # 1 ... size - 1
        return self._by_class[start + (self._place[rows] - start + ahead) % size]
