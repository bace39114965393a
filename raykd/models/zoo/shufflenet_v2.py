"""ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv_bn, imagenet_stem, named, staged
from raykd.registry import option

_STEM = 24


def even(width: int) -> int:
    """Return `width`.

    Raises:
        ValueError: it is odd.
    """
    if width % 2:
        raise ValueError(
            f"units of ShuffleNet V2 have two halves, so the width must be even, not {width}; "
            f"use {width - 1 or 2} or {width + 1}, and in a range `step: 2`"
        )
    return width


@option
class ShufflenetV2(Model):
    """ShuffleNet V2: three stages of units that split, convolve one half and shuffle.

    Ma et al. 2018 (arXiv:1807.11164), table 5: a stem of 24 channels, three stages of `depths`
    units with `width`, 2 x `width` and 4 x `width` channels, whose first unit halves the size, a
    1x1 convolution to `head` channels, a global average and a linear classifier.  The widths of
    the paper are 48, 116, 176 and 244 (with `head: 2048`).

    The defaults are the ShuffleV2 of the benchmark of Tian et al. 2020 (arXiv:1910.10699), with a
    1x1 stem that keeps the size.  `stem_type: imagenet` is that of the paper, with a 3x3
    convolution and a max-pooling, both with stride 2.  Weights have PyTorch's default
    initialization, as in the benchmark and in torchvision.
    """

    paper = "Ma 2018, arXiv:1807.11164"

    name: Literal["shufflenet_v2"] = "shufflenet_v2"
    width: Annotated[
        int,
        Field(ge=2, description="Channels of the first stage. Must be even"),
        AfterValidator(even),
    ] = 116
    head: Annotated[int, Field(ge=1, description="Channels before global average pooling")] = 1024
    depths: Annotated[
        tuple[
            Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
        ],
        Field(description="Units per stage"),
    ] = (4, 8, 4)
    stem_type: Annotated[
        Literal["cifar", "imagenet"],
        Field(
            description="Stem of the network. cifar: 1x1; imagenet: 3x3 and max-pooling, "
            "which divides the image size by 4"
        ),
    ] = "cifar"

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        is_cifar = self.stem_type == "cifar"
        stem = conv_bn(channels, _STEM) if is_cifar else imagenet_stem(channels, _STEM, kernel=3)
        stages, before, outputs = [], _STEM, even(self.width)
        for depth in self.depths:
            rest = [ShuffleUnit(outputs, outputs) for _ in range(depth - 1)]
            stages.append(nn.Sequential(ShuffleUnit(before, outputs, stride=2), *rest))
            before, outputs = outputs, 2 * outputs
        head = conv_bn(before, self.head)
        return staged(stem, stages, nn.Linear(self.head, signature.classes), head)


class ShuffleUnit(nn.Module):
    """Convolve one half of the channels, keep the other, and shuffle both.

    Figure 3 (c) of the paper; if the shape changes, both halves are convolutions of all inputs
    (figure 3 d).

    Args:
        inputs, outputs: numbers of channels; `outputs` is even.
        stride, kernel: of the depthwise convolution.
        squeeze: squeeze-and-excite of the convolved half (section 4).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        kernel: int = 3,
        squeeze: nn.Module | None = None,
    ) -> None:
        super().__init__()
        half = even(outputs) // 2
        self.splits = stride == 1 and inputs == outputs
        self.kept = nn.Identity() if self.splits else _depthwise_first(inputs, half, stride, kernel)
        self.convolved = named(
            reduce=conv_bn(half if self.splits else inputs, half),
            depthwise=conv_bn(half, half, kernel, stride, groups=half, act=None),
            expand=conv_bn(half, half),
            squeeze=squeeze,
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = inputs.chunk(2, dim=1) if self.splits else (inputs, inputs)
        return self.shuffle(torch.cat([self.kept(first), self.convolved(second)], dim=1))


def _depthwise_first(inputs: int, outputs: int, stride: int, kernel: int) -> nn.Sequential:
    return named(
        depthwise=conv_bn(inputs, inputs, kernel, stride, groups=inputs, act=None),
        expand=conv_bn(inputs, outputs),
    )
