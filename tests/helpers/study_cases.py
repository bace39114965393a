"""Small studies for every scheme and every loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import nn

from helpers.scheme_cases import STUDENT, TEACHER, examples, label
from raykd.data import AUGMENTATIONS, SOURCES, Dataset, Placement
from raykd.losses import KD, LOSSES, Hint, Pair, Term
from raykd.models import Model
from raykd.schemes import Offline, Scheme
from raykd.schemes import Teacher as TeacherOption
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train
from raykd.training.build import signature_of
from raykd.training.trainer import Training

DATA = SOURCES["digits"](limit=64, val_limit=20, augment=(AUGMENTATIONS["random_crop"](padding=1),))
BATCH = 27
"""Two steps an epoch, 27 samples and 37: unequal shares for two workers."""

KNOWLEDGE = (
    Term(loss=KD()),
    Term(loss=Hint(), weight=1, pairs=(Pair(hint="stage2", guided="stage2"),)),
)


def under(scheme: Scheme) -> Study:
    """Return a study with this scheme, with terms if it uses them."""
    return dataclasses.replace(_study(), scheme=scheme, knowledge=_knowledge(scheme))


def transferring(name: str) -> Study:
    """Return a study with the offline scheme and only this loss."""
    return dataclasses.replace(_study(), knowledge=(Term(loss=LOSSES[name]()),))


CLASS_LOSSES = [
    name for name, loss in LOSSES.members.items() if "softmax" in loss.kinds and ":" not in name
]
"""Names of the losses that a classification may use."""

STUDIES: dict[str, Callable[[], Study]] = {
    **{f"scheme-{label(scheme)}": lambda scheme=scheme: under(scheme) for scheme in examples()},
    **{f"loss-{name}": lambda name=name: transferring(name) for name in CLASS_LOSSES},
}
"""Every scheme's examples and every loss."""


def training_of(study: Study, *, seed: int = 0, rank: int = 0, world: int = 1) -> Training:
    teachers = [
        teacher(number, prepared.model or TEACHER)
        for number, prepared in enumerate(study.teacher_specs())
    ]
    placement = Placement("cpu", rank, world)
    return Training(study, digits(), seed=seed, teacher=teachers, placement=placement)


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    clocks = ("epoch_seconds", "images_per_second")
    return {name: value for name, value in metrics.items() if name not in clocks}


@lru_cache(maxsize=1)
def digits() -> Dataset:
    return DATA.load()


@cache
def teacher(number: int, model: Model) -> nn.Module:
    """Teacher shared by all trainings; another for each number."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        return model.build(signature_of(digits())).eval()


def _study() -> Study:
    return Study(
        name="small",
        data=DATA,
        teacher=TeacherOption(model=TEACHER),
        student=Student(model=STUDENT),
        scheme=Offline(),
        train=Train(epochs=2, batch_size=BATCH, optimizer=SGD(lr=0.02)),
    )


def _knowledge(scheme: Scheme) -> tuple[Term, ...]:
    return KNOWLEDGE if scheme.takes_knowledge else ()
