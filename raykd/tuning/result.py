"""Results of runs, read from their journals: finished or not, at any time."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.metrics import facts_of, lead_metric
from raykd.tracking.events import Event, ModelSaved, StudyStarted
from raykd.tracking.journal import events
from raykd.tuning.estimates import ROUNDING_ERROR, Estimate, estimate_metric, paired_gain
from raykd.tuning.number_format import duration, interval, metric, points, words
from raykd.tuning.records import (
    Record,
    Records,
    cost,
    learns_from,
    read_history,
    student_name,
    teacher_name,
    values_of,
)
from raykd.tuning.study_dir import StudyFolder, open_folder

if TYPE_CHECKING:
    import pandas as pd

    from raykd.models.preprocessing import RawInputModel

NOT_STARTED = "try again in a moment if it has just started, else start the study again"
"""Advice for a journal without events."""


@dataclass(frozen=True)
class Finalist:
    """A selected student, trained again under fresh seeds, with and without its teacher.

    Attributes:
        trial: trial that was selected by validation metrics.
        metric: name of the compared test metric.
        distilled: test metric of its replicates; None without replicates.
        alone: test metric of the same student with the same budget, without a teacher.
        gain: improvement of distilled over alone, paired by seed; positive is better.
        missing: number of these trainings without a test metric, because they failed.
    """

    trial: Record
    metric: str
    distilled: Estimate | None
    alone: Estimate | None
    gain: Estimate | None
    missing: int = 0

    def metrics(self) -> dict[str, float]:
        """Return its test metric over seeds as metrics of its run, and of the study's run."""
        parts = {self.metric: self.distilled, f"alone_{self.metric}": self.alone, "gain": self.gain}
        metrics: dict[str, float] = {}
        for name, value in parts.items():
            metrics |= {} if value is None else value.metrics(name)
        return metrics


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
        lead: metric by which networks are compared, without a split.
    """

    folder: Path
    name: str
    study_id: str
    tracking_uri: str
    experiment: str
    records: Records
    seconds: float
    lead: str

    @property
    def val_metric(self) -> str:
        """Name of the metric on the validation split."""
        return f"val_{self.lead}"

    @property
    def test_metric(self) -> str:
        """Name of the metric on the test split."""
        return f"test_{self.lead}"

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
        """The finalists with their test metric over seeds, best first."""
        selected = self.records.choose(self.objectives, self.max_finalists)
        return [self._finalist(record) for record in selected]

    @property
    def differences(self) -> list[tuple[Finalist, Finalist, Estimate]]:
        """Improvement of the test metric, first over second, of each pair of finalists."""
        ids = [finalist.trial.id for finalist in self.finalists]
        facts, name = facts_of(self.lead), self.test_metric
        values = {id: by_seed(self.records.children(id, "replicate"), name) for id in ids}
        pairs = [
            (first, second, paired_gain(values[first.trial.id], values[second.trial.id], facts))
            for first, second in combinations(self.finalists, 2)
        ]
        return [(first, second, gain) for first, second, gain in pairs if gain is not None]

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
        """A finalist that beats every teacher's test metric without a teacher, if any."""
        best = self.best_teacher_value
        if best is None:
            return None
        sign = 1.0 if facts_of(self.lead).direction == "max" else -1.0
        for finalist in self.finalists:
            alone = finalist.alone
            if alone is not None and sign * (alone.mean - best) > ROUNDING_ERROR:
                return finalist
        return None

    @property
    def best_teacher_value(self) -> float | None:
        """Best test metric of a teacher; None if none was tested."""
        values = values_of(self.teachers, self.test_metric)
        best = max if facts_of(self.lead).direction == "max" else min
        return best(values) if values else None

    def student(self, trial: str | None = None, *, allow_import: bool = False) -> RawInputModel:
        """Load the trained network of a finalist, with its preprocessing, on the CPU.

        Args:
            trial: id of the finalist; None: the best one.
            allow_import: let a network of your own code run that code.

        Returns:
            A module from raw samples to logits; see `raykd.models.preprocessing`.

        Raises:
            ValueError: this student was not saved, or it needs `allow_import`.
        """
        from raykd.compat.network_files import read_network
        from raykd.models.preprocessing import RawInputModel
        from raykd.user_code import register_copies

        saved = saved_models(events(self.folder / "journal.jsonl"))
        files = {id.partition("/")[0]: self.folder / event.path for id, event in saved.items()}
        finalist = trial if trial is not None else next(iter(files), "")
        if finalist not in files:
            listed = ", ".join(files) or "none; finalists are saved with search.replicates >= 1"
            name = finalist or "a student"
            raise ValueError(f"no network of {name} was saved; saved networks: {listed}")
        file = files[finalist]
        if allow_import:
            records = self.records.of("trial", "replicate")
            for study in (each.job.study for each in records if each.id == finalist):
                register_copies(study, self.folder)
        network = read_network(file, str(file), allow_code=allow_import)
        if not isinstance(network, RawInputModel):
            raise ValueError(f"{file} holds a {type(network).__name__}, not a student of raykd")
        return network

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the study's MLflow run."""
        trials = self.records.of("trial")
        metrics = {"trials": float(len(trials)), "front_size": float(len(self.pareto))}
        for status, count in Counter(record.status for record in trials).items():
            metrics[f"trials_{status}"] = float(count)
        if self.best is not None:
            names = dict.fromkeys([*self.objectives, "params", "macs"])
            values = {name: cost(self.best, name) for name in names}
            metrics |= {f"best_{name}": v for name, v in values.items() if v is not None}
        if self.best_teacher_value is not None:
            metrics[f"teacher_{self.test_metric}"] = self.best_teacher_value
        return metrics | (self.finalists[0].metrics() if self.finalists else {})

    def tags(self) -> dict[str, str]:
        """Return the tags of the study's MLflow run."""
        tags = {"front": " ".join(record.id for record in self.pareto)}
        if self.best is not None:
            tags["best"] = self.best.id
        return tags

    def _finalist(self, record: Record) -> Finalist:
        replicates = self.records.children(record.id, "replicate")
        baselines = self.records.children(record.id, "alone")
        facts, name = facts_of(self.lead), self.test_metric
        distilled, alone = by_seed(replicates, name), by_seed(baselines, name)
        ended = [r for r in (*replicates, *baselines) if r.status in ("finished", "failed")]
        return Finalist(
            trial=record,
            metric=name,
            distilled=estimate_metric(list(distilled.values()), facts) if distilled else None,
            alone=estimate_metric(list(alone.values()), facts) if alone else None,
            gain=paired_gain(distilled, alone, facts),
            missing=len(ended) - len(distilled) - len(alone),
        )


