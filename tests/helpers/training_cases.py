"""Small studies for tests of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

from raykd.data import AUGMENTATIONS, SOURCES, Dataset
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Mlp, Model, Resnet, Signature
from raykd.registry import option
from raykd.schemes import SCHEMES, Alone, Offline, Scheme, Teacher
from raykd.study.config import Student, Study
from raykd.train_config import SGD, AdamW, Train
from raykd.training.trainer import Training

SMALL = Resnet(depth=8, width=4)
DIGITS = SOURCES["digits"](limit=200, val_limit=60)


@option
class Forgetful(Model):
    """Model with random numbers in every training step, without batch norm."""

    name: Literal["forgetful"] = "forgetful"

    def build(self, signature: Signature) -> nn.Module:
        size = torch.Size(signature.input_shape).numel()
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, 32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, signature.classes),
        )


@option
class Plain(Model):
    """Model without batch norm and random numbers."""

    name: Literal["plain"] = "plain"

    def build(self, signature: Signature) -> nn.Module:
        size = torch.Size(signature.input_shape).numel()
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, signature.classes)
        )


@lru_cache(maxsize=4)
def digits(limit: int | None = 200) -> Dataset:
    return SOURCES["digits"](limit=limit, val_limit=60).load()


@lru_cache(maxsize=1)
def teacher() -> nn.Module:
    """Teacher shared by all tests; no test may change it."""
    torch.manual_seed(0)
    return teacher_model().build(Signature(input_shape=(1, 8, 8), classes=10)).eval()


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
    """Study with everything that a saved state contains."""
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
    """Study that two workers train like one: nothing depends on a worker's share."""
    return dataclasses.replace(taught(*terms, **train), student=Student(model=Plain()))


def train_of(study: Study, seed: int = 0, data: Dataset | None = None) -> Training:
    return Training(study, data or digits(), seed=seed, teacher=teachers(study))


def teachers(study: Study) -> list[nn.Module]:
    """Build one network per teacher of the study's scheme."""
    return [
        teacher() if spec.model == teacher_model() else untaught(spec.model, spec.seed)
        for spec in study.teacher_specs()
    ]


@lru_cache(maxsize=8)
def untaught(model: Model, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return model.build(Signature(input_shape=(1, 8, 8), classes=10)).eval()


def scheme_of(name: str) -> Scheme:
    """Build a scheme with its defaults, or an example if it has required fields."""
    other = Teacher(model=Mlp(depth=2, width=16), seed=1)
    fields = {"assistant": {"chain": (other,)}, "multi_teacher": {"others": (other,)}}
    return SCHEMES[name](**fields.get(name, {}))


def untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    clocks = ("epoch_seconds", "images_per_second")
    return {name: value for name, value in metrics.items() if name not in clocks}


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
