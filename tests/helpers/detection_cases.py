"""A small data set with boxes in memory, detectors for it, and studies on it."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raykd.data import AUGMENTATIONS, Coco, Dataset, Split
from raykd.losses import LOSSES, Pair, Term
from raykd.models import MODELS, Model, Retinanet, Signature
from raykd.models.detector import Detector
from raykd.registry import option
from raykd.schemes import Alone, Offline, Teacher
from raykd.study.config import Cache, Student, Study
from raykd.tasks import Detection
from raykd.train_config import SGD, Train
from raykd.training.build import signature_of

CLASSES, SIDE = 3, 32
SIZES = {"train": 31, "val": 11, "test": 9}
UNEVEN = 9
"""A batch size that gives two workers unequal shares, and 31 samples an odd last batch of 4."""

METRICS = ("map", "map_50", "map_75")
SAME_SHAPE = (Pair(hint="level1", guided="level1"), Pair(hint="level2", guided="level2"))
"""Layers of one shape, which need no connector with batch norm."""


class _Maps(nn.Module):
    """Two maps of one number of channels, without batch norm."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.first = nn.Conv2d(inputs, channels, 4, stride=4)
        self.second = nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images).tanh()
        return {"0": first, "1": self.second(first).tanh()}


@option
class PlainBoxes(Model):
    """FCOS on two maps, without batch norm."""

    gives = ("anchor",)

    name: Literal["plain_boxes"] = "plain_boxes"
    channels: int = 32  # group norms of torchvision's head have 32 groups

    def build(self, signature: Signature) -> nn.Module:
        from torchvision.models.detection import FCOS
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        backbone = _Maps(signature.input_shape[0], self.channels)
        generator = AnchorGenerator(((4,), (8,)), ((1.0,), (1.0,)))
        network = FCOS(backbone, signature.classes, anchor_generator=generator)
        return Detector(network, signature.input_shape)  # type: ignore[arg-type]


def boxes(count: int, generator: torch.Generator) -> Tensor:
    """(N, 2, 5): one box or two, or none in every fifth image, in different halves."""
    draw = partial(torch.randint, generator=generator)
    corners = torch.stack([draw(1, 4, (count, 2)), draw(2, 12, (count, 2))], dim=2)
    corners[:, 1, 0] += SIDE // 2
    ends = corners + draw(9, 12, (count, 2, 2))
    targets = torch.cat([corners, ends, draw(CLASSES, (count, 2, 1))], dim=2).float()
    targets[torch.arange(count) % 3 == 0, 1] = -1
    targets[torch.arange(count) % 5 == 0] = -1
    return targets


def drawn(targets: Tensor) -> Tensor:
    """(N, boxes, 5) -> (N, 1, SIDE, SIDE) uint8: each box is filled with the level of its class."""
    images = torch.full((len(targets), 1, SIDE, SIDE), 20, dtype=torch.uint8)
    for image, rows in zip(images, targets, strict=True):
        for x1, y1, x2, y2, number in rows.int().tolist():
            if number >= 0:
                image[:, y1:y2, x1:x2] = 90 + 60 * number
    return images


@lru_cache(maxsize=1)
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    splits, start = {}, 0
    for part, count in SIZES.items():
        targets = boxes(count, generator)
        splits[part] = Split(drawn(targets), targets, torch.arange(start, start + count))
        start += count
    return Dataset(
        name="coco",
        classes=CLASSES,
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        input_shape=(1, SIDE, SIDE),
        mean=(0.2,),
        std=(0.3,),
        fingerprint="boxes",
        origin="memory",
        **splits,
    )


def signature() -> Signature:
    return signature_of(data())


@lru_cache(maxsize=1)
def teacher() -> nn.Module:
    """Teacher shared by all tests; no test may change it."""
    torch.manual_seed(0)
    return teacher_model().build(signature()).eval()


def teacher_model() -> Model:
    return Retinanet(width=4, channels=32, levels=2)


def alone(**train: Any) -> Study:
    """Study that two workers train like one: nothing depends on a worker's share."""
    fields: dict[str, Any] = {"epochs": 2, "batch_size": UNEVEN, "optimizer": SGD(lr=0.005)}
    moved = tuple(AUGMENTATIONS[name]() for name in ("random_crop", "horizontal_flip"))
    return Study(
        name="boxes",
        data=Coco(root="unread", channels=1, augment=moved),
        task=Detection(metrics=METRICS),  # type: ignore[arg-type]
        student=Student(model=PlainBoxes()),
        scheme=Alone(),
        train=Train(**{**fields, **train}),
        cache=Cache(seed=5),
    )


def taught(*terms: Term, **train: Any) -> Study:
    """Study with losses on the levels that enter the head."""
    return dataclasses.replace(
        alone(**train),
        teacher=Teacher(model=teacher_model()),
        scheme=Offline(),
        knowledge=terms or tuple(Term(loss=LOSSES[n](), pairs=SAME_SHAPE) for n in ("hint", "at")),
    )


BOX_LOSSES = [name for name, loss in LOSSES.members.items() if "boxes" in loss.kinds]
BOX_MODELS = [name for name, cls in MODELS.members.items() if "anchor" in cls.gives]
