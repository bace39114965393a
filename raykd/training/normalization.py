"""Teachers adapted to the normalization of the data of a study."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from raykd.data import Dataset
from raykd.models import Task
from raykd.models.adapters.pretraining_images import read_pretraining_images
from raykd.models.base import PretrainingImages
from raykd.models.normalization import (
    METADATA,
    NORMALIZATIONS,
    Normalization,
    adapt_normalization,
    expected_normalization,
    from_metadata,
)
from raykd.models.preprocessing import strip_preprocessing
from raykd.models.weights.files import weight_parts
from raykd.schemes import TeacherSpec
from raykd.training.checkpoint import read_metadata


def adapt_teacher(
    network: nn.Module, data: Dataset, stored: Normalization | None = None
) -> nn.Module:
    """Return a teacher that takes the batches of `data`.

    Preprocessing that is part of the network is removed, because batches are already normalized.
    If the network was trained with another mean or standard deviation, an affine map before it
    corrects its inputs.

    Args:
        network: of any origin.
        data: source of the batches.
        stored: normalization of the network's inputs; None: as the network states.

    Raises:
        ValueError: the normalization is for another number of channels.
    """
    inner, stated = strip_preprocessing(network)
    normalization = stored or stated
    if normalization is None or data.vocabulary:
        return inner
    return adapt_normalization(inner, normalization, data.mean, data.std)


def training_normalization(network: nn.Module, data: Dataset) -> Normalization | None:
    """Return the normalization that a network trained on `data` expects; None if there is none."""
    if not data.mean:
        return None
    return expected_normalization(network) or Normalization(mean=data.mean, std=data.std)


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
    if _is_from_raykd(spec.weights):
        return from_metadata(_metadata(spec.weights))
    images = _pretraining_images(spec)
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


def _pretraining_images(spec: TeacherSpec) -> PretrainingImages | None:
    """Read the configuration in the folder of the weights."""
    if spec.weights is None or spec.is_mlflow:
        return None
    try:
        folder = weight_parts(spec.weights)[0].absolute().parent
    except ValueError:  # reported where the weights are read
        return None
    return read_pretraining_images(folder)


def normalization_notes(
    spec: TeacherSpec, place: str, task: Task
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Describe the images that a loaded teacher expects, in sentences.

    Args:
        spec: the teacher.
        place: of the teacher in the study, such as "teacher".
        task: inputs and classes of the data.

    Returns:
        Notes and warnings.
    """
    if spec.weights is None or task.text is not None or len(task.input_shape) != 3:
        return (), ()
    normalization, size = normalization_of(spec), _size_warning(spec, place, task)
    if normalization is not None:
        return (f"{place}: its inputs are normalized with {normalization.text()}",), size
    if spec.normalization == "data" or spec.is_mlflow or _is_from_raykd(spec.weights):
        return (), size
    note = (
        f"{place}: no configuration next to {spec.weights} states the normalization of its "
        f"images; mean and std of the data are used; set {place}.normalization if it was trained "
        "with others"
    )
    images = spec.model.pretraining_images() if spec.model is not None else None
    if images is not None:
        note += f"; {images.source}: {images.normalization.text()} (`normalization: model`)"
    return (note,), size


def _is_from_raykd(weights: str) -> bool:
    """Return whether a file of weights was written by raykd."""
    metadata = _metadata(weights)
    return METADATA in metadata or "id" in metadata


def _size_warning(spec: TeacherSpec, place: str, task: Task) -> tuple[str, ...]:
    images, size = _pretraining_images(spec), task.input_shape[1:]
    if images is None or images.size is None or images.size == size:
        return ()
    theirs, ours = (f"{height}x{width}" for height, width in (images.size, size))
    return (
        f"{place}: {images.source} states images of {theirs}, those of the data are {ours}; set "
        "data.size, or expect a lower accuracy",
    )


def _metadata(weights: str) -> dict[str, str]:
    try:
        return read_metadata(Path(weights).expanduser())
    except ValueError:  # no safetensors file
        return {}
