"""State, progress and estimated time left of a running search, computed from its events.

Nothing in this module prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from raykd.study.objectives import COSTS
from raykd.study.short_names import model_name
from raykd.tracking.events import (
    Budget,
    DataLoaded,
    EpochFinished,
    Event,
    Note,
    PhaseStarted,
    RunStarted,
    SlotPlan,
    SlotsPlanned,
    StudyStarted,
    TeacherCacheChanged,
)
from raykd.tracking.journal import events
from raykd.tuning.records import (
    Record,
    Records,
    cost,
    scheme_name,
    teacher_name,
)

STUDENTS = ("trial", "replicate", "alone")
REPLICATES = ("replicate", "alone")
ALL = ("teacher", *STUDENTS)
CLOSING_S = 2.0
"""Estimated seconds that a run takes after its last training."""

RECENT = 60
"""Number of recent epochs used to estimate the pace, so that a slow start is ignored.

With several slots, epochs end in bursts, so the mean is used, not the median of the gaps.
"""

SURE_AFTER = 5.0
"""Seconds of student training before the time left is estimated."""


class View:
    """State of a search, updated with each event; can be read at any time.

    Attributes:
        study: the event of the study; None before it occurs.
        data: the event of the data; None before it occurs.
        records: every training so far.
        plan: the slots; None before they are known, or if there are none.
        budget: the budget; None before it is known.
        finalists: ids of the trials to train again, after they are chosen.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.study: StudyStarted | None = None
        self.data: DataLoaded | None = None
        self.records = Records()
        self.plan: SlotPlan | None = None
        self.budget: Budget | None = None
        self.finalists: set[str] = set()
        self._now = now
        self._began = now()
        self._plan_at = self._began
        self._phase = ""
        self._building: set[str] = set()
        self._first_student: float | None = None
        self._student_epochs = 0
        self._epoch_ends: list[tuple[str, float]] = []
        self._share = 0.0
        self._front: tuple[int, list[Record]] = (0, [])

    def apply(self, event: Event) -> None:
        """Update the view with one event."""
        match event:
            case StudyStarted():
                self.study = event
            case DataLoaded():
                self.data = event
            case PhaseStarted():
                self._phase = event.phase
            case SlotsPlanned():
                self._planned(event)
            case TeacherCacheChanged(status="begun"):
                self._building.add(event.key)
            case TeacherCacheChanged():
                self._building.discard(event.key)
            case _:
                self._count(event)
                self._record(event)

    def _record(self, event: Event) -> None:
        self.records.apply(event)
        if isinstance(event, Note) and event.id is not None and event.tags.get("chosen"):
            self.finalists.add(event.id)

    def _planned(self, event: SlotsPlanned) -> None:
        self.plan, self.budget = event.slots, event.budget
        self._plan_at = self._now()
        self._phase = "slots"
        # Trainings of an interrupted run are only in the journal.
        for earlier in events(Path(event.folder) / "journal.jsonl"):
            self._record(earlier)

    def _count(self, event: Event) -> None:
        """Count the student epochs of this session from the start of the first one."""
        match event:
            case RunStarted() if event.role in STUDENTS:
                self._first_student = self._first_student or self._now()
            case EpochFinished() if event.id in self.records:
                role = self.records[event.id].role
                self._epoch_ends.append((role, self._now()))
                if role in STUDENTS:
                    self._first_student = self._first_student or self._now()
                    self._student_epochs += 1
            case _:
                pass

    # State

    @property
    def settings(self) -> Mapping[str, Any]:
        """Fixed settings of the study, including defaults; empty before the `study` event."""
        return self.study.resolved if self.study is not None else {}

    @property
    def objectives(self) -> Mapping[str, str]:
        return self.settings.get("search", {}).get("objectives", {"val_accuracy": "max"})

    @property
    def watched(self) -> str:
        """Metric shown in tables for each training: the first objective that is not a cost."""
        return next((name for name in self.objectives if name not in COSTS), "val_accuracy")

    @property
    def elapsed(self) -> float:
        """Seconds since this view was created."""
        return self._now() - self._began

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
        ready = [r for r in self.records.teachers if r.status == "finished"]
        return ready[-1] if ready else None

    @property
    def teacher_name(self) -> str:
        if self.teacher is not None:
            return teacher_name(self.teacher)
        teacher = self.settings.get("teacher")
        return model_name(teacher.get("model")) if teacher else "none"

    @property
    def phase(self) -> str:
        """Short description of the current phase."""
        if self._phase == "tracking":
            return "uploading to MLflow"
        if self._phase == "screen":
            return "ranking architectures"
        if self._phase == "packing":
            return "measuring how many trials fit on a GPU"
        if self._phase in ("", "ray"):
            return "waiting for Ray" if self._phase else "reading the data"
        if not any(r.epochs or r.status != "running" for r in self.records.of(*ALL)):
            return "starting the slots"
        running = self.records.running(*ALL)
        if self._building and not running:
            return "computing teacher outputs"
        teachers = [record for record in running if record.role == "teacher"]
        if teachers and len(teachers) == len(running):
            return _teacher_phase(teachers)
        if self.replicates_due:
            return f"replicates {self._replicates_ended}/{self.replicates_due}"
        if not running and self.records.of("trial"):
            return "choosing students"
        return self._trial_phase()

    def _trial_phase(self) -> str:
        trials = self.records.of("trial")
        by_status = {
            s: sum(r.status == s for r in trials) for s in ("running", "stopped", "failed")
        }
        ended = len(trials) - by_status["running"]
        asked = self.budget.trials if self.budget else len(trials)
        said = [f"{by_status['running']} running"]
        said += [f"{by_status['stopped']} stopped early"] if by_status["stopped"] else []
        said += [f"{by_status['failed']} failed"] if by_status["failed"] else []
        return f"trials {ended}/{asked}: {', '.join(said)}"

    @property
    def _replicates_ended(self) -> int:
        return len(self.records.of(*REPLICATES)) - len(self.records.running(*REPLICATES))

    @property
    def replicates_due(self) -> int:
        """Number of trainings of the chosen students; 0 before they are chosen."""
        count = self.budget.replicates if self.budget else 0
        due = sum(count * _arms(self.records[trial]) for trial in self.finalists)
        return max(due, len(self.records.of(*REPLICATES)))

    # Progress

    @property
    def progress(self) -> float:
        """Fraction of the run's time that has passed, 0 to 1; it never decreases.

        The time left is estimated from the durations of student epochs so far, or of teacher
        epochs if there are none yet.
        """
        if self._phase == "tracking":
            self._share = 1.0
        elif self.budget is not None and self._epoch_ends:
            passed = self.elapsed
            self._share = max(self._share, passed / (passed + self._estimated_rest(self.budget)))
        return self._share

    def _estimated_rest(self, budget: Budget) -> float:
        """Estimate the seconds until the end."""
        teacher, student = self._pace("teacher"), self._pace(*STUDENTS)
        pace = student or 0.5 * (teacher or 0.7) / (self.plan.slots if self.plan else 1)
        running = self.records.running("teacher")
        left = sum(r.job.epochs - len(r.epochs) for r in running)
        left += sum(budget.teachers[len(self.records.teachers) :])
        own = sum(r.job.epochs - len(r.epochs) for r in self.records.running(*REPLICATES))
        own += self._replicate_epochs_to_come(budget)
        if not self.finalists:
            each, trials = self._likely_epochs(budget), self.records.running("trial")
            own += sum(max(0.0, each - len(r.epochs)) for r in trials)
            own += self._trials_to_come(budget) * each
        return left * (teacher or pace) + own * pace + CLOSING_S

    def _likely_epochs(self, budget: Budget) -> float:
        """Estimate the epochs of a trial from ended trials, or from the scheduler if too few."""
        ended = [r for r in self.records.of("trial") if r.status != "running"]
        if len(ended) >= 4:
            return self._usual_epochs(budget)
        scheduler = self.settings.get("search", {}).get("scheduler") or {}
        grace = scheduler.get("grace_epochs")
        if grace is None or grace >= budget.epochs:
            return budget.epochs
        return grace + (budget.epochs - grace) / (1 + scheduler.get("reduction", 2))

    def _pace(self, *roles: str) -> float | None:
        """Return the mean seconds between recent epochs of these roles, over all slots.

        Return None before two epochs have ended.
        """
        ends = [end for role, end in self._epoch_ends if role in roles][-RECENT:]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None

    @property
    def time_left(self) -> float | None:
        """Estimated seconds left at the current pace; None if there is no estimate yet."""
        if self._phase == "tracking":
            return 0.0
        if self.budget is None or self._first_student is None:
            return None
        spent = self._now() - self._first_student
        slots = self.plan.slots if self.plan else 1
        if spent < SURE_AFTER or self._student_epochs < 2 * slots:
            return None
        pace = spent / self._student_epochs
        running = self.records.running(*STUDENTS)
        left = sum(r.job.epochs - len(r.epochs) for r in running)
        trials = self._trials_to_come(self.budget) * self._usual_epochs(self.budget) * pace
        if self.budget.max_hours is not None:
            rest = self._plan_at + 3600 * self.budget.max_hours - self._now()
            trials = min(trials, max(0.0, rest))
        return (left + self._replicate_epochs_to_come(self.budget)) * pace + trials

    def _usual_epochs(self, budget: Budget) -> float:
        """Return the mean number of epochs of ended trials, which early stopping can reduce."""
        ended = [len(r.epochs) for r in self.records.of("trial") if r.status != "running"]
        return mean(ended) if ended else budget.epochs

    def _trials_to_come(self, budget: Budget) -> int:
        if self.finalists:
            return 0
        return max(0, budget.trials - len(self.records.of("trial")))

    def _replicate_epochs_to_come(self, budget: Budget) -> int:
        # Before students are chosen: the maximum number, each also trained alone.
        due = self.replicates_due if self.finalists else 2 * budget.chosen * budget.replicates
        return max(0, due - len(self.records.of(*REPLICATES))) * budget.epochs


def run_name(run_id: str) -> str:
    """Shorten an id: "0007/seed-1" for "trial-0007/seed-1"."""
    return run_id.removeprefix("trial-")


def asked_costs(records: Iterable[Record]) -> list[str]:
    """Return the costs that a study measures in addition to parameters and MACs."""
    known = list(records)
    return [name for name in COSTS[2:] if any(cost(one, name) is not None for one in known)]


def _arms(record: Record) -> int:
    return 1 if scheme_name(record) == "alone" else 2


def _teacher_phase(teachers: list[Record]) -> str:
    done = sum(len(record.epochs) for record in teachers)
    asked = sum(record.job.epochs for record in teachers)
    return f"teacher {done}/{asked} epochs" if asked else "evaluating the teacher"
