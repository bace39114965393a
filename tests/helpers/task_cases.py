"""A small data set in memory, a teacher and a study for every task, by the kind of its response."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from helpers import detection_cases, segmentation_cases
from helpers.training_cases import DIGITS, Plain, digits, untimed
from raykd.data import AUGMENTATIONS, SOURCES, Dataset, Source, Split
from raykd.losses import LOSSES, Pair, Term
from raykd.losses.terms import layer_names
from raykd.models import Model, Resnet, Retinanet, Unet, profile_model
from raykd.schemes import LiveTeacher, Offline, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.tasks import TASKS, Kind, Task
from raykd.train_config import SGD, Train
from raykd.training.build import signature_of
from raykd.training.teacher_cache import (
    CacheBuilder,
    CacheStore,
    TeacherHandle,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    network_digest,
    open_cached_outputs,
)
from raykd.training.trainer import Training

OUTPUTS = 3
"""Number of labels, or of values, of a sample."""


@dataclass(frozen=True)
class Material:
    """Data and networks for the responses of one kind.

    Attributes:
        source: option of the data, which no test loads.
        data: in memory.
        teacher: its model.
        student: model with stages of the sizes of the teacher's, or of other widths.
        plain: model without batch norm, which any number of workers train alike.
        stages: shallow to deep; layers of the same sizes in `teacher` and `student`.
        terms: losses that two workers compute like one.
        batch_size: it gives two workers unequal shares, and a smaller last batch.
        rate: learning rate.
    """

    source: Source
    data: Callable[[], Dataset]
    teacher: Model
    student: Model
    plain: Model
    stages: tuple[str, ...]
    terms: tuple[Term, ...]
    batch_size: int = 37
    rate: float = 0.1


def full(cls: type[Task]) -> Task:
    """Return a task with all metrics that it supports."""
    members, _ = get_args(get_type_hints(cls)["metrics"])
    if get_origin(members) is not Literal:  # or code of the user
        members = next(each for each in get_args(members) if get_origin(each) is Literal)
    return dataclasses.replace(TASKS[cls.name](), metrics=get_args(members))


@lru_cache(maxsize=2)
def with_values(kind: Literal["labels", "number"]) -> Dataset:
    """Return the digits with labels, or with real values, as their targets."""
    data = digits()
    splits = {}
    for part in ("train", "val", "test"):
        split = data.split(part)  # type: ignore[arg-type]
        images = split.take(torch.arange(len(split)))
        assert isinstance(images, Tensor)
        inputs = (images.float() - images.float().mean()) / images.float().std()
        values = torch.stack([rows.mean((1, 2, 3)) for rows in inputs.chunk(OUTPUTS, 2)], 1)
        values = (values - values.mean(0)) / values.std(0)
        targets = values if kind == "number" else (values > torch.tensor([-0.3, 0, 0.6])).float()
        splits[part] = Split(inputs, targets, split.index)
    names = tuple(f"output {number}" for number in range(OUTPUTS))
    units = {"target_mean": (1.0, 0.0, -2.0), "target_scale": (1.0, 3.0, 0.5)}
    return dataclasses.replace(
        data,
        **splits,
        **(units if kind == "number" else {}),
        name="table",
        classes=OUTPUTS,
        class_names=names,
        fingerprint=f"digits with {kind}",
    )


def _of_samples(source: Source, data: Callable[[], Dataset], *losses: str) -> Material:
    return Material(
        source=source,
        data=data,
        teacher=Resnet(depth=8, width=8),
        student=Resnet(depth=8, width=4),
        plain=Plain(),
        stages=("stage1", "stage2", "stage3"),
        terms=(
            *(Term(loss=LOSSES[name]()) for name in losses),
            Term(loss=LOSSES["hint"](), pairs=(Pair(hint="embedding", guided="embedding"),)),
        ),
    )


def _table(kind: str) -> Source:
    targets = tuple(f"output {number}" for number in range(OUTPUTS))
    return SOURCES["table"](file="unread.csv", target=targets, kind=kind)


@lru_cache(maxsize=1)
def materials() -> Mapping[Kind, Material]:
    """Return the material by the kind of a response."""
    crop = AUGMENTATIONS["random_crop"](padding=1)
    moved = dataclasses.replace(DIGITS, augment=(crop,))
    return {
        "softmax": _of_samples(moved, digits, "kd", "logit_mse"),
        "sigmoid": _of_samples(_table("labels"), lambda: with_values("labels"), "kd", "logit_mse"),
        "real": _of_samples(_table("number"), lambda: with_values("number"), "logit_mse"),
        "dense": Material(
            source=segmentation_cases.alone().data,
            data=segmentation_cases.data,
            teacher=segmentation_cases.teacher_model(),
            student=Unet(depth=1, width=4),
            plain=segmentation_cases.PlainPositions(),
            stages=("stage1", "stage2", "stage3"),
            terms=segmentation_cases.every_kind().knowledge,
            batch_size=segmentation_cases.UNEVEN,
        ),
        "boxes": Material(
            source=detection_cases.alone().data,
            data=detection_cases.data,
            teacher=detection_cases.teacher_model(),
            student=Retinanet(width=4, channels=16, levels=2),
            plain=detection_cases.PlainBoxes(),
            stages=("level1", "level2"),
            terms=detection_cases.taught().knowledge,
            batch_size=detection_cases.UNEVEN,
            rate=0.005,
        ),
    }


def material_of(cls: type[Task]) -> Material:
    """Return the material for a task."""
    return materials()[cls.kind]


@lru_cache(maxsize=8)
def teacher_of(cls: type[Task]) -> nn.Module:
    """Return a teacher shared by all tests; no test may change it."""
    material = material_of(cls)
    torch.manual_seed(0)
    return material.teacher.build(signature_of(material.data())).eval()


def study_of(cls: type[Task], *terms: Term, **changed: Any) -> Study:
    """Return a study that two workers train like one: nothing depends on a worker's share."""
    material = material_of(cls)
    study = Study(
        name=cls.name,
        data=material.source,
        task=full(cls),
        teacher=Teacher(model=material.teacher),
        student=Student(model=material.plain),
        scheme=Offline(),
        knowledge=terms or material.terms,
        train=Train(epochs=2, batch_size=material.batch_size, optimizer=SGD(lr=material.rate)),
        cache=Cache(dtype="fp32", seed=5),
    )
    return dataclasses.replace(study, **changed)


