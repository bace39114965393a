"""Small studies that the tests of the training share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

from raykd.data import AUGMENTATIONS, SOURCES, Dataset
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Mlp, Model, Resnet, Task
from raykd.registry import option
from raykd.schemes import SCHEMES, Alone, Offline, Scheme, Teacher
from raykd.study.config import Student, Study
from raykd.study.teachers import teachers_of
from raykd.train_config import SGD, AdamW, Train
from raykd.training.trainer import Training

SMALL = Resnet(depth=8, width=4)
DIGITS = SOURCES["digits"](limit=200, val_limit=60)


@option
class Forgetful(Model):
    """Draws random numbers in every training step, and has no batch norm."""

    name: Literal["forgetful"] = "forgetful"

    def build(self, task: Task) -> nn.Module:
        size = torch.Size(task.input_shape).numel()
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, 32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, task.classes),
        )


@option
class Plain(Model):
    """Neither batch norm nor random numbers."""

    name: Literal["plain"] = "plain"

    def build(self, task: Task) -> nn.Module:
        size = torch.Size(task.input_shape).numel()
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, task.classes)
        )


@lru_cache(maxsize=4)
def digits(limit: int | None = 200) -> Dataset:
    return SOURCES["digits"](limit=limit, val_limit=60).load()


@lru_cache(maxsize=1)
def teacher() -> nn.Module:
    """A network that no test changes: every test sees that it does not."""
    torch.manual_seed(0)
    return teacher_model().build(Task(input_shape=(1, 8, 8), classes=10)).eval()


def teacher_model() -> Model:
    return Resnet(depth=8, width=8)


def alone(**train: Any) -> Study:
    return Study(
        name="small",
        data=DIGITS,
        student=Student(model=SMALL),
        scheme=Alone(),
        train=dataclasses.replace(Train(epochs=2, batch_size=32), **train),
    )


def taught(*terms: Term, **train: Any) -> Study:
    return dataclasses.replace(
        alone(**train),
        teacher=Teacher(model=teacher_model()),
        scheme=Offline(),
        knowledge=terms or (Term(loss=LOSSES["kd"]()),),
    )


def rich() -> Study:
    """Everything at once that a state must carry."""
    study = taught(
        Term(loss=LOSSES["kd"](), ramp_epochs=2),
        Term(loss=LOSSES["hint"](), pairs=(Pair(hint="stage2", guided="stage2"),), start_epoch=1),
        epochs=4,
        optimizer=AdamW(lr=3e-3),
        warmup_epochs=1.5,
        label_smoothing=0.1,
        clip_norm=1.0,
    )
    crop = AUGMENTATIONS["random_crop"](padding=1)
    return dataclasses.replace(study, data=dataclasses.replace(DIGITS, augment=(crop,)))


def forgetful() -> Study:
    return dataclasses.replace(
        alone(epochs=4, optimizer=SGD(lr=0.05)), student=Student(model=Forgetful())
    )


def perceptron(**train: Any) -> Study:
    return dataclasses.replace(taught(**train), student=Student(model=Mlp(depth=1, width=16)))


def unnormalized(*terms: Term, **train: Any) -> Study:
    """A study that two workers train as one does: nothing depends on the share of a worker."""
    return dataclasses.replace(taught(*terms, **train), student=Student(model=Plain()))


def train_of(study: Study, seed: int = 0, data: Dataset | None = None) -> Training:
    return Training(study, data or digits(), seed=seed, teacher=teachers(study))


def teachers(study: Study) -> list[nn.Module]:
    """A network for each teacher of the study's scheme."""
    return [
        teacher() if one.model == teacher_model() else untaught(one.model, one.seed)
        for one in teachers_of(study)
    ]


@lru_cache(maxsize=8)
def untaught(model: Model, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return model.build(Task(input_shape=(1, 8, 8), classes=10)).eval()


def scheme_of(name: str) -> Scheme:
    """A scheme with its defaults, and an example where it has none."""
    other = Teacher(model=Mlp(depth=2, width=16), seed=1)
    given = {"assistant": {"chain": (other,)}, "multi_teacher": {"others": (other,)}}
    return SCHEMES[name](**given.get(name, {}))


def untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    clocks = ("epoch_seconds", "images_per_second")
    return {name: value for name, value in metrics.items() if name not in clocks}


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
