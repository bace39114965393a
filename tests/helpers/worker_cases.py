"""Work of each of two workers in `test_training_workers`; a separate module to be pickled."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from helpers import detection_cases, language_cases, segmentation_cases, task_cases
from helpers.training_cases import (
    DIGITS,
    Plain,
    alone,
    digits,
    taught,
    teacher,
    teacher_model,
    unnormalized,
    untimed,
)
from raykd.data import AUGMENTATIONS, Placement
from raykd.data.dataset import Unlabeled
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Resnet, profile_model
from raykd.models.compression import Quantized
from raykd.schemes import Alone, LiveTeacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.tasks import TASKS, Classification
from raykd.train_config import SGD
from raykd.training.build import signature_of
from raykd.training.memory_format import to_device
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
from raykd.training.trainer import Diverged, Training

UNEVEN = 37
"""A batch size that gives two workers unequal shares, and 200 samples an odd last batch of 15."""

EMBEDDING = (Pair(hint="embedding", guided="embedding"),)

FEW_LABELS = dataclasses.replace(DIGITS, labels_per_class=2)
UNLABELED = dataclasses.replace(
    DIGITS, unlabeled=Unlabeled(data=dataclasses.replace(DIGITS, split_seed=3), ratio=1.3)
)

STUDIES: dict[str, Study] = {
    "even": unnormalized(epochs=2, optimizer=SGD(lr=0.1)),
    "uneven": unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1), clip_norm=0.5),
    "late": taught(Term(loss=LOSSES["hint"](), start_epoch=1), epochs=2, batch_size=UNEVEN),
    "normalized": alone(epochs=1),
    "deployed": unnormalized(
        Term(loss=LOSSES["simkd"](), pairs=EMBEDDING), epochs=2, batch_size=UNEVEN
    ),
    "factors": taught(Term(loss=LOSSES["ft"]()), epochs=2, batch_size=UNEVEN),
    "quantized": dataclasses.replace(
        alone(epochs=1),
        student=Student(model=Quantized(base=Resnet(depth=8, width=4), inherit_weights=False)),
    ),
    "few_labels": dataclasses.replace(
        unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1)), data=FEW_LABELS
    ),
    "unlabeled": dataclasses.replace(
        unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1)), data=UNLABELED
    ),
    "labels_alone": dataclasses.replace(
        unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1)),
        data=FEW_LABELS,
        scheme=Alone(),
        knowledge=(),
    ),
    "agreement": dataclasses.replace(
        unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1)),
        task=Classification(metrics=("accuracy", "auroc", "teacher_agreement")),
    ),
    "inputs": dataclasses.replace(
        unnormalized(epochs=2, batch_size=UNEVEN, optimizer=SGD(lr=0.1)),
        student=Student(model=Plain(), input="4x4"),
        task=Classification(metrics=("accuracy", "teacher_agreement")),
    ),
    "texts": language_cases.study(
        train=dataclasses.replace(language_cases.study().train, batch_size=15)
    ),
    "positions_alone": segmentation_cases.alone(),
    "boxes_alone": detection_cases.alone(),
    "contrast": taught(Term(loss=LOSSES["crd"]()), epochs=2, batch_size=UNEVEN),
    **{cls.name: task_cases.study_of(cls) for cls in TASKS},
}


CACHED = dataclasses.replace(
    unnormalized(
        Term(loss=LOSSES["kd"]()),
        Term(loss=LOSSES["hint"](), pairs=EMBEDDING),
        epochs=2,
        batch_size=UNEVEN,
    ),
    data=dataclasses.replace(DIGITS, augment=(AUGMENTATIONS["random_crop"](padding=1),)),
    cache=Cache(dtype="fp32", seed=0),
)


def run(rank: int, folder: str) -> None:
    """Train every study with two workers, and put what this one saw into `folder`."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # ranks whose processes differ must yet agree
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=180),
    )
    try:
        results: dict[str, Any] = {name: _trained(study, rank) for name, study in STUDIES.items()}
        results["resumed"] = _resumed(STUDIES["uneven"], rank)
        results["diverged"] = _diverged(rank)
        results["cached"] = _cached(CACHED, rank, folder)
        torch.save(results, Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def _training(study: Study, rank: int, world: int = 2) -> Training:
    placement, teaching = Placement("cpu", rank, world), teacher()
    if study.name in TASKS.members:
        return task_cases.training_of(study, placement=placement)
    if study.learning_task.kind == "dense":
        data, teaching = segmentation_cases.data(), segmentation_cases.teacher()
    elif study.learning_task.kind == "boxes":
        data, teaching = detection_cases.data(), detection_cases.teacher()
    elif study.name == "languages":
        data, teaching = language_cases.languages(), language_cases.teacher()
    else:
        data = study.data.load() if study.data in (FEW_LABELS, UNLABELED) else digits()
    return Training(study, data, seed=0, teacher=teaching, placement=placement)


def _trained(study: Study, rank: int, world: int = 2) -> dict[str, Any]:
    return finished(_training(study, rank, world))


def finished(training: Training) -> dict[str, Any]:
    while training.epoch < training.epochs:
        training.run_epoch()
    return {
        "history": [untimed(metrics) for metrics in training.history],
        "test": training.evaluate("test"),
        "weights": training.state()["student"],
    }


def alone_in_the_world(study: Study) -> dict[str, Any]:
    """Train the same study with one worker."""
    return _trained(study, rank=0, world=1)


def _resumed(study: Study, rank: int) -> dict[str, Any]:
    first, second = _training(study, rank), _training(study, rank)
    first.run_epoch()
    second.load_state(first.state())
    return finished(second)


def _cached(study: Study, rank: int, folder: str) -> dict[str, Any]:
    """Each rank computes its share of the teacher's outputs, then reads those of its samples."""
    shapes = profile_model(teacher_model(), signature_of(digits())).layers
    layers = {"embedding": shapes["embedding"]}
    outputs = TeacherOutputs("resnet", network_digest(teacher()), layers)
    samples = TrainingSamples.of(digits())
    description = cache_spec(study, outputs, samples, views=2, shard_rows=30)
    store = CacheStore(Storage(folder))
    live = LiveTeacher(
        to_device(teacher(), torch.device("cpu")), tuple(layers), signature_of(digits())
    )
    build = CacheBuilder(
        description, study, lambda: live, digits(), store, Placement("cpu", rank, 2)
    )
    while build.advance():
        pass
    dist.barrier()
    if rank == 0:
        assert build.finish()
    dist.barrier()
    outputs = open_cached_outputs(store, description.key, digits())
    cached_teacher = TeacherHandle(teacher(), outputs)
    return finished(
        Training(
            study, digits(), seed=0, teacher=cached_teacher, placement=Placement("cpu", rank, 2)
        )
    )


def _diverged(rank: int) -> str:
    """One rank's input is broken: every rank must hear of it, at the same point."""
    training = _training(STUDIES["even"], rank)
    if rank == 1:
        normalized = training.loader._normalize
        normalized.shift = normalized.shift * float("nan")
    try:
        training.run_epoch()
    except Diverged as error:
        return f"{error.epoch}: {error.fault}"
    return "nothing"
