"""Feature losses around the ReLU: activation boundaries and overhauled feature distillation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PairLoss
from raykd.losses.connectors import connector, require
from raykd.losses.shapes import Shape, check_maps
from raykd.registry import option


@option
class ActivationBoundaries(PairLoss):
    """Match the activation boundaries of the teacher's neurons, with a margin.

    The loss is the alternative loss of Heo 2019 (arXiv:1811.03233), section "Method":

        (1[t > 0] relu(m - s) + 1[t <= 0] relu(m + s))^2

    where t is the hint layer and s is the guided layer after its connector.  It is 0 if every s is
    beyond the margin m on the same side as t.  Use it on layers before their ReLU; after a ReLU,
    t > 0 gives the same boundaries.

    `scale: mean` is the mean over batch and elements.  `scale: benchmark` follows the authors' code
    and the CRD benchmark: 3/1000 of the sum over elements, mean over the batch, halved for each
    pair above the deepest.  The paper uses the plain sum.  In the paper and the benchmark the loss
    only initializes the student: give the term `stop_epoch: n` and the scheme `start_epoch: n`.
    """

    knowledge = "feature"
    paper = "Heo 2019, arXiv:1811.03233"
    default_weight = 10.0
    weight_source = (
        "A fifth of the CRD benchmark's, whose 3/1000 of the sum is 49 of the mean for 256 x 8 x 8 "
        "elements and acts in initial epochs alone; beside the labels' loss 50 cost accuracy."
    )
    default_pairs = "last"
    zero_at_teacher = False

    name: Literal["ab"] = "ab"
    margin: Annotated[float, Field(gt=0, description="Margin m")] = 1.0
    scale: Annotated[
        Literal["mean", "benchmark"],
        Field(description="Scale of the loss: the mean, or 3/1000 of the sum"),
    ] = "mean"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        return connector(guided, hint, always=True)

    def shares(self, pairs: int) -> tuple[float, ...]:
        return _halved(pairs) if self.scale == "benchmark" else (1.0,) * pairs

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        side = torch.where(hint > 0, 1.0, -1.0).to(guided.dtype)
        squares = F.relu(self.margin - side * guided).square()
        if self.scale == "mean":
            return squares.mean()
        return 0.003 * squares.flatten(1).sum(dim=1).mean()


@option
class OverhaulFeature(PairLoss):
    """Match the features before the ReLU; negative values need no exact match.

    The loss is the partial L2 distance of Heo 2019 (arXiv:1904.01866): the sum over elements, mean
    over the batch, of (t - s)^2, except where s <= t <= 0.  t = max(f_t, m) is the margin ReLU of
    the hint layer, m is the mean negative response of each channel, and s is the guided layer after
    its connector.  m is computed from the batch; the authors derive it from the batch norm of the
    teacher, which not every teacher has.  A layer without negative values, as after a ReLU, has
    m = 0.

    `scale: paper` sums over pairs.  `scale: benchmark` gives each pair half the weight of the next
    deeper pair, as the authors' code and mdistiller do.
    """

    knowledge = "feature"
    paper = "Heo 2019, arXiv:1904.01866"
    default_weight = 0.001
    weight_source = "The paper's and mdistiller's 0.001 of the sum over elements, as it is."
    default_pairs = "stages"
    zero_at_teacher = False
    relates_samples = True

    name: Literal["ofd"] = "ofd"
    scale: Annotated[
        Literal["paper", "benchmark"],
        Field(description="Scale of the pairs: equal, or halved for shallower pairs"),
    ] = "paper"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "ofd", guided, hint)
        return connector(guided, hint, always=True)

    def shares(self, pairs: int) -> tuple[float, ...]:
        return _halved(pairs) if self.scale == "benchmark" else (1.0,) * pairs

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        check_maps(self.name, guided, hint)
        target = torch.maximum(hint, _mean_negative(hint))
        harmless = (guided <= target) & (target <= 0)
        distance = (target - guided).square().masked_fill(harmless, 0)
        return distance.flatten(1).sum(dim=1).mean()


def _halved(pairs: int) -> tuple[float, ...]:
    """Return the factors of pairs, shallow to deep: ..., 1/4, 1/2, 1."""
    return tuple(0.5**above for above in reversed(range(pairs)))


def _mean_negative(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (1, C, 1, 1): mean of the negative values of a channel, 0 without any."""
    negative = features < 0
    total = (features * negative).sum(dim=(0, 2, 3), keepdim=True)
    return total / negative.sum(dim=(0, 2, 3), keepdim=True).clamp_min(1)
