"""Figures of a recorded training beside those of its reproduction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.study.objectives import MEASURED
from raykd.tuning.records import Record

TOLERANCE = 1e-3
"""Largest difference of figures that agree: relative to the recorded one, absolute below 1."""

TIMES = ("epoch_seconds", "images_per_second", *MEASURED)
"""Figures that differ between two runs of the same training."""


@dataclass(frozen=True)
class Figure:
    """A metric of the recorded training and of its reproduction; nan where one lacks it.

    Attributes:
        name: name of the metric.
        recorded, reproduced: its values.
    """

    name: str
    recorded: float
    reproduced: float

    @property
    def difference(self) -> float:
        return self.reproduced - self.recorded

    @property
    def is_equal(self) -> bool:
        """True if both values are the same, bit for bit."""
        same_nan = math.isnan(self.recorded) and math.isnan(self.reproduced)
        return self.recorded == self.reproduced or same_nan

    @property
    def deviation(self) -> float:
        """Difference relative to the recorded value; absolute if that is below 1."""
        if self.is_equal:
            return 0.0
        deviation = abs(self.difference) / max(1.0, abs(self.recorded))
        return deviation if math.isfinite(deviation) else math.inf


@dataclass(frozen=True)
class Retraining:
    """A network that was trained again, with its figures.

    Attributes:
        id: ID of the recorded training.
        figures: each metric, recorded and reproduced.
        first_epoch: first epoch with another figure; None if all epochs are equal.
        epochs: number of epochs that were compared.
    """

    id: str
    figures: tuple[Figure, ...]
    first_epoch: int | None
    epochs: int

    @property
    def largest(self) -> Figure | None:
        """The figure with the largest deviation."""
        return max(self.figures, key=lambda figure: figure.deviation, default=None)


@dataclass(frozen=True)
class Reproduction:
    """Result of a reproduction.

    Attributes:
        source: the recorded training, `FOLDER:trial-0007`.
        folder: study folder of the reproduction.
        student: the student.
        teachers: teachers that were trained again, because they were missing or damaged.
        differences: what is different from the recorded run: versions, commit, files, cache.
        tolerance: largest deviation of figures that agree.
    """

    source: str
    folder: Path
    student: Retraining
    teachers: tuple[Retraining, ...]
    differences: tuple[str, ...]
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """True if every figure of the student is the same, bit for bit, after every epoch."""
        return self.student.first_epoch is None and all(
            figure.is_equal for figure in self.student.figures
        )

    @property
    def agrees(self) -> bool:
        """True if every figure of the student is within the tolerance."""
        return all(figure.deviation <= self.tolerance for figure in self.student.figures)

    def plain(self) -> dict[str, Any]:
        """Return the reproduction as plain data."""
        return {
            "source": self.source,
            "folder": str(self.folder),
            "agrees": self.agrees,
            "exact": self.is_exact,
            "tolerance": self.tolerance,
            "first_different_epoch": self.student.first_epoch,
            "figures": _plain(self.student.figures),
            "teachers": {each.id: _plain(each.figures) for each in self.teachers},
            "differences": list(self.differences),
        }


def _plain(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    return {
        figure.name: {
            "recorded": figure.recorded,
            "reproduced": figure.reproduced,
            "difference": figure.difference,
        }
        for figure in figures
    }


def compare(old: Record, new: Record) -> Retraining:
    """Return the figures of a recorded training and of its reproduction."""
    count = len(old.epochs)
    pairs = zip(old.epochs, new.epochs[:count], strict=False)
    different = (n for n, (a, b) in enumerate(pairs, 1) if not _are_equal(a, b))
    return Retraining(
        old.id, tuple(_figures(old.metrics, new.metrics)), next(different, None), count
    )


def _figures(old: Mapping[str, float], new: Mapping[str, float]) -> Iterator[Figure]:
    for name in dict.fromkeys([*old, *new]):
        if name not in TIMES:
            yield Figure(name, old.get(name, math.nan), new.get(name, math.nan))


def _are_equal(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return all(figure.is_equal for figure in _figures(old, new))
