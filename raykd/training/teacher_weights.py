"""Teachers from files of weights, with outputs in the order of the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from raykd.models import Model, Signature
from raykd.models.introspection.profile import build_without_init
from raykd.models.preprocessing import NormalizedInputModel, RawInputModel
from raykd.models.weights.class_order import (
    UnmatchedClasses,
    class_rows,
    find_class_names,
    named_rows,
    reorder_classes,
)
from raykd.models.weights.files import WeightFile, read_weight_file
from raykd.models.weights.matching import MatchedWeights, match_weights
from raykd.schemes import TeacherSpec

Rows = tuple[int, ...] | None
"""Number of the output for each class of the data; None: the orders are equal."""

_OTHER_PROBLEMS = ("regression", "multi_label_classification")

_REMEDY = (
    "set them in the order of the outputs of the network, by the names of the data: "
    "`teacher: {classes: [...]}`"
)


@dataclass(frozen=True)
class LoadedTeacher:
    """Network with the weights of a file.

    Attributes:
        network: in eval mode, on the CPU.
        notes: sentences on changes that were made to the weights.
        warnings: sentences on possible reasons for wrong results.
        is_as_read: whether the file is a safetensors file with the unchanged weights under the
            names of the network.
        metadata: text values of the header of the file.
    """

    network: nn.Module
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_as_read: bool = False
    metadata: tuple[tuple[str, str], ...] = ()


def load_teacher_weights(spec: TeacherSpec, signature: Signature) -> LoadedTeacher:
    """Load a teacher from its file of weights, with outputs in the order of the data.

    Raises:
        ValueError: the model or the file is missing, the file does not hold the weights of the
            model, or its class names are not those of the data.
    """
    if spec.model is None or spec.weights is None or spec.is_mlflow:
        raise ValueError(
            f"a model and a file of weights are needed, found model {spec.model} and weights "
            f"{spec.weights}; load a network from MLflow with `mlflow.pytorch.load_model`"
        )
    file = read_weight_file(spec.weights)
    network = spec.model.blueprint(signature)
    fitted, rows, note = _checked(file, network, signature, spec.classes)
    network.load_state_dict(fitted.tensors, strict=False)
    if rows is not None:
        reorder_classes(network, rows, signature, spec.weights)
    return LoadedTeacher(
        network.eval(),
        (*fitted.notes, *filter(None, [note])),
        fitted.warnings,
        file.is_plain and fitted.is_same and rows is None,
        tuple(file.metadata.items()),
    )


def check_weights(
    path: str | Path, model: Model, signature: Signature, classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check that a file holds the weights of a model, without loading them.

    Args:
        path: of the file.
        model: of the weights.
        signature: inputs and classes of the data.
        classes: class names in the order of the outputs, if the study has them.

    Returns:
        Notes on the changes that loading will make, and warnings, in sentences.

    Raises:
        ValueError: as `load_teacher_weights`.
    """
    fitted, _, note = _checked(
        read_weight_file(path), build_without_init(model, signature), signature, tuple(classes)
    )
    return (*fitted.notes, *filter(None, [note])), fitted.warnings


def reorder_network(network: nn.Module, spec: TeacherSpec, signature: Signature) -> tuple[str, ...]:
    """Put the outputs of a network, in place, in the order of the data.

    Returns:
        Notes on the changes, in sentences.

    Raises:
        ValueError: its class names are not those of the data.
    """
    source = str(spec.weights)
    rows, note = _order(spec.classes, find_class_names(network), signature, source)
    if rows is not None:
        wrapped = isinstance(network, RawInputModel | NormalizedInputModel)
        reorder_classes(network.network if wrapped else network, rows, signature, source)
        if isinstance(network, RawInputModel):
            network.class_names = tuple(signature.class_names)
    return tuple(filter(None, [note]))


def _checked(
    file: WeightFile, network: nn.Module, signature: Signature, classes: tuple[str, ...]
) -> tuple[MatchedWeights, Rows, str]:
    problem = file.metadata.get("problem_type", "")
    if problem in _OTHER_PROBLEMS:
        raise ValueError(
            f"{file.source} belongs to a model of problem_type {problem!r} (config.json next to "
            "it); raykd distills classifiers with one class per sample"
        )
    fitted = match_weights(network, file, signature)
    return fitted, *_order(classes, file.class_names, signature, file.source)


def _order(
    classes: tuple[str, ...], stored: tuple[str, ...], signature: Signature, source: str
) -> tuple[Rows, str]:
    if classes:
        rows = None
        if signature.class_names:
            rows = named_rows(classes, signature.class_names, "teacher.classes")
        return rows, f"classes of {source} ordered by teacher.classes" if rows else ""
    try:
        return class_rows(stored, signature.class_names, source)
    except UnmatchedClasses as error:
        raise UnmatchedClasses(f"{error}. If they are the same classes, {_REMEDY}") from None
