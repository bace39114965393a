"""Records of every training of a study, built from the events of its journal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raykd import pareto
from raykd.runtime.jobs import EvaluateJob, JournalJob, Role, read_job
from raykd.study.short_names import names_of
from raykd.tracking.events import EpochFinished, Event, RunEnded, RunStarted


@dataclass
class Record:
    """Record of one training.

    Attributes:
        job: of the training.
        epochs: metrics of each finished epoch.
        status: "running", "finished", "stopped" (early, by the scheduler) or "failed".
        reason: of its failure; "" if it has not failed.
        raised_at: file and line of the user's own code that raised the error, "FILE:LINE", or "".
        log: file of its log, below the study's folder, if it failed; else "".
        metrics: of the last epoch, with costs and, if requested, test metrics.
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

    def is_complete(self, objectives: Iterable[str]) -> bool:
        """Return True if it ran its whole budget and has a finite value for every objective."""
        values = (self.metrics.get(name, math.nan) for name in objectives)
        return self.status == "finished" and all(map(math.isfinite, values))


class Records:
    """All trainings of a study, by id, in the order they began."""

    def __init__(self) -> None:
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
                    record = Record(job)
                    self._all[record.id] = self._running[record.id] = record
                    self._by_role[record.role].append(record)
            case EpochFinished():
                record = self._all[event.id]
                if event.epoch == len(record.epochs) + 1:
                    record.epochs.append(dict(event.metrics))
                    record.metrics.update(event.metrics)
            case RunEnded():
                record = self._all[event.id]
                self._running.pop(record.id, None)
                record.status, record.reason = event.status, event.reason
                record.raised_at, record.log = event.raised_at, event.log
                record.metrics.update(event.metrics)

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


def values_of(records: Sequence[Record], metric: str) -> list[float]:
    """Return the values of a metric over finished trainings."""
    return [r.metrics[metric] for r in records if r.status == "finished" and metric in r.metrics]


def teacher_name(record: Record) -> str:
    """Return the short name of a teacher."""
    teacher = record.job.study.get("teacher") or {}
    if isinstance(record.job, EvaluateJob) and teacher.get("weights") and not teacher.get("model"):
        return str(teacher["weights"])  # a whole network from MLflow
    return _name(record, "student")


def student_name(record: Record) -> str:
    """Return the short name of a training's network."""
    return teacher_name(record) if record.role == "teacher" else _name(record, "student")


def learns_from(record: Record) -> str:
    """Return the losses of a training, "0.31 kd T=4.1 + 12 at"; "labels" for labels alone."""
    return _name(record, "learns_from")


def pairs_name(record: Record) -> str:
    """Return the layer pairs of a training, hint to guided; "" without pairs."""
    return _name(record, "pairs")


def _name(record: Record, name: str) -> str:
    """Return a name from the journal; older journals have none, so it is built from the study."""
    return (record.job.names or names_of(record.job.study))[name]


def scheme_name(record: Record) -> str:
    return record.job.study["scheme"]["name"]


def cost(record: Record, name: str) -> float | None:
    """Return a cost of a training's network; None if it is unknown."""
    return record.metrics.get(name, record.job.metrics.get(name))
