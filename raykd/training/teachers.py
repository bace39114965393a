"""Teachers of a study: the study that trains one, and loading or training all of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import MutableMapping, Sequence

import torch
from torch import nn

from raykd.data import Dataset, Placement
from raykd.models import Model, Signature
from raykd.schemes import Alone, TeacherSpec
from raykd.schemes.base import independent_teacher
from raykd.study.config import Cache, Student, Study
from raykd.training.build import signature_of
from raykd.training.checkpoint import parse_weights
from raykd.training.normalization import adapt_teacher
from raykd.training.output_check import check_outputs, probabilities_warning
from raykd.training.stored_outputs import check_samples, dump_outputs, fitted_outputs, load_outputs
from raykd.training.teacher_keys import normalization_of, spec_key
from raykd.training.teacher_weights import load_teacher_weights
from raykd.training.trainer import Training


def teacher_study(study: Study) -> Study:
    """Return the study that trains the teacher of a study, alone and on the same data.

    Raises:
        ValueError: the study has no teacher, or no model for it.
    """
    return teacher_training_study(study, teacher_spec_of(study))


def teacher_spec_of(study: Study, seed: int | None = None) -> TeacherSpec:
    """Return the specification of the `teacher` of a study.

    Args:
        study: concrete.
        seed: of its training if the teacher has none; None: the seed of the study.

    Raises:
        ValueError: the study has no teacher.
    """
    if study.teacher is None:
        raise ValueError("the study has no teacher; set `teacher`")
    return independent_teacher(study.teacher, study.teacher_context(seed))


def teacher_training_study(study: Study, spec: TeacherSpec) -> Study:
    """Return the study that trains a teacher of `study`, on the same data.

    Its student is that network, and its teachers are the ones of `spec`.

    Raises:
        ValueError: the teacher has no model.
    """
    if spec.model is None:
        raise ValueError("the teacher has no model; set `teacher.model` to its network")
    augment = study.data.augment if spec.augment is None else spec.augment
    return dataclasses.replace(
        study,
        seed=spec.seed,
        data=dataclasses.replace(study.data, augment=augment),
        teacher=spec.teachers[0].as_teacher if spec.teachers else None,
        student=Student(model=spec.model, input=spec.input),
        scheme=spec.scheme or Alone(),
        knowledge=spec.knowledge,
        train=spec.train,
        cache=Cache(),  # a teacher must not depend on how its outputs are cached for students
    )


def teacher_key(study: Study, fingerprint: str, class_names: Sequence[str] = ()) -> str:
    """Return the key of the trained `teacher` of a study; see `spec_key`.

    Raises:
        ValueError: the study has no teacher.
    """
    return spec_key(teacher_spec_of(study), study, fingerprint, class_names)


def read_network(model: Model, signature: Signature, content: bytes) -> nn.Module:
    """Load a model from the bytes of a safetensors file, in eval mode, on the CPU.

    Raises:
        ValueError: the bytes do not hold its weights.
    """
    network = model.blueprint(signature)
    parse_weights(network, content, "the teacher's weights")
    return network.eval()


Networks = MutableMapping[str, nn.Module]
"""Trained networks by key."""


def train_teachers(
    study: Study,
    data: Dataset,
    *,
    seed: int | None = None,
    cache: Networks | None = None,
    device: torch.device | str = "cpu",
) -> list[nn.Module]:
    """Load or train the teachers of a concrete study.

    `Training(study, data, seed=..., teacher=train_teachers(study, data))` is a whole distillation
    without a search.

    Args:
        study: concrete.
        data: for the training.
        seed: of teachers that trials share; None: the seed of the study.
        cache: teachers trained before, to which those trained now are added.
        device: of the training.

    Returns:
        The teachers in the order of the scheme, and after them the network that the student
        inherits from, if it does.

    Raises:
        ValueError: weights cannot be read, or are in MLflow only; or the outputs of a teacher are
            NaN or infinite.
        Diverged: the loss of a training became NaN or infinite.

    Warns:
        UserWarning: a teacher gives probabilities instead of logits.
    """
    cache = {} if cache is None else cache
    return [
        _network(spec, study, data, cache, torch.device(device))
        for spec in study.required_networks(seed)
    ]


def _network(
    spec: TeacherSpec, study: Study, data: Dataset, cache: Networks, device: torch.device
) -> nn.Module:
    key = spec_key(spec, study, data.fingerprint, data.class_names)
    if key not in cache:
        network_data = data.as_input(spec.input)
        if spec.outputs is not None:
            table = fitted_outputs(spec, study, signature_of(data))
            check_samples(table, data)
            network = load_outputs(dump_outputs(table), data).to(device)
        elif spec.weights is not None:
            network = load_teacher_weights(spec, signature_of(network_data)).network
            network = adapt_teacher(network, network_data, normalization_of(spec)).to(device)
        else:
            teachers = [_network(need, study, data, cache, device) for need in spec.needs]
            training_study = teacher_training_study(study, spec)
            training = Training(
                training_study,
                data,
                seed=training_study.seed,
                teacher=teachers,
                placement=Placement(device),
            )
            while training.epoch < training.epochs:
                training.run_epoch()
            network = training.student.eval()
        _check_outputs(network, spec, network_data, device)
        cache[key] = network
    return cache[key]


def _check_outputs(
    network: nn.Module, spec: TeacherSpec, data: Dataset, device: torch.device
) -> None:
    model = spec.model
    name = f"teacher {model.name if model is not None else spec.outputs or spec.weights}"
    try:
        signs = check_outputs(network, data, device=device)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    warning = probabilities_warning(name, signs)
    if warning:
        warnings.warn(warning, stacklevel=4)
