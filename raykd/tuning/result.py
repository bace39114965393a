"""Results of runs, read from their journals: finished or not, at any time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.tracking.events import Event, ModelSaved, StudyStarted
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
from raykd.tuning.study_dir import StudyFolder, open_folder

if TYPE_CHECKING:
    import pandas as pd

    from raykd.models.preprocessing import RawInputModel

METRIC = "test_accuracy"

NOT_STARTED = "try again in a moment if it has just started, else start the study again"
"""Advice for a journal without events."""


@dataclass(frozen=True)
class Finalist:
    """A selected student, trained again under fresh seeds, with and without its teacher.

    Attributes:
        trial: trial that was selected by validation metrics.
        distilled: test accuracy of its replicates; None without replicates.
        alone: test accuracy of the same student with the same budget, without a teacher.
        gain: distilled - alone, paired by seed.
        missing: number of these trainings without a test accuracy, because they failed.
    """

    trial: Record
    distilled: Estimate | None
    alone: Estimate | None
    gain: Estimate | None
    missing: int = 0


@dataclass(frozen=True, repr=False)
class RunResult:
    """Result of a run: the part that searches and layer studies share.

    Attributes:
        folder: of the study.
        name: of the study.
        study_id: its id in MLflow (tag `raykd.id` of the parent run).
        tracking_uri: of the MLflow store with its runs.
        experiment: its MLflow experiment.
        records: of every training.
        seconds: from the first event to the last.
    """

    folder: Path
    name: str
    study_id: str
    tracking_uri: str
    experiment: str
    records: Records
    seconds: float

    @property
    def teachers(self) -> list[Record]:
        """The study's own teachers, without assistants."""
        return self.records.teachers


@dataclass(frozen=True, repr=False)
class StudyResult(RunResult):
    """Result of a search; see `RunResult` for the other attributes.

    Attributes:
        objectives: metric -> "max" or "min"; the first one decides which trial is best.
        max_finalists: maximum number of finalists.
    """

    objectives: Mapping[str, str]
    max_finalists: int

    def __repr__(self) -> str:
        trials = len(self.records.of("trial"))
        best = f", best {self.best.id}" if self.best is not None else ""
        return f"StudyResult({self.name!r}, {trials} trials{best}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return the result as a card for notebooks."""
        return result_card(self).html()

    @functools.cached_property
    def pareto(self) -> list[Record]:
        """The trials that no other trial dominates, best first in the first objective."""
        return self.records.front(self.objectives)

    @property
    def best(self) -> Record | None:
        """The best trial in the first objective; None if no trial has finished."""
        return self.pareto[0] if self.pareto else None

    @functools.cached_property
    def finalists(self) -> list[Finalist]:
        """The finalists with their test accuracy over seeds, best first."""
        selected = self.records.choose(self.objectives, self.max_finalists)
        return [self._finalist(record) for record in selected]

    @functools.cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: id, status, reason, epochs, parameters and last metrics."""
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
        """A finalist that beats every teacher's test accuracy without a teacher, if any."""
        accuracies = values_of(self.teachers, METRIC)
        for finalist in self.finalists:
            alone = finalist.alone
            if accuracies and alone is not None and alone.mean > max(accuracies) + ROUNDING_ERROR:
                return finalist
        return None

    def student(self, trial: str | None = None) -> RawInputModel:
        """Load the trained network of a finalist, with its preprocessing, on the CPU.

        Args:
            trial: id of the finalist; None: the best one.

        Returns:
            A module from raw samples to logits; see `raykd.models.preprocessing`.

        Raises:
            ValueError: this student was not saved.
        """
        import torch

        saved = events(self.folder / "journal.jsonl")
        models = [event for event in saved if isinstance(event, ModelSaved)]
        files = {model.id.partition("/")[0]: self.folder / model.path for model in models}
        finalist = trial if trial is not None else next(iter(files), "")
        if finalist not in files:
            listed = ", ".join(files) or "none; finalists are saved with search.replicates >= 1"
            name = finalist or "a student"
            raise ValueError(f"no network of {name} was saved; saved networks: {listed}")
        return torch.load(files[finalist], map_location="cpu", weights_only=False)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the study's MLflow run."""
        metrics: dict[str, float] = {}
        if self.best is not None:
            metrics |= {f"best_{name}": self.best.metrics[name] for name in self.objectives}
        for number, finalist in enumerate(self.finalists):
            for name in ("distilled", "alone", "gain"):
                value: Estimate | None = getattr(finalist, name)
                if value is not None:
                    metrics[f"chosen{number}_{name}_test_accuracy"] = value.mean
                    if not math.isnan(value.half_width):
                        metrics[f"chosen{number}_{name}_half_width"] = value.half_width
        return metrics

    def tags(self) -> dict[str, str]:
        """Return the tags of the study's MLflow run."""
        tags = {"front": " ".join(record.id for record in self.pareto)}
        if self.best is not None:
            tags["best"] = self.best.id
        return tags

    def _finalist(self, record: Record) -> Finalist:
        replicates = self.records.children(record.id, "replicate")
        baselines = self.records.children(record.id, "alone")
        distilled, alone = by_seed(replicates, METRIC), by_seed(baselines, METRIC)
        ended = [r for r in (*replicates, *baselines) if r.status in ("finished", "failed")]
        return Finalist(
            trial=record,
            distilled=estimate(list(distilled.values())) if distilled else None,
            alone=estimate(list(alone.values())) if alone else None,
            gain=paired_gain(distilled, alone),
            missing=len(ended) - len(distilled) - len(alone),
        )


def by_seed(records: Iterable[Record], metric: str) -> dict[int, float]:
    """Return a metric's finite values by seed, of the trainings that have finished."""
    return {
        record.job.seed: record.metrics[metric]
        for record in records
        if record.status == "finished" and math.isfinite(record.metrics.get(metric, math.nan))
    }


def result_card(result: StudyResult) -> Card:
    """Return a search as a card: teachers, Pareto front and finalists."""
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


def read_run(path: str | Path) -> tuple[RunResult, StudyFolder, list[Event]]:
    """Read the part of a result that all runs share, and the journal's events.

    Raises:
        StudyError: this is not a study's folder, or its journal has no events yet.
    """
    folder, _ = open_folder(path)
    history = events(folder.journal)
    starts = [event for event in history if isinstance(event, StudyStarted)]
    if not starts:
        message = f"{folder.path}: the journal has no event of the study yet"
        raise StudyError(Problem(message, fix=NOT_STARTED))
    last = starts[-1]  # the tracking store may have changed with a resume
    result = RunResult(
        folder=folder.path,
        name=last.name,
        study_id=last.id,
        tracking_uri=last.resolved["tracking"]["uri"],
        experiment=last.experiment or last.name,
        records=Records.from_events(history),
        seconds=(history[-1].at - starts[0].at) / 1000,
    )
    return result, folder, history


def read_result(folder: str | Path) -> StudyResult:
    """Read the result of the search in a folder, finished or not.

    Raises:
        StudyError: this is not a study's folder, or its journal has no events yet.
    """
    run, _, history = read_run(folder)
    [*_, start] = (event for event in history if isinstance(event, StudyStarted))
    search = start.resolved["search"]
    return StudyResult(
        **vars(run), objectives=search["objectives"], max_finalists=search["finalists"]
    )
