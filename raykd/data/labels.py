"""Class labels of a table: names, order, indices, and checks.

Rules:

- White space around a label is removed; case matters.
- CSV labels that are all whole numbers (1, 1.0), or all true or false, are read as such; labels of
  other formats have their type in the file.
- Classes are sorted by number or, if labels are text, by text.
- A missing label is an error; text that looks like a missing label is a warning.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np

from raykd.data.table import Table, counted, short_repr
from raykd.data.text_encoding import HALF_CHARACTER, has_half_characters

Kind = Literal["integer", "padded integer", "boolean", "text"]

MISSING = frozenset(
    [
        "n/a",
        "na",
        "#n/a",
        "#na",
        "n.a.",
        "<na>",
        "nan",
        "-nan",
        "null",
        "none",
        "nil",
        "?",
        "inf",
        "-inf",
        "+inf",
        "infinity",
        "-infinity",
        "-",
        "--",
        "#ref!",
        "#value!",
        "#name?",
        "#div/0!",
        "#num!",
        "#null!",
    ]
)
"""Texts that often represent a missing value, in lower case."""

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_LISTED = 5


@dataclass(frozen=True)
class Labels:
    """Labels of several tables.

    Attributes:
        class_names: names in the training table, in the order of the class indices.
        targets: (N,) int64 class indices of all tables, concatenated.
        notes, warnings: sentences on how labels were read.
    """

    class_names: tuple[str, ...]
    targets: np.ndarray
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_labels(tables: Mapping[str, Sequence[Table]], column: str) -> Labels:
    """Read the labels of tables by split; those of "train" define the classes.

    Raises:
        ValueError: missing labels, numbers that are not whole, lists, fewer than two classes, or a
            label that the training table lacks; names the line.
    """
    notes: list[str] = []
    for table in _all(tables):
        _check(table, column)
        notes += _stripped(table, column)
    train = [value for table in tables["train"] for value in _values(table, column)]
    kind = _kind(train, typed=all(table.typed for table in tables["train"]))
    _check_numbers(tables["train"], column, kind)
    names = _class_names(train, kind)
    if len(names) < 2:
        raise ValueError(
            f"text: column '{column}' of {tables['train'][0].file} has only the label "
            f"{listed(map(quoted, names))}; a classifier needs two classes"
        )
    indices = {name: index for index, name in enumerate(names)}
    counts: Counter[str] = Counter()
    targets: list[int] = []
    for split, parts in tables.items():
        labels = [_name(value, kind) for table in parts for value in _values(table, column)]
        _check_known(split, parts, labels, indices)
        counts.update(labels)
        targets += [indices[label] for label in labels]
    written = next((value for value in train if not _INTEGER.fullmatch(str(value))), None)
    if written is not None and kind == "integer":
        notes.append(f"column '{column}' holds numbers such as {written}, read as whole numbers")
    warnings = [
        *_mixed(train, kind, column),
        *_unlike(tables["train"], column),
        *_suspicious(counts, kind),
    ]
    return Labels(names, np.array(targets, dtype=np.int64), tuple(notes), tuple(warnings))


def quoted(label: str) -> str:
    """Return a label for messages: in quotes, shortened."""
    return repr(label if len(label) <= 60 else f"{label[:59]}…")


def listed(items: Iterable[str]) -> str:
    """Return the first items of a list and the number of further items, for messages."""
    every = list(items)
    more = f" and {len(every) - _MAX_LISTED} more" if len(every) > _MAX_LISTED else ""
    return ", ".join(every[:_MAX_LISTED]) + more


def _all(tables: Mapping[str, Sequence[Table]]) -> Iterator[Table]:
    return (table for parts in tables.values() for table in parts)


def _values(table: Table, column: str) -> list[object]:
    """Return the labels without white space around them."""
    return [value.strip() if isinstance(value, str) else value for value in table.columns[column]]


# Values that are no labels ------------------------------------------------------------------------


def _check(table: Table, column: str) -> None:
    missing = [row for row, value in enumerate(table.columns[column]) if _is_missing(value)]
    if missing:
        more = len(missing) - 1
        more_rows = f"; the same is true of {counted(more, 'other row')}" if more else ""
        value = table.columns[column][missing[0]]
        raise ValueError(
            f"text: {table.file}: {table.place(missing[0])} has no label in column '{column}' "
            f"({value!r}{more_rows}); fill it in, or remove the row"
        )
    for row, value in enumerate(table.columns[column]):
        if reason := _rejection(value):
            raise ValueError(
                f"text: {table.file}: {table.place(row)} holds {short_repr(value)} in column "
                f"'{column}'; {reason}"
            )


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rejection(value: object) -> str:
    """Return the reason that a value cannot be a label; empty if it can."""
    if isinstance(value, str):
        return HALF_CHARACTER if has_half_characters(value) else ""
    if isinstance(value, int):
        return ""
    if isinstance(value, float | Decimal):
        return "" if value == value // 1 else _REGRESSION
    if isinstance(value, list | tuple | np.ndarray):
        return (
            "raykd trains classifiers with one label per text, not several; give each row one label"
        )
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return "a label is a text or a whole number, not a date or time"
    return "a label is a text or a whole number"


_REGRESSION = (
    "a class is a text or a whole number; write `kind: number` for a regression on such numbers, "
    "name another column, turn ranges of numbers into classes such as 'low' and 'high', or write "
    "names so that they do not read as numbers, such as 'v3.10'"
)


def _check_numbers(tables: Sequence[Table], column: str, kind: Kind) -> None:
    """Reject CSV labels that are numbers with a few exceptions, or numbers that are not whole."""
    untyped = [table for table in tables if not table.typed]
    if kind != "text" or len(untyped) < len(tables):
        return
    places = [
        (table, row, str(value))
        for table in tables
        for row, value in enumerate(_values(table, column))
    ]
    texts = [place for place in places if not _FLOAT.fullmatch(place[2])]
    if not texts:
        table, row, value = next(place for place in places if not _is_whole(place[2]))
        raise ValueError(
            f"text: {table.file}: {table.place(row)} holds {value} in column '{column}'; "
            f"{_REGRESSION}"
        )
    if len(texts) < len(places) and all(value.casefold() in MISSING for *_, value in texts):
        table, row, value = texts[0]
        raise ValueError(
            f"text: {table.file}: {table.place(row)} holds {value!r} in column '{column}', where "
            f"{len(places) - len(texts)} other rows hold numbers; it looks like a missing label "
            f"({counted(len(texts), 'row')}): fill it in, or remove the rows"
        )


# Classes ------------------------------------------------------------------------------------------


def _kind(values: Sequence[object], *, typed: bool) -> Kind:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "boolean"
    if not kinds & {bool, str}:
        return "integer"
    if typed or kinds != {str}:
        return "text"
    distinct = set(map(str, values))
    if {value.casefold() for value in distinct} <= {"true", "false"}:
        return "boolean"
    if all(map(_INTEGER.fullmatch, distinct)):
        padded = any(value.lstrip("+-") != str(abs(int(value))) for value in distinct)
        return "padded integer" if padded else "integer"
    return "integer" if all(map(_is_whole, distinct)) else "text"


def _is_whole(value: str) -> bool:
    if _FLOAT.fullmatch(value) is None or not math.isfinite(float(value)):
        return False
    return Decimal(value) == Decimal(value).to_integral_value()


def _name(value: object, kind: Kind) -> str:
    """Return the class name of a label; the text of labels of another kind than in training."""
    if isinstance(value, float | Decimal):
        return str(int(value))
    if kind == "integer" and isinstance(value, str) and _is_whole(value):
        return str(int(value) if _INTEGER.fullmatch(value) else int(Decimal(value)))
    if kind == "boolean" and str(value).casefold() in ("true", "false"):
        return str(value).capitalize()
    return str(value)


def _class_names(values: Sequence[object], kind: Kind) -> tuple[str, ...]:
    names = {_name(value, kind) for value in values}
    if kind in ("integer", "padded integer"):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _check_known(
    split: str, tables: Sequence[Table], labels: Sequence[str], indices: Mapping[str, int]
) -> None:
    strange = Counter(label for label in labels if label not in indices)
    if not strange:
        return
    row = next(row for row, label in enumerate(labels) if label in strange)
    every = listed(f"{quoted(name)} ({counted(n, 'row')})" for name, n in strange.most_common())
    fix = "rename or remove it"
    if labels[row] == "-1":
        fix = f"-1 often marks rows without a label: leave out data.{split}_file"
    raise ValueError(
        f"text: {_at(tables, row)} has the label {quoted(labels[row])}, which the training table "
        f"lacks; all such labels: {every}; the training table has "
        f"{listed(map(quoted, indices))}; {fix}"
    )


def _at(tables: Sequence[Table], row: int) -> str:
    """Return the file and place of a row of several tables."""
    for table in tables[:-1]:
        if row < len(table):
            return f"{table.file}: {table.place(row)}"
        row -= len(table)
    return f"{tables[-1].file}: {tables[-1].place(row)}"


# Labels that look wrong ---------------------------------------------------------------------------


def _stripped(table: Table, column: str) -> Iterator[str]:
    spaced = [v for v in table.columns[column] if isinstance(v, str) and v != v.strip()]
    if spaced:
        yield (
            f"{table.file.name}: white space around {counted(len(spaced), 'label')} removed (such "
            f"as {quoted(spaced[0])})"
        )


def _mixed(values: Sequence[object], kind: Kind, column: str) -> Iterator[str]:
    """Warn about labels of several types, which share a class if their texts are equal."""
    nouns = {str: "text", bool: "true or false", int: "whole numbers", float: "numbers"}
    kinds = Counter(nouns.get(type(value), type(value).__name__) for value in values)
    if len(kinds) > 1 and kind == "text":
        parts = ", ".join(
            f"{name} ({counted(count, 'row')})" for name, count in kinds.most_common()
        )
        yield f"column '{column}' mixes types: {parts}; all are read as text"
    texts = [value for value in values if isinstance(value, str)]
    if kind != "text" or len(texts) < len(values):
        return
    words = [value for value in texts if not _FLOAT.fullmatch(value)]
    if 0 < len(words) < len(texts) / 10:
        yield (
            f"column '{column}' holds numbers, except for {len(words)} of {len(texts)} rows: "
            f"{listed(map(quoted, dict.fromkeys(words)))}; all are read as text"
        )


def _unlike(tables: Sequence[Table], column: str) -> Iterator[str]:
    """Warn about training files of which some have numbers as labels and others names."""
    by_kind: dict[bool, str] = {}
    for table in tables:
        is_text = _kind(_values(table, column), typed=table.typed) == "text"
        by_kind.setdefault(is_text, table.file.name)
    if len(by_kind) > 1:
        yield (
            f"column '{column}' holds whole numbers in {by_kind[False]}, but names in "
            f"{by_kind[True]}: they are separate classes; write the same labels in all files"
        )


def _suspicious(counts: Counter[str], kind: Kind) -> Iterator[str]:
    if kind == "padded integer":
        yield from _alike(counts, lambda name: str(int(name)), "in leading zeros or signs")
    if kind != "text":
        return
    yield from _alike(counts, _folded, "in case, white space or the form of letters")
    for name, count in counts.items():
        if name.casefold() in MISSING and not (name == "-" and "+" in counts):
            yield (
                f"label {quoted(name)} ({counted(count, 'row')}) looks like a missing label, but "
                "is read as a class; remove the rows if the label is missing"
            )
    in_quotes = [
        name for name in counts if len(name) > 1 and name[0] == name[-1] and name[0] in "'\""
    ]
    if in_quotes:
        yield f"labels in quotes: {listed(map(quoted, in_quotes))}; the quotes belong to the names"


def _alike(counts: Counter[str], key: Callable[[str], str], difference: str) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for name in counts:
        groups.setdefault(key(name), []).append(name)
    alike = [
        " and ".join(f"{_exact(name)} ({counted(counts[name], 'row')})" for name in sorted(names))
        for names in groups.values()
        if len(names) > 1
    ]
    if alike:
        yield f"labels that differ only {difference} are separate classes: {listed(alike)}"


def _folded(name: str) -> str:
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if c.isprintable())
    return " ".join(visible.casefold().split())


def _exact(name: str) -> str:
    """Return a label for messages, with escapes if it is not in composed Unicode form."""
    composed = unicodedata.normalize("NFC", name) == name
    return quoted(name) if composed else ascii(name)
