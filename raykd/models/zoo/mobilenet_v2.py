"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import (
    conv_bn,
    divisible,
    init_kaiming,
    inverted_residual,
    small_classifier,
    staged,
)
from raykd.registry import option


class _Row(NamedTuple):
    channels: int
    blocks: int
    stride: int


_FIRST = _Row(16, 1, 1)
_STAGES = (
    (_FIRST, _Row(24, 2, 2)),
    (_Row(32, 3, 2),),
    (_Row(64, 4, 2), _Row(96, 3, 1)),
    (_Row(160, 3, 2), _Row(320, 1, 1)),
)
"""Table 2 of the paper, without stem and head."""
_STEM = 32
_HEAD = 1280


@option
class MobilenetV2(Model):
    """MobileNetV2: inverted residual blocks with depthwise convolutions in four stages.

    Sandler et al. 2018 (arXiv:1801.04381), table 2: a 3x3 stem, blocks of 16, 24, 32, 64, 96, 160
    and 320 channels, a 1x1 convolution to 1,280, a global average and a linear classifier.
    Channels are multiplied by `width_multiplier`; the hidden channels of a block also by
    `expansion`, except in the first block.  The stages end with 24, 32, 96 and 320 channels.

    `variant: imagenet` is that of the paper: ReLU6, a dropout of 0.2 before the classifier,
    channels rounded to multiples of 8, and at least 1,280 channels at the end.  `variant: cifar`
    is that of the benchmark of Tian et al. 2020 (arXiv:1910.10699), whose MobileNetV2 has a
    `width_multiplier` of 0.5: blocks with 24 channels keep the size, ReLU, channels truncated to
    integers, a 1x1 expansion in the first block too, no dropout.

    Convolutions are initialized as in He et al. 2015 (arXiv:1502.01852), fan out, the classifier
    with a normal distribution with standard deviation 0.01 and bias 0, as in the benchmark and in
    torchvision.
    """

    paper = "Sandler 2018, arXiv:1801.04381"

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    width_multiplier: Annotated[
        float, Field(gt=0, description="Multiplier of all channel numbers")
    ] = 1.0
    expansion: Annotated[
        int,
        Field(ge=1, description="Ratio of the hidden channels to the input channels of a block"),
    ] = 6
    variant: Annotated[
        Literal["cifar", "imagenet"],
        Field(
            description="Downsampling. cifar: halves the image size four times; imagenet: "
            "five times"
        ),
    ] = "cifar"
    stem_stride: Annotated[
        Literal[1, 2], Field(description="Stride of the stem. 1 keeps the image size")
    ] = 2

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        before = self._channels(_STEM)
        last = self._channels(_HEAD * max(1.0, self.width_multiplier) / self.width_multiplier)
        stem = conv_bn(channels, before, kernel=3, stride=self.stem_stride, act=self._act)
        stages: list[nn.Module] = []
        for rows in _STAGES:
            stage = nn.Sequential()
            for row in rows:
                stage.extend(self._blocks(before, row))
                before = self._channels(row.channels)
            stages.append(stage)
        network = staged(
            stem,
            stages,
            small_classifier(last, signature.classes),
            head=conv_bn(before, last, act=self._act),
            neck=nn.Dropout(0.2) if self.variant == "imagenet" else None,
        )
        init_kaiming(network)
        return network

    def _blocks(self, inputs: int, row: _Row) -> list[nn.Module]:
        outputs = self._channels(row.channels)
        blocks: list[nn.Module] = []
        for number in range(row.blocks):
            before = outputs if number else inputs
            block = inverted_residual(
                before,
                outputs,
                before if row is _FIRST else before * self.expansion,
                stride=1 if number else self._stride(row),
                act=self._act,
                expands=row is not _FIRST or self.variant == "cifar",
            )
            blocks.append(block)
        return blocks

    def _stride(self, row: _Row) -> int:
        return 1 if self.variant == "cifar" and row.channels == 24 else row.stride

    def _channels(self, channels: float) -> int:
        scaled = channels * self.width_multiplier
        return divisible(scaled, 8) if self.variant == "imagenet" else max(1, int(scaled))

    @property
    def _act(self) -> Callable[[], nn.Module]:
        return nn.ReLU6 if self.variant == "imagenet" else nn.ReLU
