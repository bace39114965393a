"""Students with separable or grouped convolutions in place of dense ones."""

from __future__ import annotations

from math import gcd
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel, replace_module
from raykd.models.compression.low_rank import factor_pair
from raykd.models.zoo.blocks import named
from raykd.registry import option


@option
class Separable(CompressedModel):
    """The teacher with dense convolutions replaced by separable or grouped ones.

    Crowley 2018 (arXiv:1711.02613, moonshine): the architecture stays the same, and each dense
    convolution larger than 1x1, except the first, is replaced.  `depthwise`: a depthwise and a 1x1
    convolution without an activation between them, initialized with the pair nearest to the
    teacher's kernels (Guo 2018, arXiv:1808.05517, with one depthwise kernel per channel).  `group`:
    a convolution with `groups` groups, or with the largest smaller number that divides both channel
    counts; it keeps the teacher's kernels within each group.
    """

    paper = "Crowley 2018, arXiv:1711.02613"

    name: Literal["separable"] = "separable"
    operator: Annotated[
        Literal["depthwise", "group"], Field(description="Replacement for dense convolutions")
    ] = "depthwise"
    groups: Annotated[int, Field(ge=2, description="Number of groups. Only for `group`")] = 4

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        dense = [
            (path, layer)
            for path, layer in network.named_modules()
            if type(layer) is nn.Conv2d and layer.groups == 1
        ]
        changed = 0
        for path, layer in dense[1:]:
            groups = _largest_divisor(gcd(layer.in_channels, layer.out_channels), self.groups)
            if max(layer.kernel_size) == 1 or (self.operator == "group" and groups == 1):
                continue
            cheap = (
                separate(layer, with_weights=with_weights)
                if self.operator == "depthwise"
                else group(layer, groups, with_weights=with_weights)
            )
            network = replace_module(network, path, cheap)
            changed += 1
        if not changed:
            raise ValueError(
                f"{self.base_model.name} has no dense convolution that `separable` can replace "
                "(the first one and 1x1 convolutions stay, groups must divide channels); "
                "choose another compression, such as `low_rank`"
            )
        return network


def separate(layer: nn.Conv2d, *, with_weights: bool = True) -> nn.Sequential:
    """Build the `depthwise` and `pointwise` convolutions nearest to a dense one."""
    inputs = layer.in_channels
    depthwise = _conv_like(layer, inputs, inputs, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, layer.out_channels, 1, bias=layer.bias is not None)
    if with_weights:
        with torch.no_grad():
            # One rank-1 approximation per input channel.
            kernels = layer.weight.flatten(2).transpose(0, 1)  # (inputs, outputs, positions)
            mixing, spatial = factor_pair(kernels, 1)
            depthwise.weight.copy_(spatial.view_as(depthwise.weight))
            pointwise.weight.copy_(mixing[..., 0].T[..., None, None])
            if layer.bias is not None and pointwise.bias is not None:
                pointwise.bias.copy_(layer.bias)
    return named(depthwise=depthwise, pointwise=pointwise)


def group(layer: nn.Conv2d, groups: int, *, with_weights: bool = True) -> nn.Conv2d:
    """Build a grouped convolution from the kernels of a dense one that lie within a group."""
    bias = layer.bias is not None
    cheap = _conv_like(layer, layer.in_channels, layer.out_channels, groups, bias)
    if with_weights:
        size = layer.in_channels // groups
        with torch.no_grad():
            rows = layer.weight.chunk(groups)
            blocks = [row[:, i * size : (i + 1) * size] for i, row in enumerate(rows)]
            cheap.weight.copy_(torch.cat(blocks))
            if layer.bias is not None and cheap.bias is not None:
                cheap.bias.copy_(layer.bias)
    return cheap


def _conv_like(layer: nn.Conv2d, inputs: int, outputs: int, groups: int, bias: bool) -> nn.Conv2d:
    """Build a convolution of the same kernel size, stride, padding and dilation."""
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


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` up to `most`."""
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)
