"""Progress and time left of a running search, estimated from the durations of its epochs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING

from raykd.tracking.events import Budget, EpochFinished, Event, RunStarted, SlotsPlanned

if TYPE_CHECKING:
    from raykd.report.run_state import RunState

STUDENTS = ("trial", "replicate", "alone")
"""Roles of the runs that train a student."""

REPLICATES = ("replicate", "alone")
"""Roles of the runs that train a finalist again, with and without its teacher."""

CLOSING_S = 2.0
"""Estimated seconds that a run takes after its last training."""

RECENT = 60
"""Number of recent epochs used to estimate the pace, so that a slow start is ignored.

With several slots, epochs end in bursts, so the mean is used, not the median of the gaps.
"""

MIN_STUDENT_SECONDS = 5.0
"""Seconds of student training before the time left is estimated."""


class TimeEstimate:
    """Progress and time left of a run.

    Args:
        state: state of the run; it applies each event before the estimate does.
        now: returns monotonic time in seconds.
    """

    def __init__(self, state: RunState, now: Callable[[], float]) -> None:
        self._state = state
        self._now = now
        self._began = now()
        self._planned_at = self._began
        self._first_student: float | None = None
        self._student_epochs = 0
        self._epoch_ends: list[tuple[str, float]] = []
        self._counted, self._counted_at = 0.0, self._began
        self._progress = 0.0

    def apply(self, event: Event) -> None:
        """Count the student epochs of this session from the start of the first one."""
        match event:
            case SlotsPlanned():
                self._planned_at = self._now()
            case RunStarted() if event.role in STUDENTS:
                self._first_student = self._first_student or self._now()
            case EpochFinished() if event.id in self._state.records:
                role, now = self._state.records[event.id].role, self._now()
                self._epoch_ends.append((role, now))
                if role in STUDENTS:
                    self._first_student = self._first_student or now
                    self._student_epochs += 1
                self._advance(now)
            case _:
                pass

    def _advance(self, now: float) -> None:
        """Count the time since the last epoch as progress.

        It takes a share of what is left of the progress, by the estimated rest: if earlier
        estimates of the rest were too short, progress slows down, but does not stop.
        """
        if self._state.budget is not None and (self._pace("teacher") or self._pace(*STUDENTS)):
            self._counted += (1 - self._counted) * self._share(now - self._counted_at)
            self._counted_at = now

    def _share(self, passed: float) -> float:
        """Return the share of a time in itself and the estimated rest."""
        assert self._state.budget is not None
        return passed / (passed + self._estimate_rest(self._state.budget))

    @property
    def elapsed(self) -> float:
        """Seconds since the state was created."""
        return self._now() - self._began

    @property
    def progress(self) -> float:
        """Fraction of the run's time that has passed, 0 to 1; it never decreases.

        The time left is estimated from the durations of student epochs so far, or of teacher
        epochs if there are none yet.
        """
        if self._state.phase_name == "tracking":
            self._progress = 1.0
        elif self._counted:
            # between two epochs it rises for the time of one, and then waits for the next
            passed = min(self._now() - self._counted_at, self._pace(self._epoch_ends[-1][0]) or 0)
            progress = self._counted + (1 - self._counted) * self._share(passed)
            self._progress = max(self._progress, progress)
        return self._progress

    @property
    def time_left(self) -> float | None:
        """Estimated seconds left at the current pace; None if there is no estimate yet."""
        state = self._state
        if state.phase_name == "tracking":
            return 0.0
        if state.budget is None or self._first_student is None:
            return None
        spent = self._now() - self._first_student
        slots = state.plan.slots if state.plan else 1
        if spent < MIN_STUDENT_SECONDS or self._student_epochs < 2 * slots:
            return None
        pace = spent / self._student_epochs
        running = state.records.running(*STUDENTS)
        left = sum(r.job.epochs - len(r.epochs) for r in running)
        trials = self._trials_left(state.budget) * self._mean_trial_epochs(state.budget) * pace
        if state.budget.max_hours is not None:
            rest = self._planned_at + 3600 * state.budget.max_hours - self._now()
            trials = min(trials, max(0.0, rest))
        return (left + self._replicate_epochs_left(state.budget)) * pace + trials

    def _estimate_rest(self, budget: Budget) -> float:
        """Estimate the seconds until the end."""
        state, running = self._state, self._state.records.running
        teacher, student = self._pace("teacher"), self._pace(*STUDENTS)
        pace = student or 0.5 * (teacher or 0.7) / (state.plan.slots if state.plan else 1)
        teacher_epochs = sum(r.job.epochs - len(r.epochs) for r in running("teacher"))
        teacher_epochs += sum(budget.teachers[len(state.records.teachers) :])
        student_epochs = sum(r.job.epochs - len(r.epochs) for r in running(*REPLICATES))
        student_epochs += self._replicate_epochs_left(budget)
        if not state.finalists:
            each = self._expected_trial_epochs(budget)
            student_epochs += sum(max(0.0, each - len(r.epochs)) for r in running("trial"))
            student_epochs += self._trials_left(budget) * each
        return teacher_epochs * (teacher or pace) + student_epochs * pace + CLOSING_S

    def _pace(self, *roles: str) -> float | None:
        """Return the mean seconds between recent epochs of these roles, over all slots.

        Return None before two epochs have ended.
        """
        ends = [end for role, end in self._epoch_ends if role in roles][-RECENT:]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None

    def _expected_trial_epochs(self, budget: Budget) -> float:
        """Estimate the epochs of a trial from ended trials, or from the scheduler if too few."""
        ended = [r for r in self._state.records.of("trial") if r.status != "running"]
        if len(ended) >= 4:
            return self._mean_trial_epochs(budget)
        scheduler = self._state.settings.get("search", {}).get("scheduler") or {}
        grace = scheduler.get("grace_epochs")
        if grace is None or grace >= budget.epochs:
            return budget.epochs
        return grace + (budget.epochs - grace) / (1 + scheduler.get("reduction", 2))

    def _mean_trial_epochs(self, budget: Budget) -> float:
        """Return the mean number of epochs of ended trials, which early stopping can reduce."""
        trials = self._state.records.of("trial")
        ended = [len(r.epochs) for r in trials if r.status != "running"]
        return mean(ended) if ended else budget.epochs

    def _trials_left(self, budget: Budget) -> int:
        """Return the number of trials that have not started."""
        if self._state.finalists:
            return 0
        return max(0, budget.trials - len(self._state.records.of("trial")))

    def _replicate_epochs_left(self, budget: Budget) -> int:
        """Return the number of epochs of replicates that have not started."""
        # Before finalists are selected: the maximum number, each also trained alone.
        finalists = self._state.finalists
        maximum = 2 * budget.chosen * budget.replicates
        due = self._state.replicates_due if finalists else maximum
        return max(0, due - len(self._state.records.of(*REPLICATES))) * budget.epochs
