"""Relation-based knowledge: relations between the samples of a batch.

Layers are flattened to (B, D) and compared by relations between samples.  Widths may differ, and
there is no connector.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, factorial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raykd.losses.base import PairLoss
from raykd.losses.functional import centred, or_one, unit
from raykd.registry import option


@option
class RelationalKD(PairLoss):
    """Match distances and angles between the samples of a batch.

    Huber loss (delta 1) between psi_D(i, j) = ||f_i - f_j|| / mu, mu being the mean over pairs i !=
    j, and between psi_A(i, j, k), the cosine of the angle at j; Park 2019 (arXiv:1904.05068),
    sections 3.2.1 and 3.2.2. Both are means over all B^2 pairs and B^3 triplets, as in the
    authors' code and the CRD benchmark (the sums of the paper grow with the batch). Angles are
    computed in parts of bounded memory, and recomputed in the backward pass, so there is no table
    of B^3 values. A batch of one sample gives 0; the distance between equal samples has no
    gradient.
    """

    knowledge = "relation"
    paper = "Park 2019, arXiv:1904.05068"
    default_weight = 0.2
    weight_source = (
        "A fifth of the CRD benchmark's 1 for the same formula (25 on distances and 50 on "
        "angles, the fields `distance` and `angle`): in six epochs 0.2 helped and 1 did not."
    )
    default_pairs = "embedding"
    relates_samples = True
    same_shape = False

    name: Literal["rkd"] = "rkd"
    distance: Annotated[float, Field(ge=0, description="Weight of the distances")] = 25.0
    angle: Annotated[float, Field(ge=0, description="Weight of the angles")] = 50.0

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        guided, hint = guided.flatten(1), hint.flatten(1)
        distances = F.smooth_l1_loss(_scaled_distances(guided), _scaled_distances(hint))
        if not self.angle:
            return self.distance * distances
        return self.distance * distances + self.angle * angle_loss(guided, hint)


@option
class SimilarityPreserving(PairLoss):
    """Match the pairwise similarities of the samples in a batch.

    ||G_t - G_s||_F^2 / B^2 with G = F F^T, each row normalized to norm 1; Tung 2019
    (arXiv:1907.09682), Eqs. 1 to 3.  The row of a sample whose features are all 0 stays 0.
    """

    knowledge = "relation"
    paper = "Tung 2019, arXiv:1907.09682"
    default_weight = 300.0
    weight_source = (
        "A tenth of the paper's and the CRD benchmark's 3000 for the same formula: 3000 did "
        "not help a student of six epochs, 300 did."
    )
    default_pairs = "last"
    relates_samples = True
    same_shape = False

    name: Literal["sp"] = "sp"

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        return (_similarities(guided) - _similarities(hint)).square().mean()


@option
class CorrelationCongruence(PairLoss):
    """Match kernel correlations between samples.

    ||C_s - C_t||_F^2 / B^2; Peng 2019 (arXiv:1904.01802), Eq. 6, with embeddings of norm 1.
    `kernel: gaussian` is C_ij = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (f_i . f_j)^p, the
    Taylor series of the Gaussian RBF kernel, with gamma 0.4 and order 2 as in the paper; `bilinear`
    is C_ij = f_i . f_j.  The paper first applies a learned layer to both embeddings; this loss does
    not.  The cc of the CRD benchmark is a different formula (products of differences of neighboring
    samples) and is not available.
    """

    knowledge = "relation"
    paper = "Peng 2019, arXiv:1904.01802"
    default_weight = 20.0
    weight_source = (
        "A fifth of the 100 that Knowledge-Distillation-Zoo takes for the same formula on "
        "CIFAR-10, which did not help in six epochs; the CRD benchmark's 0.02 belongs to "
        "another formula."
    )
    default_pairs = "embedding"
    relates_samples = True
    same_shape = False

    name: Literal["cc"] = "cc"
    kernel: Annotated[
        Literal["gaussian", "bilinear"],
        Field(description="Kernel for the correlation of two samples"),
    ] = "gaussian"
    gamma: Annotated[float, Field(gt=0, description="Sharpness of the Gaussian kernel")] = 0.4
    order: Annotated[
        int, Field(ge=1, le=10, description="Order of the Taylor series of the Gaussian kernel")
    ] = 2

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        return (self._correlations(guided) - self._correlations(hint)).square().mean()

    def _correlations(self, features: Tensor) -> Tensor:
        """(B, ...) -> (B, B)."""
        directions = unit(features.flatten(1))
        products = directions @ directions.T
        if self.kernel == "bilinear":
            return products
        series = [
            (2 * self.gamma) ** power / factorial(power) * products**power
            for power in range(self.order + 1)
        ]
        return exp(-2 * self.gamma) * torch.stack(series).sum(dim=0)


@option
class Cka(PairLoss):
    """Match the teacher's representation of a batch up to rotation and scale.

    1 - linear CKA = 1 - ||F_s^T F_t||_F^2 / (||F_s^T F_s||_F ||F_t^T F_t||_F), with features
    centered over the batch; Kornblith 2019 (arXiv:1905.00414), Eq. 4, computed from (B, B) Gram
    matrices. A batch of one sample gives 0. If all samples are equal the value is 1, without
    gradient.
    """

    knowledge = "feature"
    paper = "Kornblith 2019, arXiv:1905.00414"
    default_weight = 1.0
    weight_source = (
        "No benchmark gives a weight; with 1 the gradient is about as large as that of the "
        "labels' loss at first, and it helped a student of six epochs."
    )
    default_pairs = "last"
    relates_samples = True
    same_shape = False

    name: Literal["cka"] = "cka"

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        if len(guided) == 1:
            return 0 * guided.sum()
        learned, taught = _centred_gram(guided), _centred_gram(hint)
        return 1 - (unit(learned.flatten()) * unit(taught.flatten())).sum()


ENTRIES = 2**22
"""How many numbers a table of angles may hold at a time (16 MiB in float32)."""


def angle_loss(guided: Tensor, hint: Tensor, entries: int = ENTRIES) -> Tensor:
    """(B, D), (B, D') -> scalar: mean Huber loss over all triplets between the cosines of their
    angles.

    Args:
        entries: maximum number of values in memory at a time.  More samples are processed in parts,
            which are recomputed for the gradient; the value does not depend on it.
    """
    count = len(guided)
    rows = max(1, entries // (count * max(count, guided.shape[1], hint.shape[1])))
    if rows >= count:
        return F.smooth_l1_loss(_angles(guided, guided), _angles(hint, hint))
    total = guided.new_zeros(())
    for first in range(0, count, rows):
        part = _angles_at(slice(first, first + rows))
        total = total + checkpoint(
            part, guided, hint, use_reentrant=False, preserve_rng_state=False
        )
    return total / count**3


def _angles_at(rows: slice) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the sum of the Huber losses over the triplets whose angle is at these samples."""

    def sum_of_huber(guided: Tensor, hint: Tensor) -> Tensor:
        ours, theirs = _angles(guided, guided[rows]), _angles(hint, hint[rows])
        return F.smooth_l1_loss(ours, theirs, reduction="sum")

    return sum_of_huber


def _angles(features: Tensor, corners: Tensor) -> Tensor:
    """(B, D), (R, D) -> (R, B, B): [j, i, k] is the cosine of the angle at j between i and k."""
    directions = unit(features[None, :] - corners[:, None])
    return directions @ directions.transpose(1, 2)


def _scaled_distances(features: Tensor) -> Tensor:
    """(B, D) -> (B, B): Euclidean distances divided by their mean off the diagonal."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    count = max(1, len(features) * (len(features) - 1))
    return distances / or_one(distances.sum() / count)


def _similarities(features: Tensor) -> Tensor:
    """(B, ...) -> (B, B), rows of norm 1."""
    flat = features.flatten(1)
    return unit(flat @ flat.T)


def _centred_gram(features: Tensor) -> Tensor:
    """(B, ...) -> (B, B): inner products of the features minus their mean over the batch."""
    varying = centred(features.flatten(1), dim=0)
    return varying @ varying.T
