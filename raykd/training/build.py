"""Build the distiller that the loop trains from a concrete study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from raykd.data import Dataset
from raykd.data.unlabeled import epoch_targets, ratio_of
from raykd.input_forms import WHOLE
from raykd.losses import Shape, Term
from raykd.losses.terms import layer_names
from raykd.models import (
    ModelProfile,
    Signature,
    Text,
    profile_model,
    profile_network,
)
from raykd.models.normalization import copy_normalization
from raykd.schemes import Distiller, SchemeInputs, TeacherInputs, TeacherSpec
from raykd.schemes.base import origin_of
from raykd.study.checks.layer_pairs import resolve_pairs
from raykd.study.config import Study
from raykd.training.memory_format import to_device
from raykd.training.normalization import adapt_teacher
from raykd.training.seeding import derive_seed, seeded
from raykd.training.teacher_cache import TeacherHandle, find_mismatch

log = logging.getLogger("raykd")


def signature_of(data: Dataset) -> Signature:
    """Return the inputs and classes of a model for these data."""
    text = None if data.form is None else data.form.text
    if data.form is None and data.vocabulary:
        inputs = data.train.take(data.train.index.new_zeros(1))
        assert not isinstance(inputs, Tensor), "texts are mappings of tensors"
        text = Text.of(data.vocabulary, data.padding, inputs)
    return Signature(
        data.input_shape,
        data.classes,
        text,
        data.class_names,
        data.categories,
        dense=data.is_dense,
        boxes=data.has_boxes,
        forms=data.forms,
        whole=None if data.form is None else signature_of(data.as_input(None)),
    )


def build_distiller(
    study: Study,
    data: Dataset,
    *,
    seed: int,
    teachers: Sequence[nn.Module | TeacherHandle],
    device: torch.device,
) -> Distiller:
    """Build the distiller of a concrete study on a device.

    The initial weights of the student depend on `seed` and its architecture alone: they are the
    same under every scheme, and drawn on the CPU, the same for any device.

    Args:
        study: concrete.
        data: for the training.
        seed: of the training.
        teachers: trained, in the order of `study.teacher_specs()`; after them the network that the
            student inherits from, if it does (`required_networks`).  Further ones are not used.
        device: of the training.

    Raises:
        ValueError: a model does not fit the data, a layer does not exist or cannot be connected,
            the scheme needs a teacher and there is none, or a network to inherit from is missing.
    """
    signature, model = signature_of(data), study.student.model
    specs = study.required_networks()
    handles = [
        _handle(teacher, study, data.as_input(_input_of(specs, number, study)), seed)
        for number, teacher in enumerate(teachers)
    ]
    cpu = torch.device("cpu")
    with seeded(derive_seed(seed, "student"), cpu):
        student = to_device(_student(study, signature, handles), device)
    with seeded(derive_seed(seed, "scheme"), cpu):
        # Pairs are resolved to layers only if a loss compares layers
        terms: Sequence[Term] = study.knowledge
        uses_pairs = study.scheme.takes_knowledge and any(
            term.active and term.loss and term.loss.takes_pairs for term in terms
        )
        profile = profile_model(model, signature) if uses_pairs else None
        guides = _guides(study, data, handles, profile, device)
        if profile is not None and not guides:
            terms = resolve_pairs(study, profile, (), signature.classes).knowledge
        shapes = profile.layers if profile is not None else {}
        parts = SchemeInputs(
            student=student,
            build_student=lambda: to_device(model.build(signature), device),
            teacher=guides[0].teacher if guides else None,
            terms=guides[0].terms if guides else terms,
            task_loss=study.learning_task.for_network(student).label_loss(
                epoch_targets(data, ratio_of(study.data)).to(device),
                data.classes,
                smoothing=study.train.label_smoothing,
            ),
            signature=signature,
            train_size=len(data.train),
            data_size=data.data_size,
            guided_shapes=shapes,
            hint_shapes=guides[0].hint_shapes if guides else shapes,
            more_teachers=guides[1:],
            teacher_network=_classifier_source(study, handles[0]) if guides else None,
        )
        distiller = study.scheme.build(parts)
    read = {guide.teacher.other_input for guide in guides}
    distiller.other_inputs = tuple(sorted(name for name in read if name is not None))
    to_device(distiller, device)
    return distiller


def _input_of(specs: Sequence[TeacherSpec], number: int, study: Study) -> str | None:
    """Return the input of a teacher; a network passed from Python takes that of the student."""
    return specs[number].input if number < len(specs) else study.student.input


def _student(study: Study, signature: Signature, teachers: Sequence[TeacherHandle]) -> nn.Module:
    """Return the student with its initial weights."""
    model, teaching = study.student.model, study.teacher_specs()
    spec = origin_of(model, study.teacher_context())
    further = study.required_networks()[len(teaching) :]  # the origin, or a teacher to compare with
    if model.origin is not None and len(teachers) > len(teaching) and further in ((), (spec,)):
        origin = teachers[len(teaching)]
    elif spec is None:
        return model.build(signature)
    elif spec in teaching[: len(teachers)]:
        origin = teachers[teaching.index(spec)]
    else:
        raise ValueError(
            f"student '{model.name}' inherits from the trained teacher of the study, which is "
            "missing; pass it after the teachers of the scheme (`train_teachers` does), or set "
            "`inherit_weights: false`"
        )
    return copy_normalization(model.build_from(origin.network, signature), origin.network)


def _guides(
    study: Study,
    data: Dataset,
    teachers: Sequence[TeacherHandle],
    profile: ModelProfile | None,
    device: torch.device,
) -> list[TeacherInputs]:
    """Return the teachers as the scheme uses them.

    Args:
        study: concrete.
        data: as the student takes it.
        teachers: trained; those after the ones of the scheme are not used.
        profile: of the student; None if no loss compares layers.
        device: of the training.
    """
    prepared = study.teacher_specs()
    if teachers and not prepared and study.scheme.needs_teacher:
        # A network passed from Python for a study without a `teacher` key
        alone = TeacherSpec(model=None, weights=None, train=study.train, seed=study.seed)
        prepared = (replace(alone, input=study.student.input),)
    if teachers and len(teachers) < len(prepared):
        raise ValueError(
            f"scheme '{study.scheme.name}' needs {len(prepared)} teachers, got {len(teachers)}; "
            "pass one for each"
        )
    guides = []
    for option, teacher in zip(prepared, teachers, strict=False):
        terms: Sequence[Term] = study.knowledge
        layers: Mapping[str, Shape] = {}
        signature = signature_of(data.as_input(option.input))
        if profile is not None:
            if option.outputs is not None:
                raise ValueError("the teacher is a file of outputs, and a loss compares layers")
            # A network passed from Python has no model option
            theirs = (
                profile_network(teacher.network, signature)
                if option.model is None
                else profile_model(option.model, signature)
            )
            terms = resolve_pairs(study, profile, (theirs,), signature.classes).knowledge
            layers = theirs.layers
        logits = study.scheme.reads_logits(terms)
        source = teacher.source(
            layer_names(terms, "hint"),
            signature,
            device,
            logits=logits,
            other_input=None if option.input == data.input else option.input or WHOLE,
        )
        guides.append(TeacherInputs(source, terms, layers))
    return guides


def _handle(
    teacher: nn.Module | TeacherHandle, study: Study, data: Dataset, seed: int
) -> TeacherHandle:
    """Return the handle of a teacher, without cached outputs that do not match the training."""
    if isinstance(teacher, nn.Module):
        return TeacherHandle(adapt_teacher(teacher, data))
    if teacher.outputs is None:
        return teacher
    seed = seed if study.cache.seed is None else study.cache.seed
    mismatch = find_mismatch(teacher.outputs.spec, study, data, seed)
    if mismatch:
        log.warning("cached teacher outputs are not used, it is run live: %s", mismatch)
        return teacher.without_outputs()
    return teacher


def _classifier_source(study: Study, teacher: TeacherHandle) -> nn.Module | None:
    """Return the network of a teacher if it is loaded, or a loss needs its classifier."""
    deploys = any(term.active and term.loss and term.loss.deploys for term in study.knowledge)
    return teacher.network if deploys else teacher.loaded
