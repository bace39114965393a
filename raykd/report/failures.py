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

MOST_CAUSES = 5
MOST_IDS = 8
TAUGHT = re.compile(r"^its teacher \S+ failed: ")
VARYING = re.compile(r"0x[0-9a-f]+|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", re.IGNORECASE)


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
        return TAUGHT.sub("", self.first.reason)

    @property
    def raised_at(self) -> str:
        """The file and line in the user's own code, relative to the working directory.

        Empty if the error does not involve the user's code.
        """
        return _from_here(self.first.raised_at)

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


def causes(failed: Iterable[Record]) -> list[Cause]:
    """Group failed trainings by error and by the line that raised it, largest group first.

    Numbers in an error (a step, an address, a size) are ignored.  A training that failed because
    its teacher failed is grouped with the teacher's error.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    by_text: dict[str, tuple[str, str]] = {}
    for record in failed:
        text = _alike(record.reason)
        taught = TAUGHT.match(record.reason) is not None
        key = by_text.get(text, (text, "")) if taught else (text, record.raised_at)
        by_text.setdefault(text, key)
        groups.setdefault(key, []).append(record)
    return sorted((Cause(tuple(group)) for group in groups.values()), key=lambda one: -one.count)


def failure_lines(failed: Sequence[Record], folder: Path) -> list[str]:
    """Return the lines of a summary about failed trainings, a few for each cause."""
    found = causes(failed)
    said: list[str] = []
    for cause in found[:MOST_CAUSES]:
        said.append(f"{_whose(cause)}: {cause.reason}")
        if cause.raised_at:
            said.append(f"  raised at {cause.raised_at}")
        if cause.log:
            said.append(f"  log: {_from_here(str(folder / cause.log))}")
    rest = found[MOST_CAUSES:]
    if rest:
        count = sum(one.count for one in rest)
        said.append(f"and {count} more with {len(rest)} other errors (raykd report --json)")
    return said


class Announcer:
    """Announces failed trainings while a study runs; an error is described only once."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def line(self, record: Record) -> str:
        key = (_alike(record.reason), record.raised_at)
        self._counts[key] += 1
        if self._counts[key] > 1:
            return f"{record.id} failed with the same error ({self._counts[key]} so far)"
        place = f" (raised at {_from_here(record.raised_at)})" if record.raised_at else ""
        return f"{record.id} failed: {record.reason}{place}"


def _alike(reason: str) -> str:
    """Return an error without the numbers that differ between trainings."""
    return VARYING.sub("#", TAUGHT.sub("", reason))


def _whose(cause: Cause) -> str:
    ids = [record.id for record in cause.records]
    if len(ids) == 1:
        return ids[0]
    more = f", and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return f"{len(ids)} trainings ({', '.join(ids[:MOST_IDS])}{more})"


def _from_here(place: str) -> str:
    """Return a path relative to the working directory."""
    here = os.getcwd() + os.sep
    return place.removeprefix(here)
