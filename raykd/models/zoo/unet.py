"""U-Nets for segmentation (Ronneberger et al. 2015, arXiv:1505.04597)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv_bn, init_kaiming, named, numbered
from raykd.registry import option


@option
class Unet(Model):
    """U-Net for segmentation: an encoder and a decoder with skip connections.

    Ronneberger et al. 2015 (arXiv:1505.04597), figure 1, with padded convolutions, batch-norm, and
    bilinear upsampling in place of transposed convolutions.  `stage1` to `stage<depth + 1>` are
    the encoder: two 3x3 convolutions each, with `width` channels in the first stage and twice as
    many in each further stage, which starts with a 2x2 max-pooling.  The other `depth` stages are
    the decoder: the stage before is upsampled to the size of the encoder's stage of that level, and
    both enter two 3x3 convolutions with the channels of the level.  A 1x1 convolution gives the
    class scores of every position.

    Convolutions are initialized as in He et al. 2015 (arXiv:1502.01852), fan out, the classifier
    with PyTorch's defaults.
    """

    paper = "Ronneberger 2015, arXiv:1505.04597"
    gives = ("position",)

    name: Literal["unet"] = "unet"
    depth: Annotated[int, Field(ge=1, le=6, description="Number of times the size is halved")] = 3
    width: Annotated[int, Field(ge=1, description="Channels of the first stage")] = 16

    def build(self, signature: Signature) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        if min(height, width) < 2**self.depth:
            raise ValueError(
                f"a unet of depth {self.depth} halves images of {height}x{width} to less than one "
                f"position; set `depth` to at most {min(height, width).bit_length() - 1}"
            )
        return _Network(channels, self.width, self.depth, signature.classes)


class _Network(nn.Module):
    def __init__(self, inputs: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.depth = depth
        widths = [width * 2**level for level in range(depth + 1)]
        encoder = [_convolutions(inputs, width)]
        encoder += [
            _convolutions(widths[level - 1], widths[level], pool=nn.MaxPool2d(2))
            for level in range(1, depth + 1)
        ]
        decoder = [
            _convolutions(widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(depth))
        ]
        for name, stage in numbered([*encoder, *decoder]).items():
            self.add_module(name, stage)
        init_kaiming(self)
        self.classifier = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, inputs: Tensor) -> Tensor:
        skips: list[Tensor] = []
        features = inputs
        for number in range(1, self.depth + 2):
            features = self.get_submodule(f"stage{number}")(features)
            skips.append(features)
        skips.pop()
        for number in range(self.depth + 2, 2 * self.depth + 2):
            skip = skips.pop()
            larger = F.interpolate(
                features, size=skip.shape[2:], mode="bilinear", align_corners=False
            )
            features = self.get_submodule(f"stage{number}")(torch.cat([skip, larger], dim=1))
        return self.classifier(features)


def _convolutions(inputs: int, outputs: int, pool: nn.Module | None = None) -> nn.Sequential:
    conv1, conv2 = conv_bn(inputs, outputs, 3), conv_bn(outputs, outputs, 3)
    return named(pool=pool, conv1=conv1, conv2=conv2)
