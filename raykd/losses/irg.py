"""Instance relationship graphs: distances between samples, and their change with depth."""

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

    The loss is the sum of three parts; Liu 2019 (CVPR), losses of the graph and of its
    transformation, with means in place of sums:

    - vertices x mean of (z_s - z_t)^2 over logits;
    - edges x mean of (A_s - A_t)^2, summed over layers, with A_ij = ||f_i - f_j||^2;
    - transformations x the same for changes between neighboring layers k and l: of vertices
      ||f_i^k - f_i^l||^2, of edges (A_ij^k - A_ij^l)^2.

    As in the authors' code, features are means over positions, and A and the changes of vertices
    are divided by their maximum in the batch. The narrower of two layers is padded with zeros.
    There is no connector. With one pair there is no transformation.
    """

    knowledge = "relation"
    kinds = ("softmax", "sigmoid", "real")
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
        guided = [_vertices(inputs.student.layers[pair.guided]) for pair in self.pairs]
        hints = [_vertices(inputs.teacher.layers[pair.hint]) for pair in self.pairs]
        check_logits(self.loss.name, inputs.student.logits, inputs.teacher.logits, None)
        value = self.loss.vertices * F.mse_loss(inputs.student.logits, inputs.teacher.logits)
        for vertices_s, vertices_t in zip(guided, hints, strict=True):
            value = value + self.loss.edges * F.mse_loss(edges(vertices_s), edges(vertices_t))
        for layers_s, layers_t in zip(pairwise(guided), pairwise(hints), strict=True):
            for change in (_vertex_change, _edge_change):
                distance = F.mse_loss(change(*layers_s), change(*layers_t))
                value = value + self.loss.transformations * distance
        return value


def edges(features: Tensor) -> Tensor:
    """(B, D) -> (B, B): squared distances divided by their maximum."""
    return _relative(squared_distances(features, features))


def _vertices(layer: Tensor) -> Tensor:
    """Convert a map, tokens or an embedding to (B, D): mean over positions."""
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
