"""What a search found: read back from its journal, so that it can be asked at any time."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.tracking.journal import events
from raykd.tuning.number_format import compact, duration, interval, metric, points, words
from raykd.tuning.records import (
    Record,
    Records,
    cost,
    learns_from,
    student_name,
    teacher_name,
    values_of,
)
from raykd.tuning.statistics import ROUNDING_ERROR, Estimate, estimate, paired_gain
from raykd.tuning.study_dir import open_folder

if TYPE_CHECKING:
    import pandas as pd

    from raykd.models.preprocessing import RawInputModel

METRIC = "test_accuracy"

NOT_BEGUN = "try again in a moment if it has just started, else start the study again"
"""Advice where a folder holds no event."""


@dataclass(frozen=True)
class Finalist:
    """A chosen student: trained again under fresh seeds, with and without its teacher.

    Attributes:
        trial: the trial that was chosen, by validation metrics.
        distilled: test accuracy of its replicates; None without replicates.
        alone: test accuracy of the same student at the same budget without a teacher.
        gain: distilled - alone, paired by seed.
        missing: how many of these trainings failed, and are in none of the above.
    """

    trial: Record
    distilled: Estimate | None
    alone: Estimate | None
    gain: Estimate | None
    missing: int = 0


@dataclass(frozen=True, repr=False)
class StudyResult:
    """The outcome of one search.

    Attributes:
        folder: the study's folder.
        name: the study's name.
        study_id: its id in MLflow (tag `raykd.id` of the parent run).
        tracking_uri: where MLflow keeps the runs.
        experiment: its MLflow experiment.
        objectives: metric -> "max" or "min", the first one leads.
        records: every training.
        seconds: from the first event to the last.
    """

    folder: Path
    name: str
    study_id: str
    tracking_uri: str
    experiment: str
    objectives: Mapping[str, str]
    chosen_at_most: int
    records: Records
    seconds: float

    def __repr__(self) -> str:
        trials = len(self.records.of("trial"))
        best = f", best {self.best.id}" if self.best is not None else ""
        return f"StudyResult({self.name!r}, {trials} trials{best}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The result as a card, for notebooks."""
        return result_card(self).html()

    @functools.cached_property
    def pareto(self) -> list[Record]:
        """The trials no other trial beats in every objective, best first in the first one."""
        return self.records.front(self.objectives)

    @property
    def best(self) -> Record | None:
        """The front's best trial in the first objective; None where no trial finished."""
        return self.pareto[0] if self.pareto else None

    @functools.cached_property
    def finalists(self) -> list[Finalist]:
        """The chosen students with their test accuracy over seeds, best first."""
        picked = self.records.choose(self.objectives, self.chosen_at_most)
        return [self._judged(record) for record in picked]

    @property
    def teachers(self) -> list[Record]:
        """The study's own."""
        return self.records.teachers

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: id, status, reason, epochs, its parameters and its last metrics."""
        import pandas as pd

        rows = []
        for record in self.records.of("trial"):
            row: dict[str, Any] = {
                "id": record.id,
                "status": record.status,
                "reason": record.reason,
                "epochs": len(record.epochs),
                **dict(record.job.params.items()),
                **record.job.metrics,
                **record.metrics,
            }
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def teacher_falls_short(self) -> Finalist | None:
        """The chosen student whose lone training beats every teacher's test accuracy, if any."""
        taught = values_of(self.teachers, METRIC)
        for finalist in self.finalists:
            alone = finalist.alone
            if taught and alone is not None and alone.mean > max(taught) + ROUNDING_ERROR:
                return finalist
        return None

    def student(self, trial: str | None = None) -> RawInputModel:
        """The trained network of a chosen student, with its preprocessing, on the CPU.

        Args:
            trial: id of the chosen trial; None: the best one.

        Returns:
            A module from raw samples to logits; see `raykd.models.preprocessing`.

        Raises:
            ValueError: no such student was kept.
        """
        import torch

        told = [
            event for event in events(self.folder / "journal.jsonl") if event["event"] == "model"
        ]
        kept = {event["id"].partition("/")[0]: self.folder / event["path"] for event in told}
        wanted = trial if trial is not None else next(iter(kept), "")
        if wanted not in kept:
            known = ", ".join(kept) or "none; chosen students are kept with search.replicates >= 1"
            raise ValueError(f"no network of {wanted or 'a student'} was kept; kept: {known}")
        return torch.load(kept[wanted], map_location="cpu", weights_only=False)

    def figures(self) -> dict[str, float]:
        """The study's figures, for its parent run."""
        found: dict[str, float] = {}
        if self.best is not None:
            found |= {f"best_{name}": self.best.metrics[name] for name in self.objectives}
        for number, finalist in enumerate(self.finalists):
            for what in ("distilled", "alone", "gain"):
                value: Estimate | None = getattr(finalist, what)
                if value is not None:
                    found[f"chosen{number}_{what}_test_accuracy"] = value.mean
                    if not math.isnan(value.half_width):
                        found[f"chosen{number}_{what}_half_width"] = value.half_width
        return found

    def tags(self) -> dict[str, str]:
        """The study's findings, for its parent run."""
        found = {"front": " ".join(record.id for record in self.pareto)}
        if self.best is not None:
            found["best"] = self.best.id
        return found

    def _judged(self, record: Record) -> Finalist:
        distilled = self._by_seed(record, "replicate")
        alone = self._by_seed(record, "alone")
        return Finalist(
            trial=record,
            distilled=estimate(list(distilled.values())) if distilled else None,
            alone=estimate(list(alone.values())) if alone else None,
            gain=paired_gain(distilled, alone),
            missing=self._missing(record),
        )

    def _by_seed(self, record: Record, role: Any) -> dict[int, float]:
        return {
            child.job.seed: child.metrics[METRIC]
            for child in self.records.children(record.id, role)
            if child.status == "finished" and math.isfinite(child.metrics.get(METRIC, math.nan))
        }

    def _missing(self, record: Record) -> int:
        """How many of a chosen student's trainings ended without a test accuracy."""
        children = [
            child
            for role in ("replicate", "alone")
            for child in self.records.children(record.id, role)
            if child.status in ("finished", "failed")
        ]
        counted = sum(len(self._by_seed(record, role)) for role in ("replicate", "alone"))
        return len(children) - counted


