"""Semantic calibration: the hint layers of each guided layer are learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair
from raykd.losses.connectors import PlaceMean, Resize, connector, kind_of, resized
from raykd.losses.functional import unit
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import Shape
from raykd.registry import option


@option
class Semckd(Loss):
    """Match each guided layer to all hint layers, weighted by attention per sample.

    Mean over batch and guided layers of sum_t a_st D(s, t), where D is the mean over elements of (t
    - p_st(s))^2 and a_st is the softmax over t of q_s . k_t; Chen 2021 (arXiv:2012.03236), section
    "Semantic Calibration". The pairs only list the layers that take part.

    p_st is the projection of the authors: 1x1, 3x3 and 1x1 convolutions with batch norm and ReLU
    between them, and `middle` times the channels of the hint layer inside (2 in their code, which
    can cost more than the student). Area means reduce the larger of two maps. For embeddings and
    tokens p_st is linear.

    Queries and keys are two linear layers with a ReLU between them, applied to means over positions
    and normalized to norm 1.  Those of the authors use rows of the similarity matrix of the batch,
    which fixes the batch size.
    """

    knowledge = "feature"
    paper = "Chen 2021, arXiv:2012.03236"
    default_weight = 4.0
    weight_source = (
        "A hundredth of the authors' 400 for the same mean of squares, of which six epochs' "
        "trainings did not recover; 40 still cost accuracy and 4 gained some."
    )
    default_pairs = "stages"
    zero_at_teacher = False

    name: Literal["semckd"] = "semckd"
    width: Annotated[int, Field(ge=1, description="Size of queries and keys")] = 64
    middle: Annotated[
        float,
        Field(
            gt=0, le=4, description="Ratio of the channels inside a projection to the hint channels"
        ),
    ] = 0.5

    def build(self, context: LossContext) -> LossModule:
        return _Attending(self, context)


class _Attending(LossModule):
    def __init__(self, loss: Semckd, context: LossContext) -> None:
        super().__init__(context)
        self.guided = list(dict.fromkeys(pair.guided for pair in context.pairs))
        self.hints = list(dict.fromkeys(pair.hint for pair in context.pairs))
        shapes = (
            dict(zip((p.guided for p in context.pairs), context.guided_shapes, strict=True)),
            dict(zip((p.hint for p in context.pairs), context.hint_shapes, strict=True)),
        )
        crossed = self._crossed(context, *shapes)
        self.connectors = nn.ModuleList(
            for_each_pair(crossed, lambda guided, hint: _carrier(loss.middle, guided, hint))
        )
        self.queries = nn.ModuleList(_summary(shapes[0][name], loss.width) for name in self.guided)
        self.keys = nn.ModuleList(_summary(shapes[1][name], loss.width) for name in self.hints)

    def _crossed(
        self, context: LossContext, guided: dict[str, Shape], hints: dict[str, Shape]
    ) -> LossContext:
        """Combine every guided layer with every hint layer."""
        pair_of = {pair.guided: pair for pair in context.pairs}
        pairs = tuple(
            replace(pair_of[name], hint=hint) for name in self.guided for hint in self.hints
        )
        return replace(
            context,
            pairs=pairs,
            guided_shapes=tuple(guided[pair.guided] for pair in pairs),
            hint_shapes=tuple(hints[pair.hint] for pair in pairs),
        )

    def value(self, inputs: LossInputs) -> Tensor:
        guided = [inputs.student.layers[name] for name in self.guided]
        hints = [inputs.teacher.layers[name] for name in self.hints]
        attention = self.attention(guided, hints)
        connectors = iter(self.connectors)
        distances = [
            torch.stack([_distance(next(connectors)(layer), hint) for hint in hints], dim=1)
            for layer in guided
        ]
        return (attention * torch.stack(distances, dim=1)).sum(dim=2).mean()

    def attention(self, guided: list[Tensor], hints: list[Tensor]) -> Tensor:
        """(B, guided layers, hint layers), summing to 1 over the hint layers."""
        queries = torch.stack(
            [q(layer) for q, layer in zip(self.queries, guided, strict=True)], dim=1
        )
        keys = torch.stack([k(layer) for k, layer in zip(self.keys, hints, strict=True)], dim=1)
        return (queries @ keys.transpose(1, 2)).softmax(dim=2)


def _distance(carried: Tensor, hint: Tensor) -> Tensor:
    """(B, ...) -> (B,): mean squared difference, for maps at the size of `carried`."""
    if carried.dim() == 4:
        hint = resized(hint, (carried.shape[2], carried.shape[3]))
    return (carried - hint).square().flatten(1).mean(dim=1)


def _carrier(middle: float, guided: Shape, hint: Shape) -> nn.Module:
    """Build the projection: (B, *guided) -> (B, *hint), for maps at the smaller size."""
    if not kind_of(guided) == kind_of(hint) == "map":
        return connector(guided, hint)
    inside = max(1, round(middle * hint[0]))
    return nn.Sequential(
        Resize((min(guided[1], hint[1]), min(guided[2], hint[2]))),
        nn.Conv2d(guided[0], inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, inside, 3, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, hint[0], 1, bias=False),
    )


def _summary(shape: Shape, width: int) -> nn.Module:
    """Build the head: (B, *shape) -> (B, width), of norm 1."""
    channels = shape[0] if kind_of(shape) == "map" else shape[-1]
    pool = nn.Identity() if kind_of(shape) == "embedding" else PlaceMean()
    return nn.Sequential(
        pool, nn.Linear(channels, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), _Unit()
    )


class _Unit(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return unit(features)
