"""From a concrete study to the distiller that the loop trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from raykd.architecture import Anatomy, Model, Task, anatomy, discover, stage_aliases
from raykd.data import Dataset
from raykd.knowledge import Shape
from raykd.knowledge.terms import layer_names
from raykd.schemes import Distiller, LiveTeacher, Parts
from raykd.study.pairing import resolve_pairs
from raykd.study.schema import Study
from raykd.training.layout import lay_out
from raykd.training.seeding import derive, seeded


def task_of(data: Dataset) -> Task:
    """What a model for these data takes and gives."""
    return Task(input_shape=data.input_shape, classes=data.classes)


def assemble(
    study: Study, data: Dataset, *, seed: int, teacher: nn.Module | None, device: torch.device
) -> Distiller:
    """The scheme made ready, on `device`.

    The student's first weights depend on `seed` and its architecture alone, so that it starts
    from the same ones under every scheme.  They are drawn on the CPU, the same for any device.

    Raises:
        ValueError: a model does not fit the data, a layer is not there or cannot be bridged, the
            scheme needs a teacher and there is none.
    """
    task = task_of(data)
    cpu = torch.device("cpu")
    with seeded(derive(seed, "student"), cpu):
        student = study.student.model.build(task)
    with seeded(derive(seed, "scheme"), cpu):
        parts = _parts(study, data, task, lay_out(student, device), teacher, device)
        distiller = study.scheme.build(parts)
    lay_out(distiller, device)
    return distiller


def _parts(
    study: Study,
    data: Dataset,
    task: Task,
    student: nn.Module,
    teacher: nn.Module | None,
    device: torch.device,
) -> Parts:
    guided: Mapping[str, Shape] = {}
    hints: Mapping[str, Shape] = {}
    if _takes_pairs(study):
        ours, theirs = anatomy(study.student.model, task), _teacher_anatomy(study, teacher, task)
        study = resolve_pairs(study, ours, theirs, task.classes)
        guided, hints = ours.layers, (theirs or ours).layers
    source = None
    if study.scheme.needs_teacher and teacher is not None:
        source = LiveTeacher(lay_out(teacher, device), layer_names(study.knowledge, "hint"), task)
    return Parts(
        student=student,
        build_student=_builder(study.student.model, task, device),
        teacher=source,
        terms=study.knowledge,
        task_loss=partial(cross_entropy, label_smoothing=study.train.label_smoothing),
        task=task,
        train_size=len(data.train),
        data_size=data.data_size,
        guided_shapes=guided,
        hint_shapes=hints,
    )


def _takes_pairs(study: Study) -> bool:
    terms = study.knowledge if study.scheme.takes_knowledge else ()
    return any(term.active and term.loss and term.loss.takes_pairs for term in terms)


def _teacher_anatomy(study: Study, teacher: nn.Module | None, task: Task) -> Anatomy | None:
    """From the option where there is one; a teacher given as a network is looked at itself."""
    if teacher is None or not study.scheme.needs_teacher:
        return None
    if study.teacher is not None and study.teacher.model is not None:
        return anatomy(study.teacher.model, task)
    found = discover(teacher, task)
    aliases = stage_aliases(found)
    return Anatomy(
        params=sum(parameter.numel() for parameter in teacher.parameters()),
        macs=max((layer.macs for layer in found), default=0),
        layers={layer.name: layer.shape for layer in (*found, *aliases.values())},
        aliases={alias: layer.module for alias, layer in aliases.items()},
        found=found,
    )


def _builder(model: Model, task: Task, device: torch.device) -> Callable[[], nn.Module]:
    return lambda: lay_out(model.build(task), device)