def term_of(cls: type[Task], loss: str) -> Term:
    """Return a term of a loss with as many layers as it needs."""
    option = LOSSES[loss]
    stages = material_of(cls).stages
    layers = stages[-option.least_pairs :] if option.default_pairs != "stages" else stages
    pairs = tuple(Pair(hint=name, guided=name) for name in layers)
    return Term(loss=option(), pairs=pairs if option.takes_pairs else None)


def data_of(study: Study) -> Dataset:
    """Return the data of a study of `study_of`."""
    return material_of(type(study.learning_task)).data()


def training_of(study: Study, **options: Any) -> Training:
    """Return a training of a study of `study_of`."""
    options = {"teacher": teacher_of(type(study.learning_task)), **options}
    return Training(study, data_of(study), seed=0, **options)


def finished(training: Training) -> Training:
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


def untimed_history(training: Training) -> list[dict[str, float]]:
    return [untimed(metrics) for metrics in training.history]


def kept_outputs(study: Study, folder: Path) -> TeacherHandle:
    """Compute the outputs of the teacher for all views of the training split, and open them."""
    data, network = data_of(study), teacher_of(type(study.learning_task))
    assert study.teacher is not None and study.teacher.model is not None
    shapes = profile_model(study.teacher.model, signature_of(data)).layers
    layers = {name: shapes[name] for name in layer_names(study.knowledge, "hint")}
    outputs = TeacherOutputs("teacher", network_digest(network), layers)
    samples = TrainingSamples.of(data)
    spec = cache_spec(study, outputs, samples, views=study.train.epochs, shard_rows=30)
    store = CacheStore(Storage(str(folder)))
    live = LiveTeacher(network, tuple(layers), signature_of(data))
    build = CacheBuilder(spec, study, lambda: live, data, store)
    while build.advance():
        pass
    assert build.finish()
    return TeacherHandle(network, open_cached_outputs(store, spec.key, data))
