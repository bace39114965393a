"""Students with cheap convolutions in place of dense ones."""

from __future__ import annotations

from math import gcd
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from raykd.architecture.blocks import named
from raykd.architecture.derived.derived import Derived, replaced
from raykd.architecture.derived.low_rank import halves
from raykd.architecture.model import Task
from raykd.option import option


@option
class Separable(Derived):
    """The teacher with dense convolutions replaced by separable or grouped ones.

    Crowley 2018 (arXiv:1711.02613, moonshine): the network stays, each dense convolution larger
    than 1x1 but the first is exchanged.  `depthwise`: a depthwise one, then a 1x1, with nothing in
    between, so that they can start as the nearest such pair to the teacher's kernels (Guo 2018,
    arXiv:1808.05517, with one depthwise kernel a channel).  `group`: one in `groups` groups, or in
    the largest number of groups below that divides both its sides; of the teacher's kernels it
    keeps those that lie within a group.
    """

    paper = "Crowley 2018, arXiv:1711.02613"

    name: Literal["separable"] = "separable"
    operator: Annotated[
        Literal["depthwise", "group"], Field(description="Replacement for dense convolutions")
    ] = "depthwise"
    groups: Annotated[int, Field(ge=2, description="Number of groups. Only for `group`")] = 4

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        dense = [
            (path, layer)
            for path, layer in network.named_modules()
            if type(layer) is nn.Conv2d and layer.groups == 1
        ]
        changed = 0
        for path, layer in dense[1:]:
            groups = _divisor(self.groups, gcd(layer.in_channels, layer.out_channels))
            if max(layer.kernel_size) == 1 or (self.operator == "group" and groups == 1):
                continue
            cheap = (
                separated(layer, weighed=weighed)
                if self.operator == "depthwise"
                else grouped(layer, groups, weighed=weighed)
            )
            network = replaced(network, path, cheap)
            changed += 1
        if not changed:
            raise ValueError(
                f"{self.source.name} has no dense convolution that `separable` could exchange (the "
                "first one and 1x1 stay, and groups must divide the channels); derive the student "
                "in another way, such as `low_rank`"
            )
        return network


def separated(layer: nn.Conv2d, *, weighed: bool = True) -> nn.Sequential:
    """The `depthwise` and the `pointwise` convolution nearest to a dense one."""
    inputs = layer.in_channels
    depthwise = _like(layer, inputs, inputs, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, layer.out_channels, 1, bias=layer.bias is not None)
    if weighed:
        with torch.no_grad():
            kernels = layer.weight.flatten(2).transpose(0, 1)  # (inputs, outputs, places)
            shares, places = halves(kernels, 1)
            depthwise.weight.copy_(places.view_as(depthwise.weight))
            pointwise.weight.copy_(shares[..., 0].T[..., None, None])
            if layer.bias is not None and pointwise.bias is not None:
                pointwise.bias.copy_(layer.bias)
    return named(depthwise=depthwise, pointwise=pointwise)


def grouped(layer: nn.Conv2d, groups: int, *, weighed: bool = True) -> nn.Conv2d:
    """The convolution in groups with those kernels of a dense one that lie within a group."""
    bias = layer.bias is not None
    cheap = _like(layer, layer.in_channels, layer.out_channels, groups, bias)
    if weighed:
        each = layer.in_channels // groups
        with torch.no_grad():
            parts = layer.weight.chunk(groups)
            within = [
                part[:, number * each : (number + 1) * each] for number, part in enumerate(parts)
            ]
            cheap.weight.copy_(torch.cat(within))
            if layer.bias is not None and cheap.bias is not None:
                cheap.bias.copy_(layer.bias)
    return cheap


def _like(layer: nn.Conv2d, inputs: int, outputs: int, groups: int, bias: bool) -> nn.Conv2d:
    """A convolution of the same kernel size, stride, padding and dilation."""
    return nn.Conv2d(
        inputs,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        bias,
        layer.padding_mode,
    )


def _divisor(most: int, of: int) -> int:
    """The largest divisor that is no more than `most`."""
    return next(number for number in range(most, 0, -1) if of % number == 0)
