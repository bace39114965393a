"""Relation-based knowledge: how the samples of a batch relate to one another.

Layers are flattened to (B, D) and compared through B x B relations, so widths may differ and no
connector is learned.
"""

from __future__ import annotations

from math import exp, factorial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.knowledge.loss import PairLoss
from raykd.option import option


@option
class RelationalKD(PairLoss):
    """Distances and angles between the samples of a batch follow the teacher's.

    Huber (delta 1) between psi_D(i, j) = ||f_i - f_j|| / mu, mu the mean over pairs i != j, and
    between psi_A(i, j, k) = cos of the angle at j; Park 2019 (arXiv:1904.05068), Eqs. 4 to 8.  Both
    are means over all B^2 pairs and B^3 triplets, as in the authors' code (the paper's sums grow
    with the batch).  One sample has no relations: 0.  25, 50 and 1 are the CRD benchmark's weights.
    """

    knowledge = "relation"
    paper = "Park 2019, arXiv:1904.05068"
    default_weight = 1.0
    default_pairs = "embedding"
    relates_samples = True

    name: Literal["rkd"] = "rkd"
    distance: Annotated[float, Field(ge=0, description="weight of the distances")] = 25.0
    angle: Annotated[float, Field(ge=0, description="weight of the angles")] = 50.0

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        guided, hint = guided.flatten(1), hint.flatten(1)
        distances = F.smooth_l1_loss(_scaled_distances(guided), _scaled_distances(hint))
        angles = F.smooth_l1_loss(_angles(guided), _angles(hint))
        return self.distance * distances + self.angle * angles


@option
class SimilarityPreserving(PairLoss):
    """Samples that the teacher finds alike are alike to the student.

    ||G_t - G_s||_F^2 / B^2 with G = F F^T, each row of norm 1; Tung 2019 (arXiv:1907.09682),
    Eqs. 1 to 4.  3000 is the CRD benchmark's weight (the paper's gamma).
    """

    knowledge = "relation"
    paper = "Tung 2019, arXiv:1907.09682"
    default_weight = 3000.0
    default_pairs = "last"
    relates_samples = True

    name: Literal["sp"] = "sp"

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        return (_similarities(guided) - _similarities(hint)).square().mean()


@option
class CorrelationCongruence(PairLoss):
    """Correlations between samples, through a kernel, are congruent with the teacher's.

    ||C_s - C_t||^2 / B^2, C_ij = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (f_i . f_j)^p the
    Taylor series of the Gaussian kernel on embeddings of norm 1; Peng 2019 (arXiv:1904.01802),
    Eqs. 6, 10 and 12, gamma 0.4 and order 2 as there.  The CRD benchmark's cc (weight 0.02) is
    another formula; the weight here gives gradients of sp's size.
    """

    knowledge = "relation"
    paper = "Peng 2019, arXiv:1904.01802"
    default_weight = 100.0
    default_pairs = "embedding"
    relates_samples = True

    name: Literal["cc"] = "cc"
    gamma: Annotated[float, Field(gt=0, description="the kernel's sharpness")] = 0.4
    order: Annotated[int, Field(ge=1, le=10, description="of the Taylor series")] = 2

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        return (self._correlations(guided) - self._correlations(hint)).square().mean()

    def _correlations(self, features: Tensor) -> Tensor:
        """(B, ...) -> (B, B)."""
        directions = F.normalize(features.flatten(1), dim=1)
        products = directions @ directions.T
        series = [
            (2 * self.gamma) ** power / factorial(power) * products**power
            for power in range(self.order + 1)
        ]
        return exp(-2 * self.gamma) * torch.stack(series).sum(dim=0)


@option
class Cka(PairLoss):
    """The student's representation of the batch is the teacher's up to rotation and scale.

    1 - linear CKA = 1 - ||F_s^T F_t||_F^2 / (||F_s^T F_s||_F ||F_t^T F_t||_F), features centred
    over the batch; Kornblith 2019 (arXiv:1905.00414), Eq. 4, computed from B x B Gram matrices.
    One sample has no representation of a batch: 0.  No benchmark gives a weight; 1 is plain.
    """

    knowledge = "feature"
    paper = "Kornblith 2019, arXiv:1905.00414"
    default_weight = 1.0
    default_pairs = "last"
    relates_samples = True

    name: Literal["cka"] = "cka"

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        if len(guided) == 1:
            return 0 * guided.sum()
        learned, taught = _centred_gram(guided), _centred_gram(hint)
        return 1 - F.cosine_similarity(learned.flatten(), taught.flatten(), dim=0)


def _scaled_distances(features: Tensor) -> Tensor:
    """(B, D) -> (B, B) Euclidean distances over their mean off the diagonal."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    count = max(1, len(features) * (len(features) - 1))
    mean = distances.sum() / count
    return distances / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def _angles(features: Tensor) -> Tensor:
    """(B, D) -> (B, B, B): [j, i, k] is the cosine of the angle at j between i and k."""
    directions = F.normalize(features[None, :] - features[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def _similarities(features: Tensor) -> Tensor:
    """(B, ...) -> (B, B), rows of norm 1."""
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def _centred_gram(features: Tensor) -> Tensor:
    """(B, ...) -> (B, B): products of the features less their mean over the batch."""
    centred = features.flatten(1) - features.flatten(1).mean(dim=0)
    return centred @ centred.T
