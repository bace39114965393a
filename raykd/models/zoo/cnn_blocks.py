"""The blocks that a `cnn`'s stages repeat.

Each has batch-norms, ReLUs and, if it is asked for, a squeeze-and-excite on what the block adds
(Hu et al. 2018, arXiv:1709.01507).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.zoo.blocks import (
    InvertedResidual,
    Residual,
    SqueezeExcite,
    conv_bn,
    named,
    shortcut,
)
from raykd.models.zoo.shufflenet_v2 import ShuffleUnit
from raykd.registry import option


@dataclass(frozen=True)
class Place:
    """What a block has to fit.

    Attributes:
        inputs, outputs: channels.
        kernel: side of its spatial convolution; odd.
        stride: 2 where the block halves the size.
        squeeze_excite: whether it has a squeeze-and-excite.
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

    def build(self, place: Place) -> nn.Module:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

        Raises:
            ValueError: it cannot be built with so many channels.
        """
        raise NotImplementedError


@option
class Plain(Block):
    """A convolution without a shortcut (Simonyan & Zisserman 2015, arXiv:1409.1556)."""

    name: Literal["plain"] = "plain"

    def build(self, place: Place) -> nn.Module:
        conv = conv_bn(place.inputs, place.outputs, place.kernel, place.stride)
        return named(spatial=conv, squeeze=place.squeeze(place.outputs))


@option
class Basic(Block):
    """Two convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    name: Literal["basic"] = "basic"

    def build(self, place: Place) -> nn.Module:
        body = named(
            spatial1=conv_bn(place.inputs, place.outputs, place.kernel, place.stride),
            spatial2=conv_bn(place.outputs, place.outputs, place.kernel, act=None),
            squeeze=place.squeeze(place.outputs),
        )
        return Residual(body, place.shortcut)


@option
class Bottleneck(Block):
    """1x1, k x k and 1x1 convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    name: Literal["bottleneck"] = "bottleneck"
    expansion: Annotated[
        int, Field(ge=1, description="Ratio of the stage width to the inner channels")
    ] = 4

    def build(self, place: Place) -> nn.Module:
        inner = max(1, place.outputs // self.expansion)
        body = named(
            reduce=conv_bn(place.inputs, inner),
            spatial=conv_bn(inner, inner, place.kernel, place.stride),
            expand=conv_bn(inner, place.outputs, act=None),
            squeeze=place.squeeze(place.outputs),
        )
        return Residual(body, place.shortcut)


@option
class Depthwise(Block):
    """A depthwise and a 1x1 convolution (MobileNet, Howard et al. 2017, arXiv:1704.04861)."""

    name: Literal["depthwise"] = "depthwise"

    def build(self, place: Place) -> nn.Module:
        inputs = place.inputs
        return named(
            depthwise=conv_bn(inputs, inputs, place.kernel, place.stride, groups=inputs),
            pointwise=conv_bn(inputs, place.outputs),
            squeeze=place.squeeze(place.outputs),
        )


@option
class InvertedResidualBlock(Block):
    """A wide depthwise convolution between 1x1 ones (Sandler et al. 2018, arXiv:1801.04381)."""

    name: Literal["inverted_residual"] = "inverted_residual"
    expansion: Annotated[
        int,
        Field(ge=1, description="Ratio of the hidden channels to the input channels of the block"),
    ] = 6

    def build(self, place: Place) -> nn.Module:
        hidden = place.inputs * self.expansion
        return InvertedResidual(
            place.inputs,
            place.outputs,
            hidden,
            kernel=place.kernel,
            stride=place.stride,
            expands=self.expansion > 1,
            squeeze=place.squeeze(hidden),
        )


@option
class Group(Block):
    """A grouped and a 1x1 convolution with a shortcut (Crowley et al. 2018, arXiv:1711.02613).

    Half of their block G(g), which has two such pairs of convolutions.
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

    def build(self, place: Place) -> nn.Module:
        inputs = place.inputs
        groups = gcd(inputs, self.groups)
        body = named(
            grouped=conv_bn(inputs, inputs, place.kernel, place.stride, groups=groups),
            pointwise=conv_bn(inputs, place.outputs, act=None),
            squeeze=place.squeeze(place.outputs),
        )
        return Residual(body, place.shortcut)


@option
class Shuffle(Block):
    """The unit of ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164); the width must be even."""

    name: Literal["shuffle"] = "shuffle"

    def build(self, place: Place) -> nn.Module:
        squeeze = place.squeeze(place.outputs // 2)
        return ShuffleUnit(place.inputs, place.outputs, place.stride, place.kernel, squeeze)


AnyBlock = Annotated[
    Plain | Basic | Bottleneck | Depthwise | InvertedResidualBlock | Group | Shuffle,
    Field(discriminator="name"),
]
