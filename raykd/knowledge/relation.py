"""Relation-based knowledge: how samples, or layers, relate to one another."""

from __future__ import annotations

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
    with the batch).  Layers are flattened, so widths may differ and no connector is learned.  One
    sample has no relations: 0.  25, 50 and 1 are the CRD benchmark's weights.
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