def saved_models(history: Iterable[Event]) -> dict[str, ModelSaved]:
    """Return the saved networks by the id of their training: those of the last run first.

    The finalists of an extended study come before earlier ones that are no finalists any more.

    Args:
        history: events of a journal.
    """
    runs: list[dict[str, ModelSaved]] = [{}]
    for event in history:
        match event:
            case StudyStarted():
                runs.append({})
            case ModelSaved():
                runs[-1][event.id] = event
            case _:
                pass
    models: dict[str, ModelSaved] = {}
    for of_run in reversed(runs):
        models |= {id: event for id, event in of_run.items() if id not in models}
    return models


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
            ("teachers", "; ".join(_teacher_text(result, each) for each in result.teachers)),
            ("folder", str(result.folder)),
            ("MLflow", f"experiment {result.experiment}"),
        ]
    )
    names = tuple(dict.fromkeys([*result.objectives, "params"]))
    card.table(
        "Pareto front (validation split)"
        if len(result.objectives) > 1
        else "Best trial (validation split)",
        ("trial", "student", "learns from", *map(words, names)),
        [
            (
                record.id,
                student_name(record),
                learns_from(record),
                *(metric(name, cost(record, name)) for name in names),
            )
            for record in result.pareto
        ],
    )
    card.table(
        f"Finalists ({words(result.test_metric)} over new seeds, mean ± 95% CI half-width)",
        ("trial", "distilled", "without teacher", gain_heading(result.lead)),
        [
            (each.trial.id, interval(each.distilled), interval(each.alone), points(each.gain))
            for each in result.finalists
            if each.distilled is not None
        ],
    )
    return card


def gain_heading(lead: str) -> str:
    """Return the heading of a column of gains in a metric."""
    return "gain (points)" if facts_of(lead).is_share else "gain"


def _teacher_text(result: StudyResult, record: Record) -> str:
    name = result.test_metric
    return f"{teacher_name(record)}: {metric(name, record.metrics.get(name))} {words(name)}"


def read_run(path: str | Path) -> tuple[RunResult, StudyFolder, list[Event]]:
    """Read the part of a result that all runs share, and the journal's events.

    Raises:
        StudyError: this is not a study's folder, or its journal is damaged or has no events yet.
    """
    folder, _ = open_folder(path)
    history, records = read_history(folder.journal)
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
        records=records,
        seconds=(history[-1].at - starts[0].at) / 1000,
        lead=lead_metric(last.resolved),
    )
    return result, folder, history


def read_result(folder: str | Path) -> StudyResult:
    """Read the result of the search in a folder, finished or not.

    Raises:
        StudyError: this is not a study's folder, or its journal has no events yet.
    """
    return read_search(folder)[0]


def read_search(folder: str | Path) -> tuple[StudyResult, list[Event]]:
    """Read the result of a search as `read_result` does, and the events of its journal."""
    run, _, history = read_run(folder)
    [*_, start] = (event for event in history if isinstance(event, StudyStarted))
    search = start.resolved["search"]
    result = StudyResult(
        **vars(run), objectives=search["objectives"], max_finalists=search["finalists"]
    )
    return result, history
