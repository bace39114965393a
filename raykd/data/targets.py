"""Targets of tables: numbers, labels and vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raykd.data.labels import read_labels
from raykd.data.table import Table, short_repr
from raykd.tasks import Classification, Embedding, MultiLabel, Regression, Task

TargetKind = Literal["number", "class", "labels", "vector"]

TASK_OF: Mapping[TargetKind, type[Task]] = {
    "number": Regression,
    "class": Classification,
    "labels": MultiLabel,
    "vector": Embedding,
}

MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""Texts of missing values, in lower case."""

Tables = Mapping[str, Sequence[Table]]
"""Tables by split."""


@dataclass(frozen=True)
class Targets:
    """Targets of all rows.

    Attributes:
        values: (N,) int64 class indices, or (N, D) float64.
        names: of the classes, labels or values.
        notes, warnings: sentences on the labels of classes.
    """

    values: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_targets(tables: Tables, kind: TargetKind, columns: Sequence[str]) -> Targets:
    """Read the targets of tables.

    Args:
        tables: by split.
        kind: of the targets.
        columns: names of their columns; one for classes and vectors.

    Raises:
        ValueError: a value is missing or of another kind; names file and line.
    """
    if kind == "class":
        labels = read_labels(tables, columns[0])
        return Targets(labels.targets, labels.class_names, labels.notes, labels.warnings)
    read = [table for parts in tables.values() for table in parts]
    if kind == "vector":
        vectors = [row for table in read for row in _vectors(table, columns[0])]
        _check_lengths(read, vectors, columns[0])
        values = np.array(vectors, dtype=np.float64)
        return Targets(values, tuple(f"v{place}" for place in range(values.shape[1])))
    as_value = _label if kind == "labels" else _number
    rows = [
        [as_value(table, name, row) for table in read for row in range(len(table))]
        for name in columns
    ]
    return Targets(np.array(rows, dtype=np.float64).T, tuple(columns))


def standardization(
    targets: Targets, kind: TargetKind, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of numbers on the training split; else 0 and 1.

    Raises:
        ValueError: all training rows have the same value.
    """
    if kind != "number":
        return np.zeros(1), np.ones(1)
    values = targets.values[train]
    mean, scale = values.mean(0), values.std(0)
    constant = [name for name, size in zip(targets.names, scale, strict=True) if size == 0]
    if constant:
        raise ValueError(
            f"table: column '{constant[0]}' of the target has the value {values[0].max():g} in all "
            "training rows; name another target"
        )
    return mean, scale


def refusal(table: Table, name: str, row: int, needed: str) -> ValueError:
    """Return the error of a value that cannot be used."""
    value = short_repr(table.columns[name][row])
    return ValueError(
        f"table: {table.file}: {table.place(row)} holds {value} in column '{name}'; {needed}"
    )


def _number(table: Table, name: str, row: int) -> float:
    number = parsed(table.columns[name][row])
    if number is None or not math.isfinite(number):
        fix = "the target must be a finite number: correct or remove the row"
        kinds = "; for classes write `kind: class`"
        raise refusal(table, name, row, fix + (kinds if number is None else ""))
    return number


def _label(table: Table, name: str, row: int) -> float:
    value = table.columns[name][row]
    text = str(value).strip().casefold()
    number = {"true": 1.0, "false": 0.0}.get(text, parsed(value))
    if number not in (0.0, 1.0):
        raise refusal(table, name, row, "a label must be 0 or 1, or true or false")
    return number


def _vectors(table: Table, name: str) -> Iterator[list[float]]:
    for row, value in enumerate(table.columns[name]):
        numbers = [*map(parsed, value)] if isinstance(value, list | tuple | np.ndarray) else []
        vector = [number for number in numbers if number is not None and math.isfinite(number)]
        if not vector or len(vector) < len(numbers):
            needed = "a vector must be a list of finite numbers (in a Parquet or JSON file)"
            raise refusal(table, name, row, needed)
        yield vector


def _check_lengths(read: Sequence[Table], vectors: Sequence[Sequence[float]], name: str) -> None:
    places = ((table, row) for table in read for row in range(len(table)))
    for (table, row), vector in zip(places, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            needed = f"it has {len(vector)} numbers and the first vector {len(vectors[0])}"
            raise refusal(table, name, row, needed)


def parsed(value: object) -> float | None:
    """Return a value as a number; None if it is no number or missing."""
    if value is None or isinstance(value, list | dict):
        return None
    if isinstance(value, str) and value.strip().casefold() in MISSING:
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # other types raise
    except (TypeError, ValueError):
        return None


def is_missing(value: object) -> bool:
    """Return whether a value stands for a missing one."""
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (isinstance(value, str) and value.strip().casefold() in MISSING)
