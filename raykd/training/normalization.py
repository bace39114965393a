"""Teachers adapted to the normalization of the data of a study."""

from __future__ import annotations

from torch import nn

from raykd.data import Dataset
from raykd.models import Signature
from raykd.models.normalization import (
    Normalization,
    adapt_normalization,
    expected_normalization,
)
from raykd.models.preprocessing import strip_preprocessing
from raykd.schemes import TeacherSpec
from raykd.training.teacher_keys import (
    is_from_raykd,
    normalization_of,
    pretraining_images_of,
)


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


def normalization_notes(
    spec: TeacherSpec, place: str, signature: Signature
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Describe the images that a loaded teacher expects, in sentences.

    Args:
        spec: the teacher.
        place: of the teacher in the study, such as "teacher".
        signature: inputs and classes of the data.

    Returns:
        Notes and warnings.
    """
    if spec.weights is None or signature.text is not None or len(signature.input_shape) != 3:
        return (), ()
    normalization, size = normalization_of(spec), _size_warning(spec, place, signature)
    if normalization is not None:
        return (f"{place}: its inputs are normalized with {normalization.text()}",), size
    if spec.normalization == "data" or spec.is_mlflow or is_from_raykd(spec.weights):
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


def _size_warning(spec: TeacherSpec, place: str, signature: Signature) -> tuple[str, ...]:
    images, size = pretraining_images_of(spec), signature.input_shape[1:]
    if images is None or images.size is None or images.size == size:
        return ()
    theirs, ours = (f"{height}x{width}" for height, width in (images.size, size))
    return (
        f"{place}: {images.source} states images of {theirs}, those of the data are {ours}; set "
        "data.size, or expect a lower accuracy",
    )