def result_card(result: StudyResult) -> Card:
    """A search for notebooks: its teachers, its front and the chosen students."""
    trials = len(result.records.of("trial"))
    card = Card(result.name, f"{trials} trials in {duration(result.seconds)}")
    card.facts(
        [
            ("teachers", "; ".join(map(_teacher_text, result.teachers))),
            ("folder", str(result.folder)),
            ("MLflow", f"experiment {result.experiment}"),
        ]
    )
    names = tuple(result.objectives)
    card.table(
        "Pareto front (validation split)" if len(names) > 1 else "Best trial (validation split)",
        ("trial", "student", "learns from", *map(words, names), "params"),
        [
            (
                record.id,
                student_name(record),
                learns_from(record),
                *(metric(name, cost(record, name)) for name in names),
                compact(cost(record, "params")),
            )
            for record in result.pareto
        ],
    )
    card.table(
        "Chosen students (test accuracy over new seeds, mean ± 95% CI half-width)",
        ("trial", "distilled", "without teacher", "gain (points)"),
        [
            (each.trial.id, interval(each.distilled), interval(each.alone), points(each.gain))
            for each in result.finalists
            if each.distilled is not None
        ],
    )
    return card


def _teacher_text(record: Record) -> str:
    return f"{teacher_name(record)}: {metric(METRIC, record.metrics.get(METRIC))} test accuracy"


def read_result(folder: str | Path) -> StudyResult:
    """The result of the search in `folder`, finished or not.

    Raises:
        StudyError: it is no study's folder, or nothing has happened in it.
    """
    found, _ = open_folder(folder)
    told = events(found.journal)
    begun = [event for event in told if event["event"] == "study"]
    if not begun:
        raise StudyError(
            Problem(f"{found.path}: no event of the study is in its journal yet", fix=NOT_BEGUN)
        )
    study = begun[-1]  # where runs go may have changed when it was resumed
    resolved = study["resolved"]
    return StudyResult(
        folder=found.path,
        name=study["name"],
        study_id=study["id"],
        tracking_uri=resolved["tracking"]["uri"],
        experiment=study["experiment"],
        objectives=resolved["search"]["objectives"],
        chosen_at_most=resolved["search"]["finalists"],
        records=Records.from_events(told),
        seconds=(told[-1]["at"] - begun[0]["at"]) / 1000,
    )
