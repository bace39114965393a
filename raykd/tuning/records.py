"""Records of every training of a study, built from the events of its journal."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from sys import intern
from typing import Any

from raykd import pareto
from raykd.errors import Problem, StudyError
from raykd.runtime.jobs import EvaluateJob, JournalJob, RecordedJob, Role, read_job
from raykd.study.short_names import training_names
from raykd.tracking.events import (
    EpochFinished,
    Event,
    Note,
    RunEnded,
    RunPaused,
    RunPromoted,
    RunStarted,
    StudyEnded,
    StudyExtended,
    StudyStarted,
)
from raykd.tracking.journal import read

TRAINING_EVENTS = (RunStarted, EpochFinished, RunPaused, RunPromoted, RunEnded)


@dataclass
class Record:
    """Record of one training.

    Attributes:
        job: of the training.
        epochs: metrics of each finished epoch.
        status: "running", "paused" (by the scheduler), "finished", "stopped" (early, by the
            scheduler) or "failed".
        reason: of its failure; "" if it has not failed.
        raised_at: file and line of the user's own code that raised the error, "FILE:LINE", or "".
        log: file of its log, below the study's folder, if it failed; else "".
        metrics: of the last epoch, with costs and, if requested, test metrics.
        promoted_at: epoch after which it was continued last; None if it never paused.
        finishing_at: epoch after which it was continued to complete the front; None if it was not.
    """

    job: JournalJob
    epochs: list[dict[str, float]] = field(default_factory=list)
    status: str = "running"
    reason: str = ""
    raised_at: str = ""
    log: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    promoted_at: int | None = None
    finishing_at: int | None = None

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def role(self) -> Role:
        return self.job.role

    def is_complete(self, objectives: Iterable[str]) -> bool:
        """Return True if it ran its whole budget and has a finite value for every objective."""
        values = (self.metrics.get(name, math.nan) for name in objectives)
        return self.status == "finished" and all(map(math.isfinite, values))


class Records:
    """All trainings of a study, by id, in the order they began.

    Attributes:
        chosen: ids of the finalists; empty before they are chosen, and after an extension with
            more trials until they are chosen again.
        may_draw: False once finalists are trained again; True again after an extension with more
            trials.
        reopened: ids of the trials that were stopped before the last such extension, in which they
            may be promoted.
    """

    def __init__(self) -> None:
        self.chosen: set[str] = set()
        self.may_draw = True
        self.reopened: set[str] = set()
        self._all: dict[str, Record] = {}
        self._by_role: defaultdict[Role, list[Record]] = defaultdict(list)
        self._running: dict[str, Record] = {}

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> Records:
        """Build the records from the events of a journal."""
        records = cls()
        for event in events:
            records.apply(event)
        return records

    def apply(self, event: Event) -> None:
        """Update the records with one event; the same event twice changes nothing."""
        match event:
            case RunStarted():
                job = read_job(event.assignment)
                if job.id not in self._all:
                    job = self._sharing(job)
                    record = Record(job)
                    self._all[record.id] = self._running[record.id] = record
                    self._by_role[record.role].append(record)
                    self.may_draw &= record.role not in ("replicate", "alone")
            case EpochFinished():
                record = self._all[event.id]
                if event.epoch == len(record.epochs) + 1:
                    # read from JSON, each epoch would have its own copies of the names
                    metrics = {intern(name): value for name, value in event.metrics.items()}
                    record.epochs.append(metrics)
                    record.metrics.update(event.metrics)
            case RunPaused() | RunPromoted():
                self._pause_or_continue(event)
            case RunEnded():
                record = self._all[event.id]
                self._running.pop(record.id, None)
                record.status, record.reason = event.status, event.reason
                record.raised_at, record.log = event.raised_at, event.log
                record.metrics.update(event.metrics)
            case Note(id=str(trial)) if "chosen" in event.tags:
                (self.chosen.add if event.tags["chosen"] == "true" else self.chosen.discard)(trial)
            case StudyExtended():
                self.may_draw |= event.draws
                if event.draws:
                    trials = self._by_role["trial"]
                    self.reopened = {trial.id for trial in trials if trial.status == "stopped"}

    def _sharing(self, job: JournalJob) -> JournalJob:
        """Return the job with the parts of the job before that are equal, to save memory."""
        if not self._all:
            return job
        before = next(reversed(self._all.values())).job
        return replace(
            job,
            study=_share_equal(job.study, before.study),
            params=_share_equal(job.params, before.params),
        )

    def _pause_or_continue(self, event: RunPaused | RunPromoted) -> None:
        record = self._all[event.id]
        if isinstance(event, RunPaused):
            self._running.pop(event.id, None)
            record.status = "paused"
            return
        self._running[event.id] = record
        record.status, record.promoted_at = "running", event.epoch
        if event.finishing and record.finishing_at is None:
            record.finishing_at = event.epoch

    def __getitem__(self, record_id: str) -> Record:
        return self._all[record_id]

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._all

    def of(self, *roles: Role) -> list[Record]:
        if len(roles) == 1:
            return list(self._by_role[roles[0]])
        return [record for record in self._all.values() if record.role in roles]

    @property
    def teachers(self) -> list[Record]:
        """Records of the study's own teachers, which alone are tested."""
        return [record for record in self.of("teacher") if record.job.test]

    @property
    def assistants(self) -> list[Record]:
        """Records of other teachers: assistants and earlier generations."""
        return [record for record in self.of("teacher") if not record.job.test]

    def running(self, *roles: Role) -> list[Record]:
        return [record for record in self._running.values() if record.role in roles]

    def children(self, parent: str, role: Role) -> list[Record]:
        return [record for record in self.of(role) if record.job.parent == parent]

    def front(self, objectives: Mapping[str, str]) -> list[Record]:
        """Return the non-dominated trials of those with a whole budget, the best first.

        The first objective decides the order.  Only validation metrics count.
        """
        whole = [record for record in self.of("trial") if record.is_complete(objectives)]
        points = pareto.losses([record.metrics for record in whole], objectives)
        front = [whole[i] for i in pareto.pareto(points)]
        first, direction = next(iter(objectives.items()))
        return sorted(front, key=lambda r: r.metrics[first], reverse=direction == "max")

    def choose(self, objectives: Mapping[str, str], count: int) -> list[Record]:
        """Return at most `count` trials of the front: the best, and others spread over it."""
        front = self.front(objectives)
        points = pareto.losses([record.metrics for record in front], objectives)
        return [front[i] for i in pareto.spread(points, count)]


