"""Residual networks (He et al. 2016, arXiv:1512.03385)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import conv3x3, imagenet_stem, init_kaiming, shortcut, staged
from raykd.registry import option

Kind = Literal["basic", "bottleneck"]

_CONVOLUTIONS: dict[Kind, int] = {"basic": 2, "bottleneck": 3}
_EXPANSION: dict[Kind, int] = {"basic": 1, "bottleneck": 4}
_FOUR_STAGES: dict[Kind, dict[int, tuple[int, ...]]] = {
    "basic": {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    "bottleneck": {
        14: (1, 1, 1, 1),
        26: (2, 2, 2, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    },
}


def _blocks(depth: int, block: Kind, stages: int) -> tuple[int, ...]:
    """Return the number of blocks of each stage.

    Raises:
        ValueError: the depth is not possible.
    """
    if stages == 4:
        depths = _FOUR_STAGES[block]
        if depth in depths:
            return depths[depth]
        rule = ", ".join(map(str, depths))
    else:
        each = 3 * _CONVOLUTIONS[block]
        if depth > 2 and depth % each == 2:
            return (depth // each,) * 3
        rule = f"{each}n+2 ({', '.join(str(each * n + 2) for n in (1, 2, 3, 6))}, ...)"
    raise ValueError(
        f"a resnet's depth, with {stages} stages of {block} blocks, is {rule}, not {depth}"
    )


def _valid_depth(depth: int, info: ValidationInfo) -> int:
    if {"block", "stages"} <= info.data.keys():
        _blocks(depth, info.data["block"], info.data["stages"])
    return depth


@option
class Resnet(Model):
    """Residual network of basic or bottleneck blocks in three or four stages.

    He et al. 2016 (arXiv:1512.03385).  The defaults are the networks of section 4.2 for CIFAR: a
    3x3 stem, three stages of (depth - 2) / 6 basic blocks with `width`, 2 x `width` and 4 x
    `width` channels, each stage except the first at half the size of the previous one, a global
    average and a linear classifier.  There is no pooling before the first stage, so images of 8x8
    work.  `stages: 4, stem_type: imagenet, width: 64` are the networks of table 1 for ImageNet: a
    7x7 stem and a max-pooling, both with stride 2; depth 18 and 34 (basic), 50, 101 and 152
    (bottleneck), and 10, 14 and 26 with one or two blocks per stage.  With three stages, the depth
    is 6n+2 for basic blocks and 9n+2 for bottleneck blocks.

    A bottleneck block outputs 4 x the `width` of its stage, and halves the size in its 3x3
    convolution instead of the first 1x1 of the paper (as torchvision and the benchmark of Tian et
    al. 2020, arXiv:1910.10699).  If a block changes the shape, its shortcut is a 1x1 convolution
    with batch-norm (option B of the paper), as in that benchmark, instead of the zero padding
    (option A) of the paper's CIFAR networks.  Convolutions are initialized as in He et al. 2015
    (arXiv:1502.01852), fan out, the rest with PyTorch's defaults, as in the benchmark.
    """

    paper = "He 2016, arXiv:1512.03385"

    name: Literal["resnet"] = "resnet"
    stages: Annotated[Literal[3, 4], Field(description="Number of stages. 4: as for ImageNet")] = 3
    block: Annotated[
        Literal["basic", "bottleneck"],
        Field(description="Block type. basic: two 3x3 convolutions; bottleneck: 1x1, 3x3, 1x1"),
    ] = "basic"
    depth: Annotated[
        int,
        Field(
            ge=8,
            description="Number of layers. Three stages: 6n+2 (bottleneck 9n+2); four "
            "stages: 10, 18, 34 (bottleneck 14, 26, 50, ...)",
        ),
        AfterValidator(_valid_depth),
    ] = 20
    width: Annotated[int, Field(ge=1, description="Channels of the blocks in the first stage")] = 16
    stem: Annotated[
        int | None,
        Field(
            ge=1, description="Channels of the stem. null: same as the blocks of the first stage"
        ),
    ] = None
    stem_type: Annotated[
        Literal["cifar", "imagenet"],
        Field(
            description="Stem of the network. cifar: 3x3; imagenet: 7x7 and max-pooling, "
            "which divides the image size by 4"
        ),
    ] = "cifar"

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        blocks = _blocks(self.depth, self.block, self.stages)
        stem = self.stem or self.width
        stages, before = [], stem
        for number, count in enumerate(blocks):
            width, stride = self.width << number, 1 if number == 0 else 2
            stages.append(_stage(self.block, before, width, count, stride))
            before = width * _EXPANSION[self.block]
        network = staged(self._stem(channels, stem), stages, nn.Linear(before, signature.classes))
        init_kaiming(network)
        return network

    def _stem(self, channels: int, outputs: int) -> nn.Module:
        if self.stem_type == "imagenet":
            return imagenet_stem(channels, outputs, kernel=7)
        return nn.Sequential(conv3x3(channels, outputs), nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(block: Kind, inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    build = BasicBlock if block == "basic" else Bottleneck
    outputs = width * _EXPANSION[block]
    rest = [build(outputs, width, stride=1) for _ in range(count - 1)]
    return nn.Sequential(build(inputs, width, stride), *rest)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `inputs` to `width` channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut: `inputs` to 4 x `width` channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION["bottleneck"]
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(inputs))
