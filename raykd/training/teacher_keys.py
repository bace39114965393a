"""Key of a trained or loaded teacher: the settings and files that determine its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from raykd.models.adapters.pretraining_images import read_pretraining_images
from raykd.models.base import PretrainingImages
from raykd.models.normalization import METADATA, NORMALIZATIONS, Normalization, from_metadata
from raykd.models.weights.class_order import class_rows, is_generic, named_rows
from raykd.models.weights.files import weight_class_names, weight_parts
from raykd.schemes import TeacherSpec
from raykd.study.config import Study, plain
from raykd.training.checkpoint import read_metadata
from raykd.training.teacher_weights import Rows
from raykd.user_code import code_digests

RECIPE = 2
"""Part of every key; raised when the same options come to train another teacher."""


def spec_key(
    spec: TeacherSpec, study: Study, fingerprint: str, class_names: Sequence[str] = ()
) -> str:
    """Return the key of a trained teacher: 32 hex digits.

    It changes with the model, the training settings, the seed, the augmentation, the data set,
    the input of its samples, the contents of weights files and of files that the model is built
    from, an order of classes other than that of the data, and with anything of the teachers that
    it was trained by.

    Args:
        spec: the teacher.
        study: concrete; determines the augmentation if the teacher does not.
        fingerprint: `Dataset.fingerprint`.
        class_names: `Dataset.class_names`.
    """
    weights = spec.weights
    augment = study.data.augment if spec.augment is None else spec.augment
    content = {
        "recipe": RECIPE,
        "model": plain(spec.model),
        "weights": weights,
        "bytes": _digest_of_weights(weights) if weights and not spec.is_mlflow else None,
        "train": plain(spec.train),
        "scheme": plain(spec.scheme),
        "knowledge": plain(spec.knowledge),
        "teachers": [spec_key(teacher, study, fingerprint, class_names) for teacher in spec.needs],
        "augment": plain(augment),
        "data": fingerprint,
        "seed": spec.seed,
    }
    if spec.input is not None:
        content["input"] = spec.input
    if spec.outputs is not None:
        content["outputs"] = _digest(str(Path(spec.outputs).expanduser()))
    task = study.learning_task
    settings = task.training_settings()
    if settings or task.name != study.data.default_task().name:
        content["task"] = {"name": task.name, **settings}
    normalization = normalization_of(spec)
    if normalization is not None:
        content["normalization"] = plain(normalization)
    if spec.model is not None and spec.model.files():
        content["files"] = [_digest(str(file)) for file in spec.model.files()]
    if code := code_digests(content):
        content["code"] = code
    rows = output_order(spec, class_names)
    if rows is not None:
        content["classes"] = rows
    elif spec.is_mlflow and class_names and not is_generic(class_names):
        content["classes"] = list(class_names)  # its classes are known only after the download
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _digest_of_weights(path: str) -> str | None:
    """Return a digest of all files of some weights; None if one does not exist."""
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


def output_order(spec: TeacherSpec, class_names: Sequence[str]) -> Rows:
    """Return the output for each class of the data, as far as files state the classes.

    Args:
        spec: the teacher.
        class_names: of the data.
    """
    if not class_names:
        return None
    try:
        if spec.classes:
            return named_rows(spec.classes, class_names, "teacher.classes")
        if spec.weights is not None:
            theirs = () if spec.is_mlflow else weight_class_names(spec.weights)
        else:
            theirs = spec.model.head_classes() if spec.model is not None else ()
            theirs = theirs if len(theirs) == len(class_names) else ()
        return class_rows(theirs, class_names, "")[0]
    except ValueError:  # reported where the weights are read
        return None


def normalization_of(spec: TeacherSpec) -> Normalization | None:
    """Return the normalization that the weights of a teacher were trained with, if known.

    Returns:
        None: that of the data; for a network in MLflow without a setting in the study, its own.

    Raises:
        ValueError: the configuration next to the weights cannot be read.
    """
    setting = spec.normalization
    if isinstance(setting, Normalization):
        return setting
    if setting in NORMALIZATIONS:
        return NORMALIZATIONS[setting]
    if setting == "model":
        return _library_normalization(spec)
    if setting == "data" or spec.weights is None or spec.is_mlflow:
        return None
    if is_from_raykd(spec.weights):
        return from_metadata(_metadata(spec.weights))
    images = pretraining_images_of(spec)
    return images.normalization if images is not None else None


def _library_normalization(spec: TeacherSpec) -> Normalization:
    pretraining_images = spec.model.pretraining_images() if spec.model is not None else None
    if pretraining_images is None:
        name = spec.model.name if spec.model is not None else spec.weights
        raise ValueError(
            f"`normalization: model` needs a library configuration, which {name} does not have; "
            "write `normalization: {mean: [...], std: [...]}`"
        )
    return pretraining_images.normalization


def pretraining_images_of(spec: TeacherSpec) -> PretrainingImages | None:
    """Read the configuration in the folder of a teacher's weights; None if there is none."""
    if spec.weights is None or spec.is_mlflow:
        return None
    try:
        folder = weight_parts(spec.weights)[0].absolute().parent
    except ValueError:  # reported where the weights are read
        return None
    return read_pretraining_images(folder)


def is_from_raykd(weights: str) -> bool:
    """Return whether a file of weights was written by raykd."""
    metadata = _metadata(weights)
    return METADATA in metadata or "id" in metadata


def _metadata(weights: str) -> dict[str, str]:
    try:
        return read_metadata(Path(weights).expanduser())
    except ValueError:  # no safetensors file
        return {}
