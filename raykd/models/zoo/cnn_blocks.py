"""Blocks of the stages of a `cnn`.

Each has batch-norms, ReLUs and an optional squeeze-and-excite before the shortcut is added (Hu et
al. 2018, arXiv:1709.01507).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.zoo.blocks import (
    Residual,
    SqueezeExcite,
    conv_bn,
    inverted_residual,
    named,
    shortcut,
)
from raykd.models.zoo.shufflenet_v2 import ShuffleUnit
from raykd.registry import option


@dataclass(frozen=True)
class BlockShape:
    """Channels, kernel size and stride of a block.

    Attributes:
        inputs, outputs: numbers of channels.
        kernel: kernel size of the spatial convolution; odd.
        stride: 2 to halve the size.
        squeeze_excite: whether the block has a squeeze-and-excite.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    squeeze_excite: bool

    def squeeze(self, channels: int) -> nn.Module | None:
        return SqueezeExcite(channels) if self.squeeze_excite else None

    @property
    def shortcut(self) -> nn.Module:
        return shortcut(self.inputs, self.outputs, self.stride)


@option
class Block:
    """Base of every block."""

    name: str

    def build(self, shape: BlockShape) -> nn.Module:
        """Build the block: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

        Raises:
            ValueError: the block does not support these numbers of channels.
        """
        raise NotImplementedError


@option
class Plain(Block):
    """A convolution without a shortcut (Simonyan & Zisserman 2015, arXiv:1409.1556)."""

    name: Literal["plain"] = "plain"

    def build(self, shape: BlockShape) -> nn.Module:
        conv = conv_bn(shape.inputs, shape.outputs, shape.kernel, shape.stride)
        return named(spatial=conv, squeeze=shape.squeeze(shape.outputs))


@option
class Basic(Block):
    """Two convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    name: Literal["basic"] = "basic"

    def build(self, shape: BlockShape) -> nn.Module:
        body = named(
            spatial1=conv_bn(shape.inputs, shape.outputs, shape.kernel, shape.stride),
            spatial2=conv_bn(shape.outputs, shape.outputs, shape.kernel, act=None),
            squeeze=shape.squeeze(shape.outputs),
        )
        return Residual(body, shape.shortcut)


@option
class Bottleneck(Block):
    """1x1, k x k and 1x1 convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    name: Literal["bottleneck"] = "bottleneck"
    expansion: Annotated[
        int, Field(ge=1, description="Ratio of the stage width to the inner channels")
    ] = 4

    def build(self, shape: BlockShape) -> nn.Module:
        inner = max(1, shape.outputs // self.expansion)
        body = named(
            reduce=conv_bn(shape.inputs, inner),
            spatial=conv_bn(inner, inner, shape.kernel, shape.stride),
            expand=conv_bn(inner, shape.outputs, act=None),
            squeeze=shape.squeeze(shape.outputs),
        )
        return Residual(body, shape.shortcut)


@option
class Depthwise(Block):
    """A depthwise and a 1x1 convolution (MobileNet, Howard et al. 2017, arXiv:1704.04861)."""

    name: Literal["depthwise"] = "depthwise"

    def build(self, shape: BlockShape) -> nn.Module:
        inputs = shape.inputs
        return named(
            depthwise=conv_bn(inputs, inputs, shape.kernel, shape.stride, groups=inputs),
            pointwise=conv_bn(inputs, shape.outputs),
            squeeze=shape.squeeze(shape.outputs),
        )


@option
class InvertedResidualBlock(Block):
    """A wide depthwise convolution between 1x1 ones (Sandler et al. 2018, arXiv:1801.04381)."""

    name: Literal["inverted_residual"] = "inverted_residual"
    expansion: Annotated[
        int,
        Field(ge=1, description="Ratio of the hidden channels to the input channels of the block"),
    ] = 6

    def build(self, shape: BlockShape) -> nn.Module:
        hidden = shape.inputs * self.expansion
        return inverted_residual(
            shape.inputs,
            shape.outputs,
            hidden,
            kernel=shape.kernel,
            stride=shape.stride,
            expands=self.expansion > 1,
            squeeze=shape.squeeze(hidden),
        )


@option
class Group(Block):
    """A grouped and a 1x1 convolution with a shortcut (Crowley et al. 2018, arXiv:1711.02613).

    One half of the block G(g) of the paper, which has two such pairs of convolutions.
    """

    name: Literal["group"] = "group"
    groups: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum number of groups; the largest common divisor with the "
            "channels is used",
        ),
    ] = 4

    def build(self, shape: BlockShape) -> nn.Module:
        inputs = shape.inputs
        groups = gcd(inputs, self.groups)
        body = named(
            grouped=conv_bn(inputs, inputs, shape.kernel, shape.stride, groups=groups),
            pointwise=conv_bn(inputs, shape.outputs, act=None),
            squeeze=shape.squeeze(shape.outputs),
        )
        return Residual(body, shape.shortcut)


@option
class Shuffle(Block):
    """The unit of ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164); the width must be even."""

    name: Literal["shuffle"] = "shuffle"

    def build(self, shape: BlockShape) -> nn.Module:
        squeeze = shape.squeeze(shape.outputs // 2)
        return ShuffleUnit(shape.inputs, shape.outputs, shape.stride, shape.kernel, squeeze)


AnyBlock = Annotated[
    Plain | Basic | Bottleneck | Depthwise | InvertedResidualBlock | Group | Shuffle,
    Field(discriminator="name"),
]
