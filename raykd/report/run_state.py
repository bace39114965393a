"""State of a running search, computed from its events.

Nothing in this module prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from raykd.metrics import lead_metric
from raykd.report.time_estimate import REPLICATES, STUDENTS, TimeEstimate
from raykd.study.objectives import COSTS
from raykd.study.short_names import model_name
from raykd.tracking.events import (
    Budget,
    DataLoaded,
    Event,
    PhaseStarted,
    SlotPlan,
    SlotsPlanned,
    StudyStarted,
    TeacherCacheChanged,
)
from raykd.tracking.journal import read
from raykd.tuning.records import Record, Records, cost, scheme_name, teacher_name

TRAININGS = ("teacher", *STUDENTS)
"""Roles of the runs that train a network."""

PHASES = {
    "": "reading the data",
    "ray": "waiting for Ray",
    "screen": "ranking architectures",
    "packing": "measuring how many trials fit on a GPU",
    "tracking": "uploading to MLflow",
}
"""Description of the phases in which nothing is trained."""


class RunState:
    """State of a search, updated with each event; can be read at any time.

    Args:
        now: returns monotonic time in seconds.

    Attributes:
        study: the event of the study; None before it occurs.
        data: the event of the data; None before it occurs.
        records: every training so far.
        plan: the slots; None before they are known, or if there are none.
        budget: the budget; None before it is known.
        phase_name: name of the last phase that has started; "" before the first.
        estimate: progress and time left.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.study: StudyStarted | None = None
        self.data: DataLoaded | None = None
        self.records = Records()
        self.plan: SlotPlan | None = None
        self.budget: Budget | None = None
        self.phase_name = ""
        self.estimate = TimeEstimate(self, now)
        self._building: set[str] = set()
        self._front: tuple[int, list[Record]] = (0, [])

    def apply(self, event: Event) -> None:
        """Update the state with one event."""
        match event:
            case StudyStarted():
                self.study = event
            case DataLoaded():
                self.data = event
            case PhaseStarted():
                self.phase_name = event.phase
            case SlotsPlanned():
                self._plan_slots(event)
            case TeacherCacheChanged(status="begun"):
                self._building.add(event.key)
            case TeacherCacheChanged():
                self._building.discard(event.key)
            case _:
                self.records.apply(event)
        self.estimate.apply(event)

    def _plan_slots(self, event: SlotsPlanned) -> None:
        self.plan, self.budget = event.slots, event.budget
        self.phase_name = "slots"
        # Trainings of an interrupted run are only in the journal.
        for line in read(Path(event.folder) / "journal.jsonl"):
            if line.event is not None:
                self.records.apply(line.event)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Fixed settings of the study, including defaults; empty before the `study` event."""
        return self.study.resolved if self.study is not None else {}

    @property
    def objectives(self) -> Mapping[str, str]:
        return self.settings.get("search", {}).get("objectives", {"val_accuracy": "max"})

    @property
    def lead(self) -> str:
        """Metric by which networks are compared, without a split."""
        return lead_metric(self.settings)

    @property
    def main_metric(self) -> str:
        """Metric of each training in tables: the first objective that is not a cost."""
        return next((name for name in self.objectives if name not in COSTS), f"val_{self.lead}")

    @property
    def front(self) -> list[Record]:
        """Non-dominated trials so far, sorted by the first objective, best first."""
        ended = len(self.records.of("trial")) - len(self.records.running("trial"))
        if ended != self._front[0]:
            self._front = ended, self.records.front(self.objectives)
        return self._front[1]

    @property
    def teacher(self) -> Record | None:
        """Teacher of the study that became ready last."""
        ready = [record for record in self.records.teachers if record.status == "finished"]
        return ready[-1] if ready else None

    @property
    def teacher_name(self) -> str:
        if self.teacher is not None:
            return teacher_name(self.teacher)
        teacher = self.settings.get("teacher")
        return model_name(teacher.get("model")) if teacher else "none"

    @property
    def finalists(self) -> set[str]:
        """Ids of the trials to train again, after they are selected."""
        return self.records.chosen

    @property
    def replicates_due(self) -> int:
        """Number of trainings of the finalists; 0 before they are selected."""
        count = self.budget.replicates if self.budget else 0
        arms = [1 if scheme_name(self.records[trial]) == "alone" else 2 for trial in self.finalists]
        return max(count * sum(arms), len(self.records.of(*REPLICATES)))

    @property
    def phase(self) -> str:
        """Short description of the current phase."""
        if self.phase_name in PHASES:
            return PHASES[self.phase_name]
        if not any(r.epochs or r.status != "running" for r in self.records.of(*TRAININGS)):
            return "starting the slots"
        running = self.records.running(*TRAININGS)
        if self._building and not running:
            return "computing teacher outputs"
        teachers = [record for record in running if record.role == "teacher"]
        if teachers and len(teachers) == len(running):
            return _teacher_phase(teachers)
        if self.replicates_due and (self.finalists or not self.records.may_draw):
            replicates = self.records.of(*REPLICATES)
            ended = len(replicates) - len(self.records.running(*REPLICATES))
            return f"replicates {ended}/{self.replicates_due}"
        trials = self.records.of("trial")
        if trials and not running:
            return "selecting finalists"
        return _trial_phase(trials, self.budget.trials if self.budget else len(trials))


def _teacher_phase(teachers: list[Record]) -> str:
    done = sum(len(record.epochs) for record in teachers)
    planned = sum(record.job.epochs for record in teachers)
    return f"teacher {done}/{planned} epochs" if planned else "evaluating the teacher"


def _trial_phase(trials: list[Record], planned: int) -> str:
    statuses = ("running", "paused", "stopped", "failed")
    running, paused, stopped, failed = (sum(r.status == s for r in trials) for s in statuses)
    counts = [f"{running} running"]
    counts += [f"{paused} paused"] if paused else []
    counts += [f"{stopped} stopped early"] if stopped else []
    counts += [f"{failed} failed"] if failed else []
    return f"trials {len(trials) - running}/{planned}: {', '.join(counts)}"


def run_name(run_id: str) -> str:
    """Shorten an id: "0007/seed-1" for "trial-0007/seed-1"."""
    return run_id.removeprefix("trial-")


def measured_costs(records: Iterable[Record]) -> list[str]:
    """Return the costs that a study measures in addition to parameters and MACs."""
    listed = list(records)
    return [name for name in COSTS[2:] if any(cost(record, name) is not None for record in listed)]
