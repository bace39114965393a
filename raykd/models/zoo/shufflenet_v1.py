"""ShuffleNet (Zhang et al. 2018, arXiv:1707.01083)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv_bn, imagenet_stem, staged
from raykd.registry import option

_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_STEM = 24


@option
class ShufflenetV1(Model):
    """ShuffleNet: three stages of grouped 1x1 convolutions with channel shuffle.

    Zhang et al. 2018 (arXiv:1707.01083), table 1: a stem of 24 channels, three stages of `depths`
    units with 144, 200, 240, 272 or 384 channels in the first for 1, 2, 3, 4 or 8 `groups` and
    twice as many in each following one, a global average and a linear classifier.  All channels
    are multiplied by `width_multiplier` ("s x" in the paper) and rounded up to a multiple of the
    groups.  The first unit of a stage halves the size and concatenates its averaged inputs and its
    outputs.

    `variant: cifar` is that of the benchmark of Tian et al. 2020 (arXiv:1910.10699), whose
    ShuffleV1 has the default fields: a 1x1 stem that keeps the size; a ReLU after the depthwise
    convolution; inner channels a quarter of those that a unit adds.  `variant: imagenet` is that
    of the paper: a 3x3 convolution and a max-pooling, both with stride 2; no such ReLU; inner
    channels a quarter of all outputs of a unit.  Weights have PyTorch's default initialization, as
    in the benchmark.
    """

    paper = "Zhang 2018, arXiv:1707.01083"

    name: Literal["shufflenet_v1"] = "shufflenet_v1"
    groups: Annotated[
        Literal[1, 2, 3, 4, 8], Field(description="Groups of the 1x1 convolutions")
    ] = 3
    width_multiplier: Annotated[
        float, Field(gt=0, description="Multiplier of all channel numbers")
    ] = 1.0
    depths: Annotated[
        tuple[
            Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
        ],
        Field(description="Units per stage"),
    ] = (4, 8, 4)
    variant: Annotated[
        Literal["cifar", "imagenet"],
        Field(
            description="Stem of the network. cifar: keeps the image size; imagenet: "
            "divides it by 4"
        ),
    ] = "cifar"

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        before = self._channels(_STEM, self.groups)
        outputs = self._channels(_CHANNELS[self.groups], 4 * self.groups)
        is_cifar = self.variant == "cifar"
        stem = conv_bn(channels, before) if is_cifar else imagenet_stem(channels, before, kernel=3)
        stages = []
        for depth in self.depths:
            first = _Unit(self, before, outputs, dense=not stages)
            rest = [_Unit(self, outputs, outputs) for _ in range(depth - 1)]
            stages.append(nn.Sequential(first, *rest))
            before, outputs = outputs, 2 * outputs
        return staged(stem, stages, nn.Linear(before, signature.classes))

    def _channels(self, channels: int, by: int) -> int:
        return max(1, -(-int(channels * self.width_multiplier) // by)) * by


class _Unit(nn.Module):
    """A grouped 1x1, a shuffle, a depthwise and a grouped 1x1 convolution, with a shortcut.

    Figure 2 (b) of the paper; if the channels grow, (c): the size is halved, and the averaged
    inputs are concatenated.

    Args:
        family: groups and variant.
        inputs, outputs: numbers of channels.
        dense: whether the first convolution is not grouped (section 3.2 of the paper).
    """

    def __init__(
        self, family: ShufflenetV1, inputs: int, outputs: int, dense: bool = False
    ) -> None:
        super().__init__()
        self.halves = inputs != outputs
        added = outputs - inputs if self.halves else outputs
        is_cifar, groups = family.variant == "cifar", family.groups
        inner = -(-(added if is_cifar else outputs) // (4 * groups)) * groups
        first_groups, stride = 1 if dense else groups, 2 if self.halves else 1
        act = nn.ReLU if is_cifar else None
        self.reduce = conv_bn(inputs, inner, groups=first_groups)
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.depthwise = conv_bn(inner, inner, kernel=3, stride=stride, groups=inner, act=act)
        self.expand = conv_bn(inner, added, groups=groups, act=None)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if self.halves else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.depthwise(self.shuffle(self.reduce(inputs)))
        outputs, shortcut = self.expand(hidden), self.shortcut(inputs)
        if self.halves:
            return F.relu(torch.cat([outputs, shortcut], dim=1))
        return F.relu(outputs + shortcut)
