"""Feature-based knowledge around the rectifier: what is switched on, and how far from it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.knowledge.connectors import connector, require
from raykd.knowledge.evidence import Shape
from raykd.knowledge.loss import PairLoss
from raykd.option import option


@option
class ActivationBoundaries(PairLoss):
    """The student's neurons are on and off, by a margin, where the teacher's are.

    Mean over batch and elements of (1[t > 0] relu(m - s) + 1[t <= 0] relu(m + s))^2; Heo 2019
    (arXiv:1811.03233), Eq. 6, which sums over elements.  Best on layers before their ReLU; after
    one, t > 0 tells the same.  Zero wherever every s is beyond the margin on the teacher's side.
    The CRD benchmark's 3/1000 of the sum is 49 of the mean for its 256 x 8 x 8 layers; there and in
    the paper it acts in initial epochs alone (`stop_epoch`).
    """

    knowledge = "feature"
    paper = "Heo 2019, arXiv:1811.03233"
    default_weight = 50.0
    default_pairs = "last"
    zero_at_teacher = False

    name: Literal["ab"] = "ab"
    margin: Annotated[float, Field(gt=0, description="m")] = 1.0

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        return connector(guided, hint, always=True)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        side = torch.where(hint > 0, 1.0, -1.0).to(guided.dtype)
        return F.relu(self.margin - side * guided).square().mean()


@option
class OverhaulFeature(PairLoss):
    """The student's features before the ReLU follow the teacher's, harmless negatives left alone.

    Sum over elements, mean over the batch, of (t - s)^2 where not s <= t <= 0, with t = max(f_t, m)
    and m each channel's mean negative response; Heo 2019 (arXiv:1904.01866), Eqs. 1 to 4.  m is
    taken from the batch (the authors derive it from the teacher's batch norm); without negatives,
    as after a ReLU, it is 0.  The weight is the paper's 0.001.
    """

    knowledge = "feature"
    paper = "Heo 2019, arXiv:1904.01866"
    default_weight = 0.001
    default_pairs = "stages"
    zero_at_teacher = False
    relates_samples = True

    name: Literal["ofd"] = "ofd"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "ofd", guided, hint)
        return connector(guided, hint, always=True)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        target = torch.maximum(hint, _mean_negative(hint))
        harmless = (guided <= target) & (target <= 0)
        distance = (target - guided).square().masked_fill(harmless, 0)
        return distance.flatten(1).sum(dim=1).mean()


def _mean_negative(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (1, C, 1, 1): each channel's mean over its negative values, or 0."""
    negative = features < 0
    total = (features * negative).sum(dim=(0, 2, 3), keepdim=True)
    return total / negative.sum(dim=(0, 2, 3), keepdim=True).clamp_min(1)
