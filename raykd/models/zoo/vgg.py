"""VGG networks for small images (Simonyan & Zisserman 2015, arXiv:1409.1556)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv3x3, init_kaiming, small_classifier
from raykd.registry import option

_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (1, 2, 4, 8, 8)
_LAST_POOLING_FROM = 64


@option
class Vgg(Model):
    """VGG of five stages with batch normalization and a linear classifier, for any image size.

    Simonyan & Zisserman 2015 (arXiv:1409.1556), table 1, as the benchmark of Tian et al. 2020
    (arXiv:1910.10699) for CIFAR: batch-norm after each convolution, a global average and one
    linear layer instead of three, and vgg8 with one convolution per stage.  The stages have
    `width` x 1, 2, 4, 8, 8 channels.

    A 2x2 max-pooling comes before stages 2, 3 and 4, and before stage 5 for images of 64x64 or
    larger.  A pooling of maps with a side of 1 is left out, so every depth works with every image
    size: 8x8 images have stages of 8, 4, 2, 1 and 1.

    Convolutions are initialized as in He et al. 2015 (arXiv:1502.01852), fan out, the classifier
    with a normal distribution with standard deviation 0.01 and biases with 0, as in the benchmark.
    """

    paper = "Simonyan 2015, arXiv:1409.1556"

    name: Literal["vgg"] = "vgg"
    depth: Annotated[
        Literal[8, 11, 13, 16, 19],
        Field(description="Number of layers. 8 has 5 convolutions; the others have all but 3"),
    ] = 8
    width: Annotated[int, Field(ge=1, description="Channels of the first stage")] = 64

    def build(self, signature: Signature) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        if self.depth not in _CONVOLUTIONS:
            allowed = ", ".join(map(str, _CONVOLUTIONS))
            raise ValueError(f"a vgg's depth is one of {allowed}, not {self.depth}")
        widths = [self.width * factor for factor in _WIDTHS]
        poolings = _poolings(min(height, width))
        return _Network(channels, widths, _CONVOLUTIONS[self.depth], poolings, signature.classes)


def _poolings(side: int) -> tuple[bool, ...]:
    """Return whether a pooling comes before each stage."""
    poolings = (False, True, True, True, side >= _LAST_POOLING_FROM)
    return tuple(pool and side >> number > 0 for number, pool in enumerate(poolings))


class _Network(nn.Module):
    def __init__(
        self,
        channels: int,
        widths: list[int],
        convolutions: tuple[int, ...],
        poolings: tuple[bool, ...],
        classes: int,
    ) -> None:
        super().__init__()
        inputs = [channels, *widths[:-1]]
        self.stage1 = _stage(inputs[0], widths[0], convolutions[0], poolings[0])
        self.stage2 = _stage(inputs[1], widths[1], convolutions[1], poolings[1])
        self.stage3 = _stage(inputs[2], widths[2], convolutions[2], poolings[2])
        self.stage4 = _stage(inputs[3], widths[3], convolutions[3], poolings[3])
        self.stage5 = _stage(inputs[4], widths[4], convolutions[4], poolings[4])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = small_classifier(widths[-1], classes)
        init_kaiming(self)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(inputs)))
        features = self.stage5(self.stage4(features))
        return self.classifier(self.pool(features).flatten(1))


def _stage(inputs: int, outputs: int, convolutions: int, pooling: bool) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if pooling:
        parts["pool"] = nn.MaxPool2d(2)
    for number in range(1, convolutions + 1):
        before = inputs if number == 1 else outputs
        parts[f"conv{number}"] = conv3x3(before, outputs, bias=True)
        parts[f"bn{number}"] = nn.BatchNorm2d(outputs)
        parts[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(parts)
