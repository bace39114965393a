"""Records of CSV text, read by the csv module, and the meaning of quotes in it."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

Quoting = Literal["auto", "double", "backslash", "none"]

_PLAIN = "quotes are read as plain characters (data.quoting: none)"
_DOUBLE = "quotes enclose fields (data.quoting: double)"
_BACKSLASH = "quotes inside fields are escaped by backslashes (data.quoting: backslash)"


@dataclass(frozen=True)
class Records:
    """Records of a CSV file.

    Attributes:
        fields: fields of each record.
        lines: first line of each record, counted from 1.
        blank: number of blank records between others, which are skipped.
        note: sentence on the meaning of quotes, if it was detected.
    """

    fields: list[list[str]]
    lines: list[int]
    blank: int
    note: str = ""

    @property
    def is_even(self) -> bool:
        """Return whether all records have as many fields as the first."""
        width = len(self.fields[0])
        return all(len(record) == width for record in self.fields)


class Malformed(ValueError):
    """Raised for a record that cannot be read; `line` is its first line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def read_records(text: str, delimiter: str, quoting: Quoting, label: str, header: bool) -> Records:
    """Read CSV text.

    With `auto`, quotes enclose fields and are doubled inside, if all records are well-formed then;
    else they are escaped by backslashes or plain characters, if all records have as many fields
    as the first then.

    Args:
        text: the whole file.
        delimiter: separator of fields.
        quoting: meaning of double quotes.
        label: column of labels; helps to distinguish lines of a field from records.
        header: the first record contains the names of the columns.

    Raises:
        ValueError: mismatched quotes, or quotes of unclear meaning; names the line.
    """
    if '"' not in text:
        return _records(text, delimiter, "none")
    try:
        if quoting != "auto":
            return _records(text, delimiter, quoting)
        return _detect(text, delimiter, label if header else "")
    except Malformed as error:
        raise ValueError(
            f"the record that begins in line {error.line} has mismatched quotes ({error}); "
            "inside quotes write each quote twice, or set data.quoting to none where quotes are "
            "plain characters, or to backslash where they are escaped"
        ) from None


def _detect(text: str, delimiter: str, label: str) -> Records:
    plain = _records(text, delimiter, "none")
    try:
        quoted = _records(text, delimiter, "double")
    except Malformed:
        return _escaped(text, delimiter) or _even(plain) or _records(text, delimiter, "double")
    if not quoted.fields:
        return quoted
    if len(quoted.fields) == len(plain.fields):
        noted = delimiter == "\t" and quoted.fields != plain.fields
        return replace(quoted, note=_DOUBLE) if noted else quoted
    if delimiter == "\t" and plain.is_even:
        return replace(plain, note=_PLAIN)
    escaped = _escaped(text, delimiter)
    if escaped is not None and len(escaped.fields) > len(quoted.fields):
        raise ValueError(
            f"it has {len(quoted.fields):,} records if quotes inside fields are doubled, and "
            f"{len(escaped.fields):,} if they are escaped by backslashes; set data.quoting to "
            "double or backslash"
        )
    _check_lines(quoted, plain, label)
    return quoted


def _even(plain: Records) -> Records | None:
    return replace(plain, note=_PLAIN) if plain.is_even else None


def _escaped(text: str, delimiter: str) -> Records | None:
    """Return records with quotes escaped by backslashes; None if the fields do not match."""
    if '\\"' not in text:
        return None
    try:
        escaped = _records(text, delimiter, "backslash")
    except Malformed:
        return None
    return replace(escaped, note=_BACKSLASH) if escaped.is_even else None


def _check_lines(quoted: Records, plain: Records, label: str) -> None:
    """Reject a quoted field of several lines that look like rows.

    A line looks like a row if it has all fields, and a label that also occurs in single-line rows.
    """
    width = len(quoted.fields[0])
    names = [name.strip().casefold() for name in quoted.fields[0]]
    column = names.index(label.strip().casefold()) if label.strip().casefold() in names else -1
    inner: dict[int, list[list[str]]] = {line: [] for line in quoted.lines}
    begin = quoted.lines[0]
    for line, record in zip(plain.lines, plain.fields, strict=True):
        begin = line if line in inner else begin
        inner[begin].append(record)
    labels = {
        records[0][-1 if column < 0 else column].strip()
        for records in inner.values()
        if len(records) == 1 and len(records[0]) == width
    }
    for line, records in inner.items():
        if len(records) == 1 or any(len(record) != width for record in records):
            continue
        if {record[column].strip() for record in records[:-1]} <= labels or len(labels) < 2:
            raise ValueError(
                f"the quote that opens in line {line} encloses {len(records)} lines that look like "
                "rows; close it, or set data.quoting to none if quotes are plain characters, or to "
                "double if the lines are one text"
            )


def _records(text: str, delimiter: str, quoting: Quoting) -> Records:
    kinds: dict[str, dict[str, Any]] = {
        "double": {"doublequote": True},
        "backslash": {"doublequote": True, "escapechar": "\\"},
        "none": {"quoting": csv.QUOTE_NONE, "quotechar": None},
    }
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **kinds[quoting]
    )
    fields: list[list[str]] = []
    lines: list[int] = []
    blank = waiting = before = 0
    with _any_field_size():
        try:
            for record in reader:
                line, before = before + 1, reader.line_num
                if not any(map(str.strip, record)):
                    waiting += bool(fields)
                    continue
                blank, waiting = blank + waiting, 0
                fields.append(record)
                lines.append(line)
        except csv.Error as error:
            raise Malformed(before + 1, str(error)) from None
    return Records(fields, lines, blank)


_FIELD_SIZE = threading.Lock()


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift the csv module's limit on the size of a field (131,072), which is one per process."""
    with _FIELD_SIZE:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def has_row_names(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether rows begin with their number, which the header lacks (as written by R)."""
    if not rows or any(len(row) != len(header) + 1 for row in rows):
        return False
    numbers = [row[0] for row in rows]
    return any(numbers == [str(n + start) for n in range(len(rows))] for start in (0, 1))
