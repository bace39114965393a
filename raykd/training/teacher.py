"""The teacher of a study: how it is trained, found again, and loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from raykd.architecture import Model, Task
from raykd.architecture.adapters.trained_on import trained_on_beside
from raykd.architecture.class_order import is_generic
from raykd.architecture.model import TrainedOn
from raykd.architecture.normalization import METADATA, NAMED, Normalization, from_metadata
from raykd.architecture.weight_files import weight_parts
from raykd.schemes import Alone, Preparation, Teacher
from raykd.schemes.scheme import learns_alone
from raykd.study.schema import Cache, Student, Study, plain
from raykd.study.teachers import circumstances
from raykd.training.checkpoint import parse_weights, read_metadata
from raykd.training.loading import check_file, load_prepared, rows_of

RECIPE = 2
"""Part of every teacher's key; raised when the same options come to train another teacher."""


def teacher_study(study: Study) -> Study:
    """The study that trains the teacher of `study`: by the same loop, on the same data, alone.

    Raises:
        ValueError: the study has no teacher, or names no model for it.
    """
    return preparing_study(study, own_teacher(study))


def own_teacher(study: Study, seed: int | None = None) -> Preparation:
    """How the study's own teacher is made ready.

    Args:
        study: concrete.
        seed: of its training, where it names none itself; None: the study's.

    Raises:
        ValueError: the study has no teacher.
    """
    return learns_alone(_teacher(study), circumstances(study, seed))


def preparing_study(study: Study, prepared: Preparation) -> Study:
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
    """The content address of the study's own trained teacher; see `preparation_key`.

    Raises:
        ValueError: the study has no teacher.
    """
    return preparation_key(own_teacher(study), study, fingerprint, class_names)


def preparation_key(
    prepared: Preparation, study: Study, fingerprint: str, class_names: Sequence[str] = ()
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
        "teachers": [
            preparation_key(one, study, fingerprint, class_names) for one in prepared.needs
        ],
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


def normalization_of(prepared: Preparation) -> Normalization | None:
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


def _by_library(prepared: Preparation) -> Normalization:
    trained_on = prepared.model.trained_on() if prepared.model is not None else None
    if trained_on is None:
        name = prepared.model.name if prepared.model is not None else prepared.weights
        raise ValueError(
            f"`normalization: model` asks for the configuration of {name}, which has none; write "
            "`normalization: {mean: [...], std: [...]}`"
        )
    return trained_on.normalization


def _told_beside(prepared: Preparation) -> TrainedOn | None:
    """The configuration in the folder that holds the weights."""
    if prepared.weights is None or prepared.is_mlflow:
        return None
    try:
        folder = weight_parts(prepared.weights)[0].absolute().parent
    except ValueError:  # reported where the weights are read
        return None
    return trained_on_beside(folder)


def normalization_notes(
    prepared: Preparation, where: str, task: Task
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
    trained_on = prepared.model.trained_on() if prepared.model is not None else None
    if trained_on is not None:
        note += f"; {trained_on.source}: {trained_on.normalization.text()} (`normalization: model`)"
    return (note,), size


def _is_own(weights: str) -> bool:
    """Whether a file of weights was written by raykd."""
    metadata = _metadata(weights)
    return METADATA in metadata or "id" in metadata


def _size_warning(prepared: Preparation, where: str, task: Task) -> tuple[str, ...]:
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
    return load_network(dataclasses.replace(own_teacher(study), weights=str(path)), task)


def load_network(prepared: Preparation, task: Task) -> nn.Module:
    """A network with the weights of a file, in eval mode, on the CPU.

    Its outputs are in the order of the data's classes, where names tell it.

    Raises:
        ValueError: nothing says its model, or the file does not hold its weights.
    """
    return load_prepared(prepared, task).network


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
