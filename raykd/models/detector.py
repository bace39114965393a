"""Detectors of torchvision with one tensor as their response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raykd.models.introspection.flops import FlopCounter
from raykd.tasks.detection import NO_BOX, boxes_of

if TYPE_CHECKING:
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.ssd import SSD

    Network = RetinaNet | FCOS | SSD

MOST_BOXES = 100
"""Number of boxes of an image: the best ones, as COCO's metrics count."""


class Detector(nn.Module):
    """A one-stage detector of torchvision, without its resizing and normalization of images.

    A response is (B, anchors, 4 + scores): the encoded corners of the box of each anchor, and its
    other outputs: a logit for each class; of an SSD one for the background before them, of FCOS
    its centerness after them.  Losses and boxes are computed from a response by torchvision; the
    loss of each image by itself.

    The modules `level1` ... return the maps that enter the head, such as the levels of a feature
    pyramid, and `stage1` ... the maps of the backbone that enter the pyramid; without a pyramid
    they are the same.  Weights have the names that torchvision gives them.

    Args:
        network: RetinaNet, FCOS or SSD.
        input_shape: (C, H, W) of the images.
    """

    anchors: Tensor

    def __init__(self, network: Network, input_shape: tuple[int, int, int]) -> None:
        from torchvision.models.detection.image_list import ImageList

        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        was_training = self.backbone.training
        self.backbone.eval()
        images = torch.zeros(1, *input_shape)
        with torch.no_grad(), FlopCounter():
            stages, levels = self._maps(images)
            sides = (input_shape[1], input_shape[2])
            [anchors] = network.anchor_generator(ImageList(images, [sides]), levels)
        self.backbone.train(was_training)
        self.register_buffer("anchors", anchors, persistent=False)
        self._rules = _Rules.of(network, sides, [each.shape[2] * each.shape[3] for each in levels])
        for alias, maps in (("stage", stages), ("level", levels)):
            for number in range(1, len(maps) + 1):
                self.add_module(f"{alias}{number}", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        _, levels = self._maps(images)
        outputs: Mapping[str, Tensor] = self.head(levels)
        return torch.cat([outputs[name] for name in self._rules.outputs], dim=2)

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of the backbone that enter its pyramid, and the levels."""
        backbone: Any = self.backbone
        if not hasattr(backbone, "fpn"):
            stages = self._passed("stage", backbone(images).values())
            return stages, self._passed("level", stages)
        maps: Mapping[str, Tensor] = backbone.body(images)
        stages = self._passed("stage", maps.values())
        levels = backbone.fpn(dict(zip(maps, stages, strict=True)))
        return stages, self._passed("level", levels.values())

    def _passed(self, alias: str, maps: Iterable[Tensor]) -> list[Tensor]:
        """Pass maps through the modules of an alias, so that losses can read them."""
        passed = []
        for number, each in enumerate(maps, start=1):
            module = getattr(self, f"{alias}{number}", None)  # none while the network is built
            passed.append(each if module is None else module(each))
        return passed

    def box_losses(self, response: Tensor, targets: Tensor) -> Tensor:
        """(B, anchors, values), (B, boxes, 5) -> (B,) sums of the losses of torchvision."""
        images = zip(response.float().split(1), boxes_of(targets), strict=True)
        return torch.stack([self._rules.loss(row, self.anchors, *truth) for row, truth in images])

    def detections(self, response: Tensor) -> Tensor:
        """(B, anchors, values) -> (B, `MOST_BOXES`, 6): corners, score and class, the best first.

        Rows without a box have the class `NO_BOX`.
        """
        return torch.stack([self._rules.boxes(row, self.anchors) for row in response.split(1)])

    def anchor_scores(self, response: Tensor) -> tuple[Tensor, Tensor]:
        """(B, anchors, values) -> (anchors, 4) corners, (B, anchors, classes) logits."""
        return self.anchors, self._rules.class_logits(response)


@dataclass(frozen=True)
class _Rules:
    """Loss and choice of boxes of a network; not a module, so that it has no weights of its own.

    Attributes:
        network: RetinaNet, FCOS or SSD, whose losses have different arguments.
        sides: height and width of the images.
        sizes: number of anchors of each level.
        background: 1 if the first score is that of the background (SSD), else 0.
        centerness: 1 if the last value is a centerness (FCOS), else 0.
    """

    network: Any
    sides: tuple[int, int]
    sizes: list[int]
    background: int
    centerness: int

    @classmethod
    def of(cls, network: Network, sides: tuple[int, int], positions: list[int]) -> _Rules:
        """Return the rules of a network.

        Args:
            network: RetinaNet, FCOS or SSD.
            sides: height and width of the images.
            positions: of each level.
        """
        from torchvision.models.detection import FCOS
        from torchvision.models.detection.ssd import SSD

        counts = network.anchor_generator.num_anchors_per_location()
        sizes = [n * count for n, count in zip(positions, counts, strict=True)]
        is_ssd, is_fcos = isinstance(network, SSD), isinstance(network, FCOS)
        return cls(network, sides, sizes, int(is_ssd), int(is_fcos))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the head."""
        return ("bbox_regression", "cls_logits", *(("bbox_ctrness",) * self.centerness))

    def class_logits(self, response: Tensor) -> Tensor:
        return response[:, :, 4 + self.background : response.shape[2] - self.centerness]

    def loss(self, response: Tensor, anchors: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of one image, a scalar.

        Args:
            response: (1, anchors, values).
            anchors: (anchors, 4) corners.
            boxes, classes: (n, 4) corners, (n,) classes of the image.
        """
        network, heads = self.network, self._heads(response)
        targets = [{"boxes": boxes, "labels": classes + self.background}]
        if self.background:
            matches = [self._matches(anchors, boxes)]
            losses = network.compute_loss(targets, heads, [anchors], matches)
        elif self.centerness:
            losses = network.compute_loss(targets, heads, [anchors], self.sizes)
        else:
            losses = network.compute_loss(targets, heads, [anchors])
        return torch.stack([*losses.values()]).sum()

    def boxes(self, response: Tensor, anchors: Tensor) -> Tensor:
        """(1, anchors, values), (anchors, 4) -> (`MOST_BOXES`, 6)."""
        heads, network = self._heads(response), self.network
        if self.background:
            [best] = network.postprocess_detections(heads, [anchors], [self.sides])
        else:
            levels = {name: [*each.split(self.sizes, dim=1)] for name, each in heads.items()}
            split = [[*anchors.split(self.sizes)]]
            [best] = network.postprocess_detections(levels, split, [self.sides])
        classes = (best["labels"] - self.background).to(response.dtype)
        rows = torch.cat([best["boxes"], best["scores"][:, None], classes[:, None]], dim=1)
        rows = rows[best["scores"].argsort(descending=True, stable=True)][:MOST_BOXES]
        padded = rows.new_zeros(MOST_BOXES, 6)
        padded[:, 5] = NO_BOX
        padded[: len(rows)] = rows
        return padded

    def _heads(self, response: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the head by torchvision's names."""
        end = response.shape[2] - self.centerness
        parts = (response[:, :, :4], response[:, :, 4:end], response[:, :, end:])
        return dict(zip(self.outputs, parts, strict=False))

    def _matches(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(anchors, 4), (n, 4) -> (anchors,) number of the box of each default box, or -1."""
        from torchvision.ops import box_iou

        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.network.proposal_matcher(box_iou(boxes, anchors))
