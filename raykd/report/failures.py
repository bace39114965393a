"""Failed trainings, grouped by cause."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.tuning.records import Record

MAX_CAUSES = 5
MAX_IDS = 8
TEACHER_FAILURE = re.compile(r"^its teacher \S+ failed: ")
NUMBERS = re.compile(r"0x[0-9a-f]+|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cause:
    """Trainings that failed with the same error.

    Attributes:
        records: their records, in the order in which they started.
    """

    records: tuple[Record, ...]

    @property
    def count(self) -> int:
        return len(self.records)

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def reason(self) -> str:
        """The error of the first training, in one line."""
        return TEACHER_FAILURE.sub("", self.first.reason)

    @property
    def raised_at(self) -> str:
        """The file and line in the user's own code, relative to the working directory.

        Empty if the error does not involve the user's code.
        """
        return _relative(self.first.raised_at)

    @property
    def log(self) -> str:
        """Path of a log with the traceback, inside the study's folder; empty if there is none."""
        return next((record.log for record in self.records if record.log), "")

    def plain(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "raised_at": self.first.raised_at,
            "count": self.count,
            "trainings": [record.id for record in self.records],
            "log": self.log,
        }


def group_failures(failed: Iterable[Record]) -> list[Cause]:
    """Group failed trainings by error and by the line that raised it, largest group first.

    Numbers in an error (a step, an address, a size) are ignored.  A training that failed because
    its teacher failed is grouped with the teacher's error.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    by_text: dict[str, tuple[str, str]] = {}
    for record in failed:
        text = _without_numbers(record.reason)
        taught = TEACHER_FAILURE.match(record.reason) is not None
        key = by_text.get(text, (text, "")) if taught else (text, record.raised_at)
        by_text.setdefault(text, key)
        groups.setdefault(key, []).append(record)
    return sorted(
        (Cause(tuple(group)) for group in groups.values()), key=lambda cause: -cause.count
    )


def failure_lines(causes: Sequence[Cause], folder: Path) -> list[str]:
    """Return the lines of a summary about failed trainings, a few for each cause.

    Args:
        causes: failed trainings by cause, largest group first.
        folder: the study's folder.
    """
    lines: list[str] = []
    for cause in causes[:MAX_CAUSES]:
        lines.append(f"{_trainings_text(cause)}: {cause.reason}")
        if cause.raised_at:
            lines.append(f"  raised at {cause.raised_at}")
        if cause.log:
            lines.append(f"  log: {_relative(str(folder / cause.log))}")
    rest = causes[MAX_CAUSES:]
    if rest:
        count = sum(cause.count for cause in rest)
        lines.append(f"and {count} more with {len(rest)} other errors (raykd report --json)")
    return lines


class FailureAnnouncer:
    """Announces failed trainings while a study runs; an error is described only once."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def line(self, record: Record) -> str:
        key = (_without_numbers(record.reason), record.raised_at)
        self._counts[key] += 1
        if self._counts[key] > 1:
            return f"{record.id} failed with the same error ({self._counts[key]} so far)"
        place = f" (raised at {_relative(record.raised_at)})" if record.raised_at else ""
        return f"{record.id} failed: {record.reason}{place}"


def _without_numbers(reason: str) -> str:
    """Return an error without the numbers that differ between trainings."""
    return NUMBERS.sub("#", TEACHER_FAILURE.sub("", reason))


def _trainings_text(cause: Cause) -> str:
    ids = [record.id for record in cause.records]
    if len(ids) == 1:
        return ids[0]
    more = f", and {len(ids) - MAX_IDS} more" if len(ids) > MAX_IDS else ""
    return f"{len(ids)} trainings ({', '.join(ids[:MAX_IDS])}{more})"


def _relative(place: str) -> str:
    """Return a path relative to the working directory."""
    here = os.getcwd() + os.sep
    return place.removeprefix(here)
