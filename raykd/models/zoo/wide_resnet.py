"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv3x3, init_kaiming
from raykd.registry import option

_STEM = 16


def _valid_depth(depth: int) -> int:
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"a wide_resnet's depth is 6n+4 (10, 16, 22, 28, 34, 40), not {depth}")
    return depth


@option
class WideResnet(Model):
    """Wide residual network of pre-activated basic blocks in three stages.

    Zagoruyko & Komodakis 2016 (arXiv:1605.07146), table 1: a 3x3 stem with 16 channels, three
    stages of (depth - 4) / 6 blocks B(3,3) with 16, 32 and 64 times `widen` channels, the second
    and third at half the size of the previous one, batch-norm, ReLU, a global average and a linear
    classifier; no dropout.  wrn_16_2 is `depth: 16, widen: 2`.

    The output of a stage is the sum of its last block, before batch-norm and ReLU.  Convolutions
    are initialized as in He et al. 2015 (arXiv:1502.01852), fan out, the bias of the classifier
    with 0 and the rest with PyTorch's defaults, as in the benchmark of Tian et al. 2020
    (arXiv:1910.10699).
    """

    paper = "Zagoruyko 2016, arXiv:1605.07146"

    name: Literal["wide_resnet"] = "wide_resnet"
    depth: Annotated[
        int,
        Field(ge=10, description="Number of layers, 6n+4: 10, 16, 22, 28, 40"),
        AfterValidator(_valid_depth),
    ] = 16
    widen: Annotated[int, Field(ge=1, description="Widening factor of the channels 16, 32, 64")] = 2

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        blocks = (_valid_depth(self.depth) - 4) // 6
        return _Network(channels, _STEM * self.widen, blocks, signature.classes)


class _Network(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(channels, _STEM)
        self.stage1 = _stage(_STEM, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.norm = nn.BatchNorm2d(4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)
        init_kaiming(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(inputs))))
        return self.classifier(self.pool(F.relu(self.norm(features))).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [_WideBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(_WideBlock(inputs, outputs, stride), *rest)


class _WideBlock(nn.Module):
    """Pre-activation block; if it changes the shape, the shortcut starts after the ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        active = F.relu(self.bn1(inputs))
        hidden = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return hidden + (inputs if self.shortcut is None else self.shortcut(active))