def _share_equal(mapping: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapping` with the values of `other` where they are equal, and with shared names.

    1, 1.0 and True are different values.
    """
    return {
        intern(name): other[name] if name in other and repr(other[name]) == repr(value) else value
        for name, value in mapping.items()
    }


def read_history(journal: Path) -> tuple[list[Event], Records]:
    """Read a study's journal, and check that its events belong together.

    Raises:
        StudyError: a line was not written by raykd, or the line that it refers to is missing;
            names it.
    """
    history: list[Event] = []
    records = Records()
    for number, line in enumerate(read(journal), 1):
        fault = line.fault
        if line.event is not None:
            try:
                records.apply(line.event)
                _check_content(line.event, records)
                history.append(line.event)
            except (KeyError, TypeError, ValueError, AttributeError):
                fault = _fault_of(line.event)
        if fault:
            fix = "restore the file from a copy, or remove the line with the figures in it"
            raise StudyError(Problem(fault, fix=fix, file=str(journal), line=number))
    return history, records


def last_status(history: Sequence[Event]) -> str:
    """Return the last `done` status of a study, or "interrupted" if there is none."""
    for event in reversed(history):
        if isinstance(event, StudyEnded):
            return event.status
        if isinstance(event, StudyStarted):
            break
    return "interrupted"


def _check_content(event: Event, records: Records) -> None:
    """Read the parts of an event that results are made of.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: one is missing or has another type.
    """
    if isinstance(event, StudyStarted):
        search, uri = event.resolved["search"], event.resolved["tracking"]["uri"]
        types = {str: uri, dict: search["objectives"], int: search["finalists"]}
        if not all(isinstance(value, kind) for kind, value in types.items()):
            raise TypeError
    if isinstance(event, RunStarted):
        record = records[event.id]
        names = (student_name, learns_from, pairs_name, scheme_name)
        job = record.job
        texts = [job.id, job.folder, *job.tags.values(), *(name(record) for name in names)]
        numbers = [job.seed, job.epochs, *job.metrics.values()]
        if not all(isinstance(text, str) for text in texts) or math.isnan(sum(numbers)):
            raise TypeError


def _fault_of(event: Event) -> str:
    """Return the reason why an event cannot follow those before it."""
    if isinstance(event, (EpochFinished, RunEnded, RunPaused, RunPromoted)):
        return f"a `{event.kind}` event of {event.id}, but no line says that {event.id} started"
    return f"a `{event.kind}` event with values that raykd does not write"


def values_of(records: Sequence[Record], metric: str) -> list[float]:
    """Return the values of a metric over finished trainings."""
    return [r.metrics[metric] for r in records if r.status == "finished" and metric in r.metrics]


def teacher_name(record: Record) -> str:
    """Return the short name of a teacher."""
    teacher = record.job.study.get("teacher") or {}
    if has_stored_outputs(record):
        return PurePath(teacher["outputs"]).name
    if isinstance(record.job, EvaluateJob) and teacher.get("weights") and not teacher.get("model"):
        return str(teacher["weights"])  # a whole network from MLflow
    return _name(record, "student")


def has_stored_outputs(record: Record) -> bool:
    """Return whether a teacher is a file of outputs, without a network."""
    teacher = record.job.study.get("teacher") or {}
    return isinstance(record.job, EvaluateJob) and bool(teacher.get("outputs"))


def student_name(record: Record) -> str:
    """Return the short name of a training's network."""
    return teacher_name(record) if record.role == "teacher" else _name(record, "student")


def learns_from(record: Record) -> str:
    """Return the losses of a training, "0.31 kd T=4.1 + 12 at"; else "labels" or "targets"."""
    return _name(record, "learns_from")


def pairs_name(record: Record) -> str:
    """Return the layer pairs of a training, hint to guided; "" without pairs."""
    return _name(record, "pairs")


def _name(record: Record, name: str) -> str:
    """Return a name from the journal; older journals have none, so it is built from the study."""
    return (record.job.names or training_names(record.job.study))[name]


def run_name(job: RecordedJob) -> str:
    """Return the name of a run in MLflow, which says what the run is.

    Trials: `resnet d8 w12 kd+hint #7` (student, losses, number), their replicates and baselines
    with the seed at the end.  Runs of layer studies: pairs or arm, and seed.

    Args:
        job: the run's job, with its short names.
    """
    student = job.names["student"]
    if job.role == "teacher":
        return f"teacher {student}"
    if "arm" in job.tags:
        pairs = job.tags.get("pairs", "none")
        return f"{job.tags['arm'] if pairs == 'none' else pairs} seed {job.seed}"
    number = re.search(r"trial-(\d+)", job.id)
    losses = "alone" if job.role == "alone" else job.tags.get("losses", "none")
    scheme = job.tags.get("scheme", "offline")
    words = [student, *([] if scheme in ("offline", "alone") else [scheme])]
    words += [job.names["learns_from"] if losses == "none" else losses]
    words += [f"#{int(number[1])}"] if number else []
    words += [f"seed {job.seed}"] if job.role in ("replicate", "alone") else []
    return " ".join(words)


def scheme_name(record: Record) -> str:
    return record.job.study["scheme"]["name"]


def cost(record: Record, name: str) -> float | None:
    """Return a cost of a training's network; None if it is unknown."""
    return record.metrics.get(name, record.job.metrics.get(name))
