"""Instance relationship graphs: samples, their distances, and how both change with depth."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.losses.base import Loss, LossContext, LossModule
from raykd.losses.connectors import kind_of
from raykd.losses.functional import or_one, squared_distances
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import check_logits
from raykd.registry import option


@option
class Irg(Loss):
    """Match the graph of samples and its change from layer to layer.

    vertices x mean (z_s - z_t)^2 over logits, plus edges x mean (A_s - A_t)^2 summed over layers,
    A_ij = ||f_i - f_j||^2, plus transformations x the same for what happens between neighbouring
    layers k, l: to vertices ||f_i^k - f_i^l||^2, to edges (A_ij^k - A_ij^l)^2; Liu 2019 (CVPR), the
    losses of the graph and of its transformation, means where the paper sums.  As in the authors'
    code features are means over places, and A and the vertices' changes are divided by the batch's
    largest.  Where layers differ in width the narrower is padded with zeros.  No connector is
    learned; one pair has no transformation.
    """

    knowledge = "relation"
    paper = "Liu 2019, CVPR"
    default_weight = 1.0
    weight_source = (
        "1, because the weights are the fields: Knowledge-Distillation-Zoo's 0.1 on the logits "
        "and, for its 5 on the mean over three layers and 5 on the changes, about 2 on each "
        "part of our sums."
    )
    default_pairs = "stages"
    reads_logits = True
    relates_samples = True

    name: Literal["irg"] = "irg"
    vertices: Annotated[float, Field(ge=0, description="Weight of the logits")] = 0.1
    edges: Annotated[float, Field(ge=0, description="Weight of the distances")] = 2.0
    transformations: Annotated[
        float, Field(ge=0, description="Weight of the changes between layers")
    ] = 2.0

    def build(self, context: LossContext) -> LossModule:
        return _Graphs(self, context)


class _Graphs(LossModule):
    def __init__(self, loss: Irg, context: LossContext) -> None:
        super().__init__(context)
        self.loss = loss
        self.pairs = context.pairs
        for shape in (*context.guided_shapes, *context.hint_shapes):
            kind_of(shape)  # raises where it is not known which axes hold places

    def value(self, inputs: LossInputs) -> Tensor:
        ours = [_vertices(inputs.student.layers[pair.guided]) for pair in self.pairs]
        theirs = [_vertices(inputs.teacher.layers[pair.hint]) for pair in self.pairs]
        check_logits(self.loss.name, inputs.student.logits, inputs.teacher.logits, None)
        value = self.loss.vertices * F.mse_loss(inputs.student.logits, inputs.teacher.logits)
        for one, other in zip(ours, theirs, strict=True):
            value = value + self.loss.edges * F.mse_loss(edges(one), edges(other))
        for one, other in zip(pairwise(ours), pairwise(theirs), strict=True):
            for change in (_vertex_change, _edge_change):
                distance = F.mse_loss(change(*one), change(*other))
                value = value + self.loss.transformations * distance
        return value


def edges(features: Tensor) -> Tensor:
    """(B, D) -> (B, B): squared distances over the largest."""
    return _relative(squared_distances(features, features))


def _vertices(layer: Tensor) -> Tensor:
    """A map, tokens or an embedding -> (B, D): the mean over places."""
    if layer.dim() == 2:
        return layer
    return layer.mean(dim=(2, 3)) if layer.dim() == 4 else layer.mean(dim=1)


def _vertex_change(first: Tensor, second: Tensor) -> Tensor:
    """(B, D), (B, D') -> (B,)."""
    width = max(first.shape[1], second.shape[1])
    first, second = (F.pad(layer, (0, width - layer.shape[1])) for layer in (first, second))
    return _relative((first - second).square().sum(dim=1))


def _edge_change(first: Tensor, second: Tensor) -> Tensor:
    """(B, D), (B, D') -> (B, B)."""
    return (edges(first) - edges(second)).square()


def _relative(values: Tensor) -> Tensor:
    return values / or_one(values.max())
