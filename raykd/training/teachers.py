"""The teacher of a study: how it is trained, found again, and loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import torch
from torch import nn

from raykd.data import Dataset, Placement
from raykd.models import Model, Task
from raykd.models.adapters.pretraining_images import read_pretraining_images
from raykd.models.base import PretrainingImages
from raykd.models.normalization import METADATA, NAMED, Normalization, from_metadata
from raykd.models.weights.class_order import is_generic
from raykd.models.weights.files import weight_parts
from raykd.schemes import Alone, Teacher, TeacherSpec
from raykd.schemes.base import independent_teacher
from raykd.study.config import Cache, Student, Study, plain
from raykd.study.teachers import required_networks, teacher_context
from raykd.training.build import task_of
from raykd.training.checkpoint import parse_weights, read_metadata
from raykd.training.normalization import adapted
from raykd.training.output_check import output_signs, outputs_warning
from raykd.training.teacher_weights import check_file, load_teacher_weights, rows_of
from raykd.training.trainer import Training

RECIPE = 2
"""Part of every teacher's key; raised when the same options come to train another teacher."""


def teacher_study(study: Study) -> Study:
    """The study that trains the teacher of `study`: by the same loop, on the same data, alone.

    Raises:
        ValueError: the study has no teacher, or names no model for it.
    """
    return teacher_training_study(study, teacher_spec_of(study))


def teacher_spec_of(study: Study, seed: int | None = None) -> TeacherSpec:
    """How the study's own teacher is made ready.

    Args:
        study: concrete.
        seed: of its training, where it names none itself; None: the study's.

    Raises:
        ValueError: the study has no teacher.
    """
    return independent_teacher(_teacher(study), teacher_context(study, seed))


def teacher_training_study(study: Study, prepared: TeacherSpec) -> Study:
    """The study that trains `prepared` for `study`: by the same loop, on the same data.

    Its student is the network that is prepared; its teachers are those that teach it.

    Raises:
        ValueError: nothing says its model.
    """
    if prepared.model is None:
        raise ValueError("the teacher has no model; set `teacher.model` to its network")
    augment = study.data.augment if prepared.augment is None else prepared.augment
    return dataclasses.replace(
        study,
        seed=prepared.seed,
        data=dataclasses.replace(study.data, augment=augment),
        teacher=prepared.teachers[0].as_teacher if prepared.teachers else None,
        student=Student(model=prepared.model),
        scheme=prepared.scheme or Alone(),
        knowledge=prepared.knowledge,
        train=prepared.train,
        cache=Cache(),  # what a network learns must not hang on how its pupils are served
    )


def teacher_key(study: Study, fingerprint: str, class_names: Sequence[str] = ()) -> str:
    """The content address of the study's own trained teacher; see `spec_key`.

    Raises:
        ValueError: the study has no teacher.
    """
    return spec_key(teacher_spec_of(study), study, fingerprint, class_names)


