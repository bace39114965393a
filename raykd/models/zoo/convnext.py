"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import init_weights, named, perceptron, small_normal, staged
from raykd.registry import option

_SCALE = 1e-6


@option
class Convnext(Model):
    """ConvNeXt: stages of depthwise convolutions and MLPs with layer normalization.

    Liu et al. 2022 (arXiv:2201.03545): a stem that maps each `patch` x `patch` square to `width`
    channels, stages of `depths` blocks, each with twice the channels of the previous stage at half
    its size (a 2x2 convolution of stride 2), a global average, a layer-norm and a linear
    classifier.  A block is a depthwise `kernel` x `kernel` convolution, a layer-norm and an MLP
    of `expansion` x the channels, with a learned scale and a shortcut.  ConvNeXt-T is `patch: 4,
    width: 96, depths: [3, 3, 9, 3]`.  Small images need a `patch` of 2 or 1; with 1 the stem is a
    3x3 convolution, since a layer-norm of a single gray pixel keeps only its sign.

    Weights are initialized with a truncated normal distribution with standard deviation 0.02,
    biases with 0 and scales with 1e-6, as by the authors; there is no stochastic depth.
    """

    paper = "Liu 2022, arXiv:2201.03545"

    name: Literal["convnext"] = "convnext"
    patch: Annotated[int, Field(ge=1, description="Patch size (stride of the stem)")] = 1
    width: Annotated[int, Field(ge=1, description="Channels of the first stage")] = 32
    depths: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="Blocks per stage; the length is the number of stages"),
    ] = (1, 1, 3, 1)
    kernel: Annotated[
        Literal[3, 5, 7, 9, 11], Field(description="Kernel size of the depthwise convolutions")
    ] = 7
    expansion: Annotated[
        int, Field(ge=1, description="Ratio of the hidden channels to the channels of a block")
    ] = 4

    def build(self, signature: Signature) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        self._check_size(min(height, width))
        stages = [self._stage(number) for number in range(len(self.depths))]
        last = self.width << (len(self.depths) - 1)
        network = staged(
            named(conv=self._stem(channels), norm=ChannelNorm(self.width)),
            stages,
            nn.Linear(last, signature.classes),
            neck=nn.LayerNorm(last, eps=1e-6),
        )
        init_weights(network, small_normal)
        return network

    def _stem(self, channels: int) -> nn.Conv2d:
        if self.patch == 1:
            return nn.Conv2d(channels, self.width, kernel_size=3, padding=1)
        return nn.Conv2d(channels, self.width, self.patch, stride=self.patch)

    def _check_size(self, side: int) -> None:
        """Raise ValueError if the image is too small for the last stage."""
        stages = len(self.depths)
        needed = self.patch << (stages - 1)
        if not self.depths or side < needed:
            raise ValueError(
                f"a convnext of {stages} stages with a patch of {self.patch} needs images of "
                f"{needed}x{needed} or larger, and the smaller side of the data is {side}; "
                f"set patch to {max(1, side >> (stages - 1))} or less, or give fewer depths "
                f"({max(1, (side // self.patch).bit_length())} at most)"
            )

    def _stage(self, number: int) -> nn.Sequential:
        width = self.width << number
        stage = nn.Sequential()
        if number:
            down = nn.Conv2d(width // 2, width, kernel_size=2, stride=2)
            stage.add_module("downsample", named(norm=ChannelNorm(width // 2), conv=down))
        for block in range(self.depths[number]):
            stage.add_module(str(block), _Block(width, self.kernel, width * self.expansion))
        return stage


class _Block(nn.Module):
    """ConvNeXt block, (B, C, H, W) -> (B, C, H, W); channels last after the convolution."""

    def __init__(self, width: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), _SCALE))
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = perceptron(width, hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.conv(inputs).permute(0, 2, 3, 1))
        return inputs + (self.scale * self.mlp(hidden)).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer-norm over the channels at each position of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
