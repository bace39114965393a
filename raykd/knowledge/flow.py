"""Relation-based knowledge between layers: how features flow from one to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from raykd.knowledge.connectors import channels_connector, resized, smaller
from raykd.knowledge.evidence import Evidence, Progress
from raykd.knowledge.loss import Loss, LossContext, LossModule, for_each_pair, require_two_pairs
from raykd.option import option


@option
class Fsp(Loss):
    """The flow between two layers of the student is the flow between the teacher's two.

    Mean over batch and entries of (G_s - G_t)^2, sum over neighbouring pairs, with G_ij = sum over
    places of a_i b_j / (H W) for layers a, b one after the other; Yim 2017 (CVPR), Eqs. 1 and 2,
    the mean over entries as in the CRD benchmark (weight 50).  Needs two pairs at least, shallow
    to deep; the larger map of two is brought to the smaller by area means (the paper: max pooling).
    Where channels differ the guided layers pass connectors.
    """

    knowledge = "relation"
    paper = "Yim 2017, CVPR"
    default_weight = 50.0
    default_pairs = "stages"

    name: Literal["fsp"] = "fsp"

    def build(self, context: LossContext) -> LossModule:
        require_two_pairs("fsp", context)
        return _Flow(self, context)

    def __call__(self, guided: tuple[Tensor, Tensor], hint: tuple[Tensor, Tensor]) -> Tensor:
        """The value for two layers of each network, channels alike."""
        return (flow(*guided) - flow(*hint)).square().mean()


def flow(first: Tensor, second: Tensor) -> Tensor:
    """(B, C, H, W), (B, D, H', W') -> (B, C, D): the FSP matrix, Yim 2017, Eq. 1."""
    size = smaller(first, second)
    first, second = resized(first, size).flatten(2), resized(second, size).flatten(2)
    return first @ second.transpose(1, 2) / first.shape[2]


class _Flow(LossModule):
    def __init__(self, loss: Fsp, context: LossContext) -> None:
        super().__init__()
        self.loss = loss
        self.pairs = context.pairs
        self.connectors = nn.ModuleList(for_each_pair(context, channels_connector))

    def value(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        guided = [
            connect(student.layers[pair.guided])
            for pair, connect in zip(self.pairs, self.connectors, strict=True)
        ]
        hints = [teacher.layers[pair.hint] for pair in self.pairs]
        values = [
            self.loss(ours, theirs)
            for ours, theirs in zip(pairwise(guided), pairwise(hints), strict=True)
        ]
        return torch.stack(values).sum()