def spec_key(
    prepared: TeacherSpec, study: Study, fingerprint: str, class_names: Sequence[str] = ()
) -> str:
    """The content address of a network that teaches: 32 hex digits.

    Another model, training option, seed, augmentation, data set, or anything else in those that
    taught it gives another key; so does other content of a weights file, or of a file that the
    model is built of, and another order of classes than the data's.

    Args:
        prepared: the network.
        study: concrete; gives the augmentation where the preparation does not.
        fingerprint: `Dataset.fingerprint`.
        class_names: `Dataset.class_names`.
    """
    weights = prepared.weights
    augment = study.data.augment if prepared.augment is None else prepared.augment
    content = {
        "recipe": RECIPE,
        "model": plain(prepared.model),
        "weights": weights,
        "bytes": _digest_of_weights(weights) if weights and not prepared.is_mlflow else None,
        "train": plain(prepared.train),
        "scheme": plain(prepared.scheme),
        "knowledge": plain(prepared.knowledge),
        "teachers": [spec_key(one, study, fingerprint, class_names) for one in prepared.needs],
        "augment": plain(augment),
        "data": fingerprint,
        "seed": prepared.seed,
    }
    normalization = normalization_of(prepared)
    if normalization is not None:
        content["normalization"] = plain(normalization)
    if prepared.model is not None and prepared.model.files():
        content["files"] = [_digest(str(file)) for file in prepared.model.files()]
    rows = rows_of(prepared, class_names)
    if rows is not None:
        content["classes"] = rows
    elif prepared.is_mlflow and class_names and not is_generic(class_names):
        content["classes"] = list(class_names)  # it is known only once it is fetched
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def normalization_of(prepared: TeacherSpec) -> Normalization | None:
    """The normalization that the weights of a file were trained with, where it is known.

    Returns:
        None: the data's own; of a network in MLflow, where the study says nothing: its own.

    Raises:
        ValueError: the configuration beside the weights cannot be read.
    """
    asked = prepared.normalization
    if isinstance(asked, Normalization):
        return asked
    if asked in NAMED:
        return NAMED[asked]
    if asked == "model":
        return _by_library(prepared)
    if asked == "data" or prepared.weights is None or prepared.is_mlflow:
        return None
    if _is_own(prepared.weights):
        return from_metadata(_metadata(prepared.weights))
    beside = _told_beside(prepared)
    return beside.normalization if beside is not None else None


def _by_library(prepared: TeacherSpec) -> Normalization:
    pretraining_images = prepared.model.pretraining_images() if prepared.model is not None else None
    if pretraining_images is None:
        name = prepared.model.name if prepared.model is not None else prepared.weights
        raise ValueError(
            f"`normalization: model` asks for the configuration of {name}, which has none; write "
            "`normalization: {mean: [...], std: [...]}`"
        )
    return pretraining_images.normalization


def _told_beside(prepared: TeacherSpec) -> PretrainingImages | None:
    """The configuration in the folder that holds the weights."""
    if prepared.weights is None or prepared.is_mlflow:
        return None
    try:
        folder = weight_parts(prepared.weights)[0].absolute().parent
    except ValueError:  # reported where the weights are read
        return None
    return read_pretraining_images(folder)


