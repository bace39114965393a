"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature
from raykd.registry import option


@option
class Mlp(Model):
    """Fully connected network on flattened samples, with batch normalization and ReLU.

    `depth` is the number of hidden blocks (linear, batch-norm, ReLU), all of the same width; a
    linear classifier follows.  Samples may have any shape.  Categories of a table are embedded in
    half as many values as there are categories, at most 16.
    """

    name: Literal["mlp"] = "mlp"
    depth: Annotated[int, Field(ge=1, description="Number of hidden layers")] = 2
    width: Annotated[int, Field(ge=1, description="Units per hidden layer")] = 256

    def build(self, signature: Signature) -> nn.Module:
        network = nn.Sequential()
        inputs = prod(signature.input_shape)
        if signature.categories:
            columns = EmbeddedCategories(inputs, signature.categories)
            network.add_module("columns", columns)
            inputs = columns.outputs
        else:
            network.add_module("flatten", nn.Flatten())
        network.add_module("blocks", nn.Sequential(*self._blocks(inputs)))
        network.add_module("classifier", nn.Linear(self.width, signature.classes))
        return network

    def _blocks(self, inputs: int) -> list[nn.Module]:
        sizes = [inputs] + [self.width] * self.depth
        return [_block(before, after) for before, after in pairwise(sizes)]


MOST_VALUES = 16
"""Maximum number of values that a category is embedded in."""


class EmbeddedCategories(nn.Module):
    """Embed the categories of a table: (B, F) numbers and codes -> (B, outputs).

    Args:
        inputs: number of columns.
        categories: number of codes of each of the last columns.
    """

    def __init__(self, inputs: int, categories: Sequence[int]) -> None:
        super().__init__()
        self.numbers = inputs - len(categories)
        sizes = [(codes, min(MOST_VALUES, (codes + 1) // 2)) for codes in categories]
        self.tables = nn.ModuleList(nn.Embedding(*size) for size in sizes)
        self.outputs = self.numbers + sum(values for _, values in sizes)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = [inputs[:, : self.numbers]]
        for place, table in enumerate(self.tables, start=self.numbers):
            assert isinstance(table, nn.Embedding)
            codes = inputs[:, place].long().clamp(0, table.num_embeddings - 1)
            parts.append(table(codes))
        return torch.cat(parts, 1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return nn.Sequential(linear, nn.BatchNorm1d(outputs), nn.ReLU())
