"""FSP: knowledge in the relation between layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair, require_two_pairs
from raykd.losses.connectors import channels_connector, resized, smaller
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import check_features, check_maps
from raykd.registry import option


@option
class Fsp(Loss):
    """Match the flow (FSP matrix) between two layers of the teacher.

    The loss is the mean over batch and entries of (G_s - G_t)^2, summed over neighboring pairs;
    G_ij = sum over positions of a_i b_j / (H W) for consecutive layers a and b; Yim 2017 (CVPR),
    Eqs. 1 and 2.  As in the CRD benchmark, the loss is a mean over entries, and area means reduce
    the larger map to the size of the smaller.  `scale: paper` sums over entries, and `pooling: max`
    pools as in the paper.  The loss needs at least two pairs, shallow to deep.  If the numbers of
    channels differ, the guided layers pass connectors.  The paper and the benchmark first train
    with this loss alone: give the term `stop_epoch: n` and the scheme `start_epoch: n`.
    """

    knowledge = "relation"
    paper = "Yim 2017, CVPR"
    default_weight = 1.0
    weight_source = (
        "The 1 that Knowledge-Distillation-Zoo takes for the same formula beside the labels; "
        "the CRD benchmark's 50 is for 30 epochs without labels and, beside them, hurt a "
        "student of six epochs."
    )
    default_pairs = "stages"
    least_pairs = 2

    name: Literal["fsp"] = "fsp"
    scale: Annotated[
        Literal["benchmark", "paper"],
        Field(description="Scale of the loss: mean or sum over the entries of a matrix"),
    ] = "benchmark"
    pooling: Annotated[
        Literal["average", "max"],
        Field(description="Pooling that reduces the larger map to the size of the smaller"),
    ] = "average"

    def build(self, context: LossContext) -> LossModule:
        require_two_pairs("fsp", context)
        return _Flow(self, context)

    def __call__(self, guided: tuple[Tensor, Tensor], hint: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss for two layers of each network, with equal numbers of channels."""
        for ours, theirs in zip(guided, hint, strict=True):
            check_maps(self.name, ours, theirs)
        ours, theirs = flow(*guided, self.pooling), flow(*hint, self.pooling)
        check_features(self.name, ours, theirs, same=True)
        squares = (ours - theirs).square()
        return squares.mean() if self.scale == "benchmark" else squares.sum(dim=(1, 2)).mean()


def flow(first: Tensor, second: Tensor, pooling: Literal["average", "max"] = "average") -> Tensor:
    """(B, C, H, W), (B, D, H', W') -> (B, C, D): FSP matrix; Yim 2017, Eq. 1."""
    size = smaller(first, second)
    shrink = resized if pooling == "average" else F.adaptive_max_pool2d
    first, second = shrink(first, size).flatten(2), shrink(second, size).flatten(2)
    return first @ second.transpose(1, 2) / first.shape[2]


class _Flow(LossModule):
    def __init__(self, loss: Fsp, context: LossContext) -> None:
        super().__init__(context)
        self.loss = loss
        self.pairs = context.pairs
        self.connectors = nn.ModuleList(for_each_pair(context, channels_connector))

    def value(self, inputs: LossInputs) -> Tensor:
        guided = [
            connect(inputs.student.layers[pair.guided])
            for pair, connect in zip(self.pairs, self.connectors, strict=True)
        ]
        hints = [inputs.teacher.layers[pair.hint] for pair in self.pairs]
        values = [
            self.loss(ours, theirs)
            for ours, theirs in zip(pairwise(guided), pairwise(hints), strict=True)
        ]
        return torch.stack(values).sum()
