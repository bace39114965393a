"""RetinaNets on small residual networks, for detection (Lin et al. 2017, arXiv:1708.02002)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.detector import Detector
from raykd.models.zoo.blocks import Residual, conv_bn, init_kaiming, named, shortcut
from raykd.registry import option

STRIDE = 4
"""Stride of the first level; each further level has twice the stride of the one before."""

GROUPS = 8
"""Groups of the group norms of the head."""


@option
class Retinanet(Model):
    """RetinaNet on a small residual network with a feature pyramid, for images of 32 pixels and up.

    Lin et al. 2017 (arXiv:1708.02002), section 4, of torchvision's parts: focal loss, a feature
    pyramid, and a head of four 3x3 convolutions for classes and four for boxes, shared by all
    levels, with group norm as in torchvision's second version.  `stage1` ... of the backbone have
    strides 4, 8 ..., `width` channels in the first one and twice as many in each further one, and
    `depth` residual blocks each, after a 3x3 convolution of stride 2.  `level1` ... are the levels
    of the pyramid, one for each stage, with `channels` channels.  Each position of a level has 9
    anchors, as in the paper: of 4, 5 and 6.3 times its stride, in the ratios 1:2, 1:1 and 2:1.
    """

    paper = "Lin 2017, arXiv:1708.02002"
    gives = ("anchor",)

    name: Literal["retinanet"] = "retinanet"
    depth: Annotated[int, Field(ge=1, description="Residual blocks of each stage")] = 1
    width: Annotated[int, Field(ge=1, description="Channels of the first stage")] = 16
    levels: Annotated[int, Field(ge=1, le=5, description="Number of stages and levels")] = 3
    channels: Annotated[
        int,
        Field(
            ge=GROUPS,
            multiple_of=GROUPS,
            description=f"Channels of the pyramid and the head, a multiple of {GROUPS}",
        ),
    ] = 32

    def build(self, signature: Signature) -> nn.Module:
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.retinanet import RetinaNetHead

        inputs, height, width = image_shape(signature, self.name)
        most = (min(height, width) // STRIDE).bit_length()
        if self.levels > most:
            raise ValueError(
                f"a retinanet of {self.levels} levels halves images of {height}x{width} to less "
                f"than one position; set `levels` to at most {max(most, 1)}"
            )
        strides = [STRIDE * 2**level for level in range(self.levels)]
        sizes = tuple(
            tuple(round(STRIDE * stride * 2 ** (third / 3)) for third in range(3))
            for stride in strides
        )
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * self.levels)
        head = RetinaNetHead(self.channels, 9, signature.classes, lambda n: nn.GroupNorm(GROUPS, n))
        backbone = _Backbone(inputs, self)
        network = RetinaNet(backbone, signature.classes, anchor_generator=generator, head=head)
        return Detector(network, (inputs, height, width))


class _Backbone(nn.Module):
    """Residual network with a feature pyramid: images -> maps of the levels by name."""

    def __init__(self, inputs: int, model: Retinanet) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        widths = [model.width * 2**level for level in range(model.levels)]
        self.body = _Body(inputs, widths, model.depth)
        self.fpn = FeaturePyramidNetwork(widths, model.channels)
        self.out_channels = model.channels


class _Body(nn.Module):
    """Residual network: images -> maps of its stages by name."""

    def __init__(self, inputs: int, widths: list[int], depth: int) -> None:
        super().__init__()
        self.stem = conv_bn(inputs, widths[0], 3, stride=2)
        stages, before = [], widths[0]
        for width in widths:
            blocks = [_block(before, width, 2)]
            blocks += [_block(width, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            before = width
        self.stages = nn.ModuleList(stages)
        init_kaiming(self)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        features = self.stem(images)
        for number, stage in enumerate(self.stages):
            features = stage(features)
            maps[str(number)] = features
        return maps


def _block(inputs: int, outputs: int, stride: int) -> Residual:
    """Build a basic block of He et al. 2016 (arXiv:1512.03385)."""
    body = named(
        conv1=conv_bn(inputs, outputs, 3, stride),
        conv2=conv_bn(outputs, outputs, 3, act=None),
    )
    return Residual(body, shortcut(inputs, outputs, stride))
