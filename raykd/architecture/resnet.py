"""Residual networks for small pictures (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.architecture.blocks import conv3x3, initialise
from raykd.architecture.model import Model, Task, picture_shape
from raykd.option import option


def _valid_depth(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"a resnet's depth is 6n+2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
    return depth


@option
class Resnet(Model):
    """CIFAR-style residual network of basic blocks in three stages.

    He et al. 2016 (arXiv:1512.03385), section 4.2: a 3x3 stem, three stages of (depth - 2) / 6
    basic blocks with `width`, 2 x `width` and 4 x `width` channels, the second and the third at
    half the size of the one before, a global average and a linear classifier.  No pooling comes
    before the first stage, so pictures of 8x8 will do.

    Where a block changes the shape, its shortcut is a 1x1 convolution with batch-norm (the
    paper's option B), as in the benchmark of Tian et al. 2020 (arXiv:1910.10699), and not the
    zero padding (option A) of the paper's own CIFAR networks.  That benchmark's resnet8x4 is
    `depth: 8, width: 64, stem: 32`; its resnet32x4 is `depth: 32, width: 64, stem: 32`.
    """

    name: Literal["resnet"] = "resnet"
    depth: Annotated[
        int,
        AfterValidator(_valid_depth),
        Field(ge=8, description="6n+2: 8, 14, 20, 32, 56, 110"),
    ] = 20
    width: Annotated[int, Field(ge=1, description="channels of the first stage")] = 16
    stem: Annotated[
        int | None,
        Field(ge=1, description="channels of the stem; null: as the first stage"),
    ] = None

    def build(self, task: Task) -> nn.Module:
        channels, _, _ = picture_shape(task, self.name)
        blocks = (_valid_depth(self.depth) - 2) // 6
        return _Network(channels, self.stem or self.width, self.width, blocks, task.classes)


class _Network(nn.Module):
    def __init__(self, channels: int, stem: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(channels, stem), nn.BatchNorm2d(stem), nn.ReLU())
        self.stage1 = _stage(stem, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(inputs))))
        return self.classifier(self.pool(features).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [_BasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(_BasicBlock(inputs, outputs, stride), *rest)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )
