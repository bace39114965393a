"""Teachers from files of weights, with outputs in the order of the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from raykd.models import Model, Task
from raykd.models.introspection.profile import build_without_init
from raykd.models.preprocessing import Expecting, RawInputModel
from raykd.models.weights.class_order import (
    UnmatchedClasses,
    class_rows,
    find_class_names,
    named_rows,
    reorder_classes,
)
from raykd.models.weights.files import WeightFile, read_weight_file, weight_class_names
from raykd.models.weights.matching import MatchedWeights, fit
from raykd.schemes import TeacherSpec

Rows = tuple[int, ...] | None
"""Number of the output for each class of the data; None: the orders are equal."""

_OTHER_PROBLEMS = ("regression", "multi_label_classification")

_REMEDY = (
    "give them in the order of the network's outputs, by the names of the data: "
    "`teacher: {classes: [...]}`"
)


@dataclass(frozen=True)
class Loaded:
    """A network with the weights of a file.

    Attributes:
        network: in eval mode, on the CPU.
        notes: sentences on what was done to the weights.
        warnings: sentences on what may make results wrong.
        is_as_read: whether the file holds the network's weights, under its names, as safetensors.
        metadata: text values of the file's header.
    """

    network: nn.Module
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_as_read: bool = False
    metadata: tuple[tuple[str, str], ...] = ()


def load_teacher_weights(prepared: TeacherSpec, task: Task) -> Loaded:
    """Load a teacher from its file of weights, with outputs in the order of the data.

    Raises:
        ValueError: the model or the file is missing, the file does not hold the weights of the
            model, or its class names are not those of the data.
    """
    if prepared.model is None or prepared.weights is None or prepared.is_mlflow:
        raise ValueError(
            f"a model and a file of weights are needed, found model {prepared.model} and weights "
            f"{prepared.weights}; load a network from MLflow with `mlflow.pytorch.load_model`"
        )
    file = read_weight_file(prepared.weights)
    network = prepared.model.blueprint(task)
    fitted, rows, note = _checked(file, network, task, prepared.classes)
    network.load_state_dict(fitted.tensors, strict=False)
    if rows is not None:
        reorder_classes(network, rows, task, prepared.weights)
    return Loaded(
        network.eval(),
        (*fitted.notes, *filter(None, [note])),
        fitted.warnings,
        file.is_plain and fitted.is_same and rows is None,
        tuple(file.metadata.items()),
    )


def check_file(
    path: str | Path, model: Model, task: Task, classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check that a file holds the weights of a model, without loading them.

    Args:
        path: of the file.
        model: of the weights.
        task: inputs and classes of the data.
        classes: class names in the order of the outputs, if the study has them.

    Returns:
        Notes on the changes that loading will make, and warnings, in sentences.

    Raises:
        ValueError: as `load_teacher_weights`.
    """
    fitted, _, note = _checked(
        read_weight_file(path), build_without_init(model, task), task, tuple(classes)
    )
    return (*fitted.notes, *filter(None, [note])), fitted.warnings


def rows_of(prepared: TeacherSpec, class_names: Sequence[str]) -> Rows:
    """Return the output for each class of the data, as far as files state the classes.

    Args:
        prepared: the teacher.
        class_names: of the data.
    """
    if not class_names:
        return None
    try:
        if prepared.classes:
            return named_rows(prepared.classes, class_names, "teacher.classes")
        if prepared.weights is not None:
            theirs = () if prepared.is_mlflow else weight_class_names(prepared.weights)
        else:
            theirs = prepared.model.head_classes() if prepared.model is not None else ()
            theirs = theirs if len(theirs) == len(class_names) else ()
        return class_rows(theirs, class_names, "")[0]
    except ValueError:  # reported where the weights are read
        return None


def reorder_network(network: nn.Module, prepared: TeacherSpec, task: Task) -> tuple[str, ...]:
    """Put the outputs of a network, in place, in the order of the data.

    Returns:
        Notes on the changes, in sentences.

    Raises:
        ValueError: its class names are not those of the data.
    """
    source = str(prepared.weights)
    rows, note = _order(prepared.classes, find_class_names(network), task, source)
    if rows is not None:
        wrapped = isinstance(network, RawInputModel | Expecting)
        reorder_classes(network.network if wrapped else network, rows, task, source)
        if isinstance(network, RawInputModel):
            network.class_names = tuple(task.class_names)
    return tuple(filter(None, [note]))


def _checked(
    file: WeightFile, network: nn.Module, task: Task, classes: tuple[str, ...]
) -> tuple[MatchedWeights, Rows, str]:
    problem = file.metadata.get("problem_type", "")
    if problem in _OTHER_PROBLEMS:
        raise ValueError(
            f"{file.source} belongs to a model of problem_type {problem!r} (config.json beside "
            "it); raykd distills classifiers of one class a sample"
        )
    fitted = fit(network, file, task)
    return fitted, *_order(classes, file.class_names, task, file.source)


def _order(
    classes: tuple[str, ...], stored: tuple[str, ...], task: Task, source: str
) -> tuple[Rows, str]:
    if classes:
        rows = None
        if task.class_names:
            rows = named_rows(classes, task.class_names, "teacher.classes")
        return rows, f"classes of {source} ordered by teacher.classes" if rows else ""
    try:
        return class_rows(stored, task.class_names, source)
    except UnmatchedClasses as error:
        raise UnmatchedClasses(f"{error}. If they are the same classes, {_REMEDY}") from None
