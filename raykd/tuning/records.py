"""What is known of every training of a study: read from its journal, or kept up to date live."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raykd import pareto
from raykd.runtime.jobs import EvaluateJob, JournalJob, Role, read_job
from raykd.study.short_names import names_of


@dataclass
class Record:
    """One training.

    Attributes:
        job: the job of the training.
        epochs: the metrics of each finished epoch.
        status: "running", "finished", "stopped" (early, by the scheduler) or "failed".
        reason: why it failed; empty else.
        raised_at: the file and line of the user's own code that raised the error, "FILE:LINE";
            empty else.
        log: the log of a failed training, below the study's folder; empty else.
        metrics: of the last epoch, with cost and, where it was asked for, test metrics.
    """

    job: JournalJob
    epochs: list[dict[str, float]] = field(default_factory=list)
    status: str = "running"
    reason: str = ""
    raised_at: str = ""
    log: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def role(self) -> Role:
        return self.job.role

    def seen(self, objectives: Iterable[str]) -> bool:
        """Whether it ran its whole budget and has a finite value for every objective."""
        values = (self.metrics.get(name, math.nan) for name in objectives)
        return self.status == "finished" and all(map(math.isfinite, values))


class Records:
    """All trainings of a study, by id, in the order they began."""

    def __init__(self) -> None:
        self._all: dict[str, Record] = {}
        self._by_role: defaultdict[Role, list[Record]] = defaultdict(list)
        self._running: dict[str, Record] = {}

    @classmethod
    def from_events(cls, events: Iterable[Mapping[str, Any]]) -> Records:
        """Rebuild them from a journal."""
        records = cls()
        for event in events:
            records.apply(event)
        return records

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one journal event; the same event twice changes nothing."""
        kind = event["event"]
        if kind == "run":
            job = read_job(event["assignment"])
            if job.id not in self._all:
                record = Record(job)
                self._all[record.id] = self._running[record.id] = record
                self._by_role[record.role].append(record)
        elif kind == "epoch":
            record = self._all[event["id"]]
            if event["epoch"] == len(record.epochs) + 1:
                record.epochs.append(_numbers(event["metrics"]))
                record.metrics.update(record.epochs[-1])
        elif kind == "end":
            record = self._all[event["id"]]
            record.status = event["status"]
            self._running.pop(record.id, None)
            record.reason = event.get("reason") or ""
            record.raised_at, record.log = event.get("raised_at", ""), event.get("log", "")
            record.metrics.update(_numbers(event["metrics"]))

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
        """The study's own: they alone see the test split."""
        return [record for record in self.of("teacher") if record.job.test]

    @property
    def assistants(self) -> list[Record]:
        """Other networks that were trained to teach: assistants, earlier generations."""
        return [record for record in self.of("teacher") if not record.job.test]

    def running(self, *roles: Role) -> list[Record]:
        return [record for record in self._running.values() if record.role in roles]

    def children(self, parent: str, role: Role) -> list[Record]:
        return [record for record in self.of(role) if record.job.parent == parent]

    def front(self, objectives: Mapping[str, str]) -> list[Record]:
        """The non-dominated trials among those that ran their whole budget, best first in the
        first objective.  Validation metrics decide; test metrics are not looked at."""
        whole = [record for record in self.of("trial") if record.seen(objectives)]
        points = pareto.losses([record.metrics for record in whole], objectives)
        front = [whole[i] for i in pareto.pareto(points)]
        first, direction = next(iter(objectives.items()))
        return sorted(front, key=lambda r: r.metrics[first], reverse=direction == "max")

    def choose(self, objectives: Mapping[str, str], count: int) -> list[Record]:
        """At most `count` trials of the front: the best in the first objective, and the others
        spread over the front."""
        front = self.front(objectives)
        points = pareto.losses([record.metrics for record in front], objectives)
        return [front[i] for i in pareto.spread(points, count)]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as numbers: a journal writes what JSON has no number for as text ("nan")."""
    return {name: float(value) for name, value in metrics.items()}


def values_of(records: Sequence[Record], metric: str) -> list[float]:
    """The metric's values over those that finished."""
    return [r.metrics[metric] for r in records if r.status == "finished" and metric in r.metrics]


def teacher_name(record: Record) -> str:
    """A network that teaches, in short."""
    teacher = record.job.study.get("teacher") or {}
    if isinstance(record.job, EvaluateJob) and teacher.get("weights") and not teacher.get("model"):
        return str(teacher["weights"])  # a whole network from MLflow
    return _name(record, "student")


def student_name(record: Record) -> str:
    """The network of a training in short."""
    return teacher_name(record) if record.role == "teacher" else _name(record, "student")


def learns_from(record: Record) -> str:
    """The losses of a training in short, "0.31 kd T=4.1 + 12 at"; "labels" for labels alone."""
    return _name(record, "learns_from")


def pairs_name(record: Record) -> str:
    """The layer pairs of a training, hint to guided; "" where there are none."""
    return _name(record, "pairs")


def _name(record: Record, name: str) -> str:
    """A name the journal keeps; one of an older journal is made from the study."""
    return (record.job.names or names_of(record.job.study))[name]


def scheme_name(record: Record) -> str:
    return record.job.study["scheme"]["name"]


def cost(record: Record, name: str) -> float | None:
    """One of the costs of a training's network, where it is known."""
    return record.metrics.get(name, record.job.metrics.get(name))
