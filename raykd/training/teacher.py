"""The teacher of a study: how it is trained, found again, and loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from raykd.architecture import Model, Task
from raykd.schemes import Alone
from raykd.study.schema import Student, Study, Teacher, plain
from raykd.training.checkpoint import check_shapes, load_weights, parse_weights, read_shapes

RECIPE = 1
"""Part of every teacher's key; raised when the same options come to train another teacher."""


def teacher_study(study: Study) -> Study:
    """The study that trains the teacher of `study`: by the same loop, on the same data, alone.

    Raises:
        ValueError: the study has no teacher, or names no model for it.
    """
    teacher = _teacher(study)
    return dataclasses.replace(
        study,
        teacher=None,
        student=Student(model=_model(teacher)),
        scheme=Alone(),
        knowledge=(),
        train=teacher.train or study.train,
    )


def teacher_key(study: Study, fingerprint: str) -> str:
    """The content address of the trained teacher: 32 hex digits.

    Another teacher option, training option, seed, augmentation or data set gives another key;
    so does a weights file with other content.

    Args:
        study: concrete.
        fingerprint: `Dataset.fingerprint`.
    """
    teacher = _teacher(study)
    weights = teacher.weights
    content = {
        "recipe": RECIPE,
        "model": plain(teacher.model),
        "weights": weights,
        "bytes": _digest(weights) if weights and not teacher.is_mlflow else None,
        "train": plain(teacher.train or study.train),
        "augment": plain(study.data.augment),
        "data": fingerprint,
        "seed": study.seed,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def teacher_metadata(study: Study, key: str, accuracy: float) -> dict[str, str]:
    """What is written beside a trained teacher's weights.

    Args:
        study: the one it was trained in.
        key: `teacher_key`.
        accuracy: on the validation split, 0 to 1.
    """
    return {
        "raykd.study": study.name,
        "raykd.teacher_key": key,
        "raykd.val_accuracy": repr(accuracy),
        "raykd.model": json.dumps(plain(_teacher(study).model), sort_keys=True, default=str),
    }


def load_teacher(study: Study, task: Task, path: str | Path) -> nn.Module:
    """The study's teacher with the weights of a safetensors file, in eval mode, on the CPU.

    Raises:
        ValueError: the study names no teacher's model, or the file does not hold its weights.
    """
    network = _model(_teacher(study)).build(task)
    load_weights(network, path)
    return network.eval()


def read_teacher(study: Study, task: Task, content: bytes) -> nn.Module:
    """As `load_teacher`, from the file's bytes."""
    network = _model(_teacher(study)).build(task)
    parse_weights(network, content, "the teacher's weights")
    return network.eval()


def check_weights(path: str | Path, model: Model, task: Task) -> None:
    """See that the file holds this model's weights, by its header alone; nothing is loaded.

    Raises:
        ValueError: it does not (no such file, no safetensors file, missing, unexpected or
            mis-shaped tensors), or the model cannot be built for the task.
    """
    shapes = read_shapes(path)
    with torch.device("meta"):
        network = model.build(task)
    check_shapes(network, shapes, str(path))


def _teacher(study: Study) -> Teacher:
    if study.teacher is None:
        raise ValueError("the study has no teacher; name one under `teacher`")
    return study.teacher


def _model(teacher: Teacher) -> Model:
    if teacher.model is None:
        raise ValueError(
            "the teacher names no model; say under `teacher.model` which network it is"
        )
    return teacher.model


def _digest(path: str) -> str | None:
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
