"""From a concrete study to the distiller that the loop trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raykd.architecture import (
    Anatomy,
    Model,
    Task,
    Text,
    anatomy,
    discover,
    stage_aliases,
)
from raykd.architecture.normalization import like
from raykd.data import Dataset
from raykd.knowledge import Shape, Term
from raykd.knowledge.terms import layer_names
from raykd.schemes import Distiller, Guide, Parts, Preparation
from raykd.study.pairing import resolve_pairs
from raykd.study.schema import Study
from raykd.study.teachers import needed_by, teachers_of
from raykd.training.cache import TeacherAtHand, serves
from raykd.training.layout import lay_out
from raykd.training.normalizing import adapted
from raykd.training.seeding import derive_seed, seeded

log = logging.getLogger("raykd")


def task_of(data: Dataset) -> Task:
    """What a model for these data takes and gives."""
    text = None
    if data.vocabulary:
        inputs = data.train.take(data.train.index.new_zeros(1))
        assert not isinstance(inputs, Tensor), "texts are mappings of tensors"
        sample = tuple((key, tuple(row[0].tolist())) for key, row in inputs.items())
        text = Text(data.vocabulary, data.padding, tuple(inputs), sample)
    return Task(data.input_shape, data.classes, text, data.class_names)


def assemble(
    study: Study,
    data: Dataset,
    *,
    seed: int,
    teachers: Sequence[nn.Module | TeacherAtHand],
    device: torch.device,
) -> Distiller:
    """The scheme made ready, on `device`.

    The student's first weights depend on `seed` and its architecture alone, so that it starts
    from the same ones under every scheme.  They are drawn on the CPU, the same for any device.

    Args:
        study: concrete.
        data: what it is trained on.
        seed: of the training.
        teachers: those of `teachers_of(study)`, trained, in that order; those that are left over
            (a teacher where the scheme needs none) are not used, but for the one right after them,
            from which the student inherits where its model does (`needed_by`).
        device: where to train.

    Raises:
        ValueError: a model does not fit the data, a layer is not there or cannot be bridged, the
            scheme needs a teacher and there is none, or the student inherits and nothing is given
            to inherit from.
    """
    task = task_of(data)
    handles = [
        TeacherAtHand(adapted(teacher, data)) if isinstance(teacher, nn.Module) else teacher
        for teacher in teachers
    ]
    cpu = torch.device("cpu")
    with seeded(derive_seed(seed, "student"), cpu):
        student = _student(study, task, handles)
    with seeded(derive_seed(seed, "scheme"), cpu):
        checked = [_checked(handle, study, data, seed) for handle in handles]
        parts = _parts(study, data, task, lay_out(student, device), checked, device)
        distiller = study.scheme.build(parts)
    lay_out(distiller, device)
    return distiller


def _student(study: Study, task: Task, teachers: Sequence[TeacherAtHand]) -> nn.Module:
    """The student with the weights it starts from."""
    model, teaching, needed = study.student.model, teachers_of(study), needed_by(study)
    if model.origin is not None and len(teachers) > len(teaching):
        return _made_from(teachers[len(teaching)].network, model, task)
    if needed == teaching:
        return model.build(task)
    if needed[-1] in teaching[: len(teachers)]:
        return _made_from(teachers[teaching.index(needed[-1])].network, model, task)
    raise ValueError(
        f"student '{model.name}' inherits from the study's trained teacher, which was not given; "
        "give it after those that teach (`train_teachers`), or write `inherit_weights: false`"
    )


def _made_from(trained: nn.Module, model: Model, task: Task) -> nn.Module:
    """A student with the weights of a trained network, and with its normalization."""
    return like(model.build_from(trained, task), trained)


def _parts(
    study: Study,
    data: Dataset,
    task: Task,
    student: nn.Module,
    teachers: Sequence[TeacherAtHand],
    device: torch.device,
) -> Parts:
    prepared = teachers_of(study)
    if teachers and not prepared and study.scheme.needs_teacher:
        # Given as a network, by a caller whose study says nothing of it.
        prepared = (Preparation(model=None, weights=None, train=study.train, seed=study.seed),)
    if teachers and len(teachers) < len(prepared):
        raise ValueError(
            f"scheme '{study.scheme.name}' learns from {len(prepared)} teachers and "
            f"{len(teachers)} were given; give one for each"
        )
    ours = anatomy(study.student.model, task) if _takes_pairs(study) else None
    guides = [
        _guide(study, task, one, teacher, ours, device)
        for one, teacher in zip(prepared, teachers, strict=False)
    ]
    terms: Sequence[Term] = study.knowledge
    if ours is not None and not guides:
        terms = resolve_pairs(study, ours, (), task.classes).knowledge
    own = ours.layers if ours is not None else {}
    return Parts(
        student=student,
        build_student=_builder(study.student.model, task, device),
        teacher=guides[0].teacher if guides else None,
        terms=guides[0].terms if guides else terms,
        task_loss=partial(cross_entropy, label_smoothing=study.train.label_smoothing),
        task=task,
        train_size=len(data.train),
        data_size=data.data_size,
        guided_shapes=own,
        hint_shapes=guides[0].hint_shapes if guides else own,
        others=guides[1:],
        teacher_network=_lender(study, teachers[0]) if guides else None,
    )


def _checked(teacher: TeacherAtHand, study: Study, data: Dataset, seed: int) -> TeacherAtHand:
    """The teacher, without outputs that are not those of what the training will show."""
    if teacher.outputs is None:
        return teacher
    seed = seed if study.cache.seed is None else study.cache.seed
    why = serves(teacher.outputs.description, study, data, seed)
    if why:
        log.warning("the teacher's outputs cannot be used, it is run live: %s", why)
    return teacher.without_outputs() if why else teacher


def _lender(study: Study, teacher: TeacherAtHand) -> nn.Module | None:
    """The teacher's network where it is at hand, or a loss takes over a part of it."""
    deploys = any(term.active and term.loss and term.loss.deploys for term in study.knowledge)
    return teacher.network if deploys else teacher.loaded


