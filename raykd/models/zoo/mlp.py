"""Multi-layer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.base import Model, Task
from raykd.registry import option


@option
class Mlp(Model):
    """Fully connected network on flattened samples, with batch normalization and ReLU.

    `depth` is the number of hidden blocks (linear, batch-norm, ReLU), all of the same width; a
    linear classifier follows.  Samples may have any shape.
    """

    name: Literal["mlp"] = "mlp"
    depth: Annotated[int, Field(ge=1, description="Number of hidden layers")] = 2
    width: Annotated[int, Field(ge=1, description="Units per hidden layer")] = 256

    def build(self, task: Task) -> nn.Module:
        network = nn.Sequential()
        network.add_module("flatten", nn.Flatten())
        network.add_module("blocks", nn.Sequential(*self._blocks(prod(task.input_shape))))
        network.add_module("classifier", nn.Linear(self.width, task.classes))
        return network

    def _blocks(self, inputs: int) -> list[nn.Module]:
        sizes = [inputs] + [self.width] * self.depth
        return [_block(before, after) for before, after in pairwise(sizes)]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return nn.Sequential(linear, nn.BatchNorm1d(outputs), nn.ReLU())