def normalization_notes(
    prepared: TeacherSpec, where: str, task: Task
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences on the pictures that a loaded teacher expects.

    Args:
        prepared: what teaches.
        where: its place in the study, such as "teacher".
        task: of the data.

    Returns:
        Notes and warnings.
    """
    if prepared.weights is None or task.text is not None or len(task.input_shape) != 3:
        return (), ()
    known, size = normalization_of(prepared), _size_warning(prepared, where, task)
    if known is not None:
        return (f"{where}: its inputs are normalized with {known.text()}",), size
    if prepared.normalization == "data" or prepared.is_mlflow or _is_own(prepared.weights):
        return (), size
    note = (
        f"{where}: nothing beside {prepared.weights} says how its pictures were normalized; the "
        f"data's own mean and std are used; set {where}.normalization if it was trained with others"
    )
    images = prepared.model.pretraining_images() if prepared.model is not None else None
    if images is not None:
        note += f"; {images.source}: {images.normalization.text()} (`normalization: model`)"
    return (note,), size


def _is_own(weights: str) -> bool:
    """Whether a file of weights was written by raykd."""
    metadata = _metadata(weights)
    return METADATA in metadata or "id" in metadata


def _size_warning(prepared: TeacherSpec, where: str, task: Task) -> tuple[str, ...]:
    beside = _told_beside(prepared)
    if beside is None or beside.size is None or beside.size == task.input_shape[1:]:
        return ()
    theirs, ours = (f"{height}x{width}" for height, width in (beside.size, task.input_shape[1:]))
    return (
        f"{where}: {beside.source} says pictures of {theirs}, the data's are {ours}; set "
        "data.size, or expect a lower accuracy",
    )


def _metadata(weights: str) -> dict[str, str]:
    try:
        return read_metadata(Path(weights).expanduser())
    except ValueError:  # no safetensors file
        return {}


def load_teacher(study: Study, task: Task, path: str | Path) -> nn.Module:
    """The study's teacher with the weights of a safetensors file, in eval mode, on the CPU.

    Raises:
        ValueError: the study names no teacher's model, or the file does not hold its weights.
    """
    return load_network(dataclasses.replace(teacher_spec_of(study), weights=str(path)), task)


def load_network(prepared: TeacherSpec, task: Task) -> nn.Module:
    """A network with the weights of a file, in eval mode, on the CPU.

    Its outputs are in the order of the data's classes, where names tell it.

    Raises:
        ValueError: nothing says its model, or the file does not hold its weights.
    """
    return load_teacher_weights(prepared, task).network


def read_network(model: Model, task: Task, content: bytes) -> nn.Module:
    """The model with the weights of a safetensors file's bytes, in eval mode, on the CPU.

    Raises:
        ValueError: they are not its weights.
    """
    network = model.blueprint(task)
    parse_weights(network, content, "the teacher's weights")
    return network.eval()


def check_weights(path: str | Path, model: Model, task: Task) -> None:
    """See that the file holds this model's weights; the network is not filled.

    Raises:
        ValueError: it does not (no such file, no weights, missing, unexpected or mis-shaped
            tensors, values that are not finite), or the model cannot be built for the task.
    """
    check_file(path, model, task)


def _teacher(study: Study) -> Teacher:
    if study.teacher is None:
        raise ValueError("the study has no teacher; name one under `teacher`")
    return study.teacher


def _digest_of_weights(path: str) -> str | None:
    """Of the content of all files that a path stands for; None where one is not there."""
    try:
        digests = [_digest(str(part)) for part in weight_parts(path)]
    except ValueError:
        return None
    return digests[0] if len(digests) == 1 else " ".join(filter(None, digests))


def _digest(path: str) -> str | None:
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Networks = MutableMapping[str, nn.Module]
"""Trained networks by their content address."""


def train_teachers(
    study: Study,
    data: Dataset,
    *,
    seed: int | None = None,
    known: Networks | None = None,
    device: torch.device | str = "cpu",
) -> list[nn.Module]:
    """The networks that teach under a concrete study's scheme, in the scheme's order, and after
    them the one that its student inherits from, where it does.

    `Training(study, data, seed=..., teacher=train_teachers(study, data))` is a whole distillation
    without a search.

    Args:
        study: concrete.
        data: what they are trained on.
        seed: of those that many trials share; None: the study's.
        known: trained before; what is trained now joins them.
        device: where to train.

    Raises:
        ValueError: named weights cannot be read, or only MLflow has them; or a teacher's outputs
            are NaN or infinite.
        Diverged: a training did not converge.

    Warns:
        UserWarning: a teacher gives probabilities instead of logits.
    """
    known = {} if known is None else known
    return [
        _network(prepared, study, data, known, torch.device(device))
        for prepared in required_networks(study, seed)
    ]


def _network(
    prepared: TeacherSpec, study: Study, data: Dataset, known: Networks, device: torch.device
) -> nn.Module:
    key = spec_key(prepared, study, data.fingerprint, data.class_names)
    if key not in known:
        if prepared.weights is not None:
            network = load_network(prepared, task_of(data))
            network = adapted(network, data, normalization_of(prepared)).to(device)
        else:
            teachers = [_network(one, study, data, known, device) for one in prepared.needs]
            own = teacher_training_study(study, prepared)
            training = Training(
                own, data, seed=own.seed, teacher=teachers, placement=Placement(device)
            )
            while training.epoch < training.epochs:
                training.run_epoch()
            network = training.student.eval()
        _check_outputs(network, prepared, data, device)
        known[key] = network
    return known[key]


def _check_outputs(
    network: nn.Module, prepared: TeacherSpec, data: Dataset, device: torch.device
) -> None:
    model = prepared.model
    name = f"teacher {model.name if model is not None else prepared.weights}"
    try:
        signs = output_signs(network, data, device=device)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    warning = outputs_warning(name, signs)
    if warning:
        warnings.warn(warning, stacklevel=4)