def _guide(
    study: Study,
    task: Task,
    prepared: Preparation,
    teacher: TeacherAtHand,
    ours: Anatomy | None,
    device: torch.device,
) -> Guide:
    """A teacher as the scheme meets it, the pairs resolved to its own layers."""
    terms: Sequence[Term] = study.knowledge
    layers: Mapping[str, Shape] = {}
    if ours is not None:
        theirs = _teacher_anatomy(prepared, teacher, task)
        terms = resolve_pairs(study, ours, (theirs,), task.classes).knowledge
        layers = theirs.layers
    named = layer_names(terms, "hint")
    logits = study.scheme.reads_logits(terms)
    return Guide(teacher.source(named, task, device, logits=logits), terms, layers)


def _takes_pairs(study: Study) -> bool:
    terms = study.knowledge if study.scheme.takes_knowledge else ()
    return any(term.active and term.loss and term.loss.takes_pairs for term in terms)


def _teacher_anatomy(prepared: Preparation, teacher: TeacherAtHand, task: Task) -> Anatomy:
    """From the option where there is one; a teacher given as a network is looked at itself."""
    if prepared.model is not None:
        return anatomy(prepared.model, task)
    network = teacher.network
    found = discover(network, task)
    aliases = stage_aliases(found)
    return Anatomy(
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=max((layer.macs for layer in found), default=0),
        layers={layer.name: layer.shape for layer in (*found, *aliases.values())},
        aliases={alias: layer.module for alias, layer in aliases.items()},
        found=found,
    )


def _builder(model: Model, task: Task, device: torch.device) -> Callable[[], nn.Module]:
    return lambda: lay_out(model.build(task), device)
