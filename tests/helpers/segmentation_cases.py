"""A small data set with masks in memory, networks for it, and studies on it."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raykd.data import AUGMENTATIONS, Dataset, MaskFolder, Split
from raykd.losses import LOSSES, Pair, Term
from raykd.models import MODELS, Model, Signature, Unet
from raykd.registry import option
from raykd.schemes import Alone, Offline, Teacher
from raykd.study.config import Cache, Student, Study
from raykd.tasks import Segmentation
from raykd.tasks.statistics import IGNORED
from raykd.train_config import SGD, Train
from raykd.training.build import signature_of

CLASSES, SIDE = 4, 8
SIZES = {"train": 52, "val": 21, "test": 13}
UNEVEN = 19
"""A batch size that gives two workers unequal shares, and 52 samples an odd last batch of 14."""

METRICS = ("mean_iou", "mean_dice", "worst_class_iou", "pixel_accuracy")
SAME_SHAPE = (Pair(hint="stage3", guided="stage2"),)
"""Layers of one shape, which need no connector with batch norm."""


@option
class PlainPositions(Model):
    """Model of two stages without batch norm, with a response for each position."""

    gives = ("position",)

    name: Literal["plain_positions"] = "plain_positions"
    width: int = 6

    def build(self, signature: Signature) -> nn.Module:
        channels, classes = signature.input_shape[0], signature.classes
        network = nn.Sequential()
        network.add_module("stage1", nn.Conv2d(channels, self.width, 3, padding=1))
        network.add_module("stage2", nn.Sequential(nn.Tanh(), nn.Conv2d(self.width, 6, 1)))
        network.add_module("classifier", nn.Conv2d(6, classes, 1))
        return network


def masks(count: int, generator: torch.Generator) -> Tensor:
    """(N, H, W): a class in each half; the number of ignored positions differs between samples."""
    halves = torch.randint(CLASSES, (count, 1, 2), generator=generator)
    targets = halves.repeat_interleave(SIDE // 2, 2).expand(count, SIDE, SIDE)
    share = torch.rand(count, 1, 1, generator=generator)
    ignored = torch.rand(count, SIDE, SIDE, generator=generator) < 0.8 * share
    return targets.masked_fill(ignored, IGNORED).to(torch.uint8)


@lru_cache(maxsize=1)
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    splits, start = {}, 0
    for part, count in SIZES.items():
        targets = masks(count, generator)
        noise = torch.randint(0, 60, (count, 1, SIDE, SIDE), generator=generator)
        level = targets.masked_fill(targets == IGNORED, 0)[:, None].long() * 60
        index = torch.arange(start, start + count)
        splits[part] = Split((level + noise).to(torch.uint8), targets, index)
        start += count
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Dataset(
        name="mask_folder",
        classes=CLASSES,
        class_names=names,
        input_shape=(1, SIDE, SIDE),
        mean=(0.4,),
        std=(0.3,),
        fingerprint="masks",
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
    return Unet(depth=1, width=6)


def alone(**train: Any) -> Study:
    """Study that two workers train like one: nothing depends on a worker's share."""
    fields: dict[str, Any] = {"epochs": 2, "batch_size": UNEVEN, "optimizer": SGD(lr=0.1)}
    moved = tuple(AUGMENTATIONS[n]() for n in ("random_crop", "horizontal_flip"))
    return Study(
        name="positions",
        data=MaskFolder(root="unread", channels=1, augment=moved),
        task=Segmentation(metrics=METRICS),  # type: ignore[arg-type]
        student=Student(model=PlainPositions()),
        scheme=Alone(),
        train=Train(**{**fields, **train}),
        cache=Cache(dtype="fp32", seed=5),
    )


def taught(*terms: Term, **train: Any) -> Study:
    return dataclasses.replace(
        alone(**train),
        teacher=Teacher(model=teacher_model()),
        scheme=Offline(),
        knowledge=terms or (Term(loss=LOSSES["kd"]()),),
    )


def every_kind() -> Study:
    """Study with losses on responses and on layers."""
    return taught(
        Term(loss=LOSSES["kd"]()),
        Term(loss=LOSSES["cwd"]()),
        Term(loss=LOSSES["logit_mse"]()),
        Term(loss=LOSSES["hint"](), pairs=SAME_SHAPE),
    )


DENSE_LOSSES = [
    name for name, loss in LOSSES.members.items() if "dense" in loss.kinds and ":" not in name
]
"""Names of the losses that a segmentation may use."""

DENSE_MODELS = [name for name, cls in MODELS.members.items() if "position" in cls.gives]
