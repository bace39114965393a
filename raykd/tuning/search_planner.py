"""Planner of a search: draws trials, then trains the best again.  It does not depend on Ray.

A search has three phases; all of them fill the same warm slots:
1. the study's teachers are trained or evaluated;
2. trials are drawn, one point of the space each; other teachers (assistants, earlier generations)
   are trained when the first trial that needs them is drawn.  Trials may pause at rungs and be
   promoted (`PausedTrials`); after the last one, the front is trained to the full budget;
3. when all trials have ended, finalists are selected from the Pareto front by validation metrics.
   Each is trained again under fresh seeds, with its distillation (replicates) and without a
   teacher at the same budget (the null arm).  Only these see the test split.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from raykd.compat.optuna_tpe import PAUSED
from raykd.compat.optuna_trials import resume_trial
from raykd.errors import Infeasible, StudyError
from raykd.runtime.jobs import DIVERGED, OUT_OF_MEMORY, AnyJob, JournalJob, TrainJob
from raykd.schemes import Alone
from raykd.study.candidate import Candidate
from raykd.study.config import read_study
from raykd.study.space.reuse import transfer_values
from raykd.tracking.events import Metrics, Note
from raykd.tuning.optuna_growth import redraw
from raykd.tuning.paused_trials import PausedTrials
from raykd.tuning.planner import Planner
from raykd.tuning.proxy_ranking import SCORE, enqueue_again
from raykd.tuning.records import Record
from raykd.tuning.session import RunContext

MAX_DRAWS = 1000
"""Consecutive draws without a new feasible point before the search stops drawing."""

MAX_REPEATS = 5
"""Repeated points in a row after which a draw is random."""

KEEP_PROBABILITY = 0.8
"""Probability with which a draw near a repeated point keeps each of its values."""

Values = frozenset[tuple[str, Any]]
"""A point of the space by its drawn values."""


class SpaceExhausted(Exception):
    """No further point of the space can be drawn; the message gives the reason."""


Point = TypeVar("Point")


class DistinctDraws(Generic[Point]):
    """Feasible points that Optuna draws, each once, and what the sampler learns of the others.

    The rule stands apart from records and trainings, so that a replay of a search
    (benchmarks/search_quality.py) draws exactly as a search does.

    Args:
        optuna_study: draws the points.
        make: makes the point of a trial, and raises `Infeasible` if there is none.
        learns: whether the sampler's draws depend on results.
        points: number of points of the space.

    Attributes:
        partly_drawn: trials of an interrupted search; they are drawn to their end first.
    """

    def __init__(
        self,
        optuna_study: optuna.Study,
        make: Callable[[optuna.Trial], Point],
        *,
        learns: bool,
        points: float = math.inf,
    ) -> None:
        self.partly_drawn: deque[optuna.Trial] = deque()
        self._optuna_study = optuna_study
        self._make = make
        self._learns = learns
        self._points = points
        self._tried: dict[Values, str] = {}
        self._infeasible: set[Values] = set()

    def draw(self) -> tuple[optuna.Trial, Point]:
        """Draw a feasible point that was not drawn before.

        A sampler that learns suggests the best points of a finite space over and over.  The draws
        after such a repeat are near the repeated point, and random after `MAX_REPEATS` of them.
        Those of a sampler that does not learn are random after `MAX_REPEATS` repeats.

        Raises:
            SpaceExhausted: there is none.
        """
        repeats, repeated = 0, None
        for _ in range(MAX_DRAWS):
            if not self.partly_drawn and self._is_used_up:
                raise SpaceExhausted("every point of the space has been tried")
            with self._sampler_after(repeats, repeated):
                if self.partly_drawn:
                    drawn = self.partly_drawn.popleft()
                else:
                    drawn = self._optuna_study.ask()
                try:
                    point = self._make(drawn)
                except Infeasible as error:
                    self._reject(drawn, error)
                    repeats += repeated is not None
                    continue
            set_feasible(drawn)
            if not self._was_tried(drawn):
                return drawn, point
            repeats += 1
            if self._learns:
                repeated = repeated or drawn
        raise SpaceExhausted(
            f"{MAX_DRAWS} draws in a row were infeasible or tried before; the space is exhausted"
        )

    def remember(self, params: Mapping[str, Any], name: str) -> None:
        """Enter a point that is not drawn again.

        Args:
            params: drawn values.
            name: of its trial.
        """
        self._tried.setdefault(frozenset(params.items()), name)

    def remember_infeasible(self, params: Mapping[str, Any]) -> None:
        """Enter an infeasible point of an earlier process."""
        self._infeasible.add(frozenset(params.items()))

    def pause(self, drawn: optuna.Trial) -> None:
        """Enter that a trial waits for its promotion, so that the sampler learns from it."""
        drawn.set_user_attr(PAUSED, True)

    def complete(self, drawn: optuna.Trial | int, values: Sequence[float]) -> None:
        """Report the results of a trial that ran whole."""
        self._optuna_study.tell(drawn, values)

    def stop(self, drawn: optuna.Trial | int) -> None:
        """Report that a trial was stopped early."""
        self._optuna_study.tell(drawn, state=TrialState.PRUNED)

    def fail(self, drawn: optuna.Trial | int, *, by_point: bool = False) -> None:
        """Report that a trial failed.

        Args:
            drawn: the trial.
            by_point: whether its point is the cause.  For the sampler such a point is as
                infeasible as one that violates a constraint.
        """
        if by_point and isinstance(drawn, optuna.Trial):
            set_infeasible(drawn, "failure")
        self._optuna_study.tell(drawn, state=TrialState.FAIL)

    def _reject(self, drawn: optuna.Trial, error: Infeasible) -> None:
        """Report to Optuna that a point is infeasible.

        Its trial has failed: other samplers than raykd's TPE and GP ignore it.
        """
        self.remember_infeasible(drawn.params)
        drawn.set_user_attr("raykd.infeasible", str(error))
        set_infeasible(drawn)
        self._optuna_study.tell(drawn, state=TrialState.FAIL)
        enqueue_again(self._optuna_study, drawn)

    @property
    def _is_used_up(self) -> bool:
        tried = len(self._tried) + len(self._infeasible)
        return tried >= self._points or getattr(self._optuna_study.sampler, "exhausted", False)

    def _was_tried(self, drawn: optuna.Trial) -> bool:
        """Return True for a point that was drawn before; for Optuna its trial has failed.

        Samplers ignore failed trials.  With the earlier result as another complete trial, TPE
        would take the point for better supported with each repeat, and suggest little else.
        """
        twin = self._tried.get(frozenset(drawn.params.items()))
        if twin is None:
            return False
        drawn.set_user_attr("raykd.same_as", twin)
        self._optuna_study.tell(drawn, state=TrialState.FAIL)
        return True

    @contextmanager
    def _sampler_after(self, repeats: int, repeated: optuna.Trial | None) -> Iterator[None]:
        """Replace the sampler for a draw after repeated points."""
        sampler = self._optuna_study.sampler
        seed = len(self._optuna_study.get_trials(deepcopy=False))
        if isinstance(sampler, optuna.samplers.BruteForceSampler):
            pass
        elif repeats > MAX_REPEATS or (repeats == MAX_REPEATS and repeated is None):
            self._optuna_study.sampler = optuna.samplers.RandomSampler(seed)
        elif repeated is not None:
            self._optuna_study.sampler = NearSampler(seed, repeated)
        try:
            yield
        finally:
            self._optuna_study.sampler = sampler


class NearSampler(optuna.samplers.RandomSampler):
    """Draws near a point: each of its values is kept with `KEEP_PROBABILITY`, or random.

    Args:
        seed: of the draws.
        point: trial whose values are kept.
    """

    def __init__(self, seed: int, point: optuna.Trial) -> None:
        super().__init__(seed)
        self._keep = random.Random(seed)
        self._params, self._distributions = point.params, point.distributions

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        has_value = self._distributions.get(param_name) == param_distribution
        if has_value and self._keep.random() < KEEP_PROBABILITY:
            return self._params[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


def set_feasible(drawn: optuna.Trial) -> None:
    """Enter that a trial's point violates no constraint."""
    _set_constraint(drawn, "feasible", 0.0)


def set_infeasible(drawn: optuna.Trial, constraint: str = "feasible") -> None:
    """Enter that a trial's point violates a constraint."""
    _set_constraint(drawn, constraint, 1.0)


def _set_constraint(drawn: optuna.Trial, name: str, excess: float) -> None:
    if name not in drawn.constraints:  # a resumed trial may have it already
        drawn.set_constraint(name, excess)


class OptunaDraws:
    """Feasible points that Optuna draws, each once, and their results for Optuna.

    Args:
        optuna_study: draws the points.
        context: study, costs and records of the run.
    """

    def __init__(self, optuna_study: optuna.Study, context: RunContext) -> None:
        self._optuna_study = optuna_study
        self._bound = context.study.bind(context.signature)
        self._costs = context.costs
        self._records = context.records
        self._objectives = context.search.objectives
        self._points = self._bound.space.size.points or math.inf
        learns = context.search.sampler.learns
        self._distinct = DistinctDraws(
            optuna_study, self._candidate, learns=learns, points=self._points
        )
        self._drawn: dict[str, optuna.Trial | int] = {}  # unfinished trials, or their numbers
        self._pruned: set[str] = set()  # trials that an extended search may still complete
        self._synchronize()

    @property
    def is_finite(self) -> bool:
        """True if the space has a finite number of points."""
        return self._points < math.inf

    def draw(self) -> tuple[optuna.Trial, Candidate]:
        """Draw a feasible point that was not drawn before.

        Raises:
            SpaceExhausted: there is none.
        """
        return self._distinct.draw()

    def _candidate(self, drawn: optuna.Trial) -> Candidate:
        candidate = self._bound.draw(drawn)
        self._costs.check(candidate)
        return candidate

    def start(self, drawn: optuna.Trial, record_id: str) -> None:
        """Record which training a drawn point has become."""
        drawn.set_user_attr("raykd.id", record_id)
        self._drawn[record_id] = drawn
        self._distinct.remember(drawn.params, record_id)

    def report(self, record: Record, epoch: int) -> None:
        """Report an intermediate value to Optuna, which supports it for a single objective."""
        drawn = self._drawn.get(record.id)
        objective = next(iter(self._objectives))
        single = len(self._objectives) == 1
        if single and isinstance(drawn, optuna.Trial) and objective in record.metrics:
            drawn.report(record.metrics[objective], epoch)

    def pause(self, record: Record) -> None:
        """Enter that a trial waits for its promotion, so that the sampler learns from it."""
        drawn = self._drawn.get(record.id)
        if isinstance(drawn, optuna.Trial):
            self._distinct.pause(drawn)

    def finish(self, record: Record) -> None:
        """Report the result of a trial to Optuna."""
        drawn = self._drawn.pop(record.id, None)
        if drawn is None:
            if record.id in self._pruned and record.is_complete(self._objectives):
                self._restore_trial(record)
            return
        if record.is_complete(self._objectives):
            self._distinct.complete(drawn, self._values(record))
        elif record.status == "stopped":
            self._distinct.stop(drawn)
        else:
            by_point = record.reason.startswith((OUT_OF_MEMORY, DIVERGED))
            self._distinct.fail(drawn, by_point=by_point)

    def close(self) -> None:
        """Report the points whose drawing an earlier run did not finish as failed."""
        for drawn in self._distinct.partly_drawn:
            self._distinct.fail(drawn)

    def _synchronize(self) -> None:
        """Report trials that ended before a resume, and resume those that did not."""
        in_optuna: dict[str, set[TrialState]] = {}
        for trial in self._optuna_study.get_trials(False):
            in_optuna.setdefault(str(trial.user_attrs.get("raykd.id")), set()).add(trial.state)
        self._pruned = {id for id, states in in_optuna.items() if states == {TrialState.PRUNED}}
        for record in self._records.of("trial"):
            was_completed = record.id in self._pruned and record.is_complete(self._objectives)
            if record.id not in in_optuna or was_completed:
                self._restore_trial(record)
        for trial in self._optuna_study.get_trials(deepcopy=False):
            record_id = str(trial.user_attrs.get("raykd.id"))
            if record_id in self._records:
                self._distinct.remember(trial.params, record_id)
            elif "raykd.infeasible" in trial.user_attrs:
                self._distinct.remember_infeasible(trial.params)
            if trial.state != TrialState.RUNNING:
                continue
            if record_id not in self._records:
                # The search was interrupted while it drew this point.  Finish it, or a grid would
                # count the point as tried.
                self._distinct.partly_drawn.append(resume_trial(self._optuna_study, trial))
                continue
            self._drawn[record_id] = trial.number
            if self._records[record_id].status not in ("running", "paused"):
                self.finish(self._records[record_id])

    def _restore_trial(self, record: Record) -> None:
        """Give Optuna a trial of the journal that its file has lost."""
        values = transfer_values(self._bound.space, record.job.study).params
        drawn = redraw(self._bound, values)
        if drawn is None:
            return
        complete = record.is_complete(self._objectives)
        states = {"stopped": TrialState.PRUNED, "running": TrialState.RUNNING}
        states["paused"] = TrialState.RUNNING
        ended = TrialState.COMPLETE if complete else TrialState.FAIL
        self._optuna_study.add_trial(
            optuna.trial.create_trial(
                state=states.get(record.status, ended),
                values=self._values(record) if complete else None,
                params=drawn.params,
                distributions=drawn.distributions,
                user_attrs={"raykd.id": record.id},
                intermediate_values=self._intermediate_values(record),
                constraints={"feasible": 0.0},
            )
        )

    def _values(self, record: Record) -> list[float]:
        return [record.metrics[name] for name in self._objectives]

    def _intermediate_values(self, record: Record) -> dict[int, float]:
        """Return the objective after each epoch; none for several, as `report` reports none."""
        if len(self._objectives) > 1:
            return {}
        [name] = self._objectives
        epochs = enumerate(record.epochs, 1)
        return {epoch: metrics[name] for epoch, metrics in epochs if name in metrics}


class SearchPlanner(Planner):
    """Draws trials of a study's space, then selects and replicates finalists.

    Args:
        context: study, data, storage and records of the run.
        optuna_study: draws the points.
        clock: seconds, for the time budget.

    Attributes:
        optuna_study: draws the points.
        draws: its feasible points.
    """

    def __init__(
        self,
        context: RunContext,
        optuna_study: optuna.Study,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(context)
        self.optuna_study = optuna_study
        self._clock = clock
        self._deadline = (
            clock() + self.search.max_hours * 3600 if self.search.max_hours else float("inf")
        )
        self._finalists: list[Record] | None = None
        self.draws = OptunaDraws(optuna_study, context)
        # once finalists were selected, no more trials are drawn: they would change the selection
        self._exhausted = not self.records.may_draw
        if self.records.may_draw:  # of an extended search, until they are selected again
            for trial in sorted(self.records.chosen):
                self._publish(Note(trial, {"chosen": "false"}, step=None))
        self._paused = PausedTrials.of(context, self._publish)
        if self._paused is not None and not self._exhausted:
            self._paused.restore()
        self._resume()

    def next(self) -> AnyJob | None:
        """Return the next job: a promoted trial before any other."""
        if self._paused is not None and not self.fatal and self._may_promote():
            self._continue(self._paused.promote())
        return super().next()

    def keeps(self, job_id: str, metrics: Metrics) -> bool:
        if self._paused is None:
            return True
        promoted_at = self.records[job_id].promoted_at or 0
        # an epoch up to there was trained again, because the state was lost or removed
        return metrics["epoch"] <= promoted_at or self._paused.rule.keeps(job_id, metrics)

    def leave(self, job_id: str) -> None:
        is_running = job_id in self.records and self.records[job_id].status == "running"
        if self._paused is None or not is_running or not self._paused.pause(job_id):
            self.end(job_id, "stopped")
            return
        self.draws.pause(self.records[job_id])
        for trial in self._paused.excess():
            self.end(trial, "stopped")

    def draw_ahead(self) -> None:
        """Draw the next trial while the slots are busy, so that none waits for the sampler.

        The sampler then does not have the results of the running trials, as with several slots.
        With `max_hours`, trials are drawn only when they start.  In a finite space, too, because
        a point that is drawn again gets the result of its first trial.
        """
        on_time = self._deadline < math.inf or self.draws.is_finite
        if on_time or self._queue or self.fatal or not self._may_draw():
            return
        try:
            self._enqueue_trial()
        except StudyError as error:  # a scheme names weights that cannot be read
            self._abort(str(error))

    @property
    def finalists(self) -> list[Record]:
        return list(self._finalists or [])

    def _enqueue_more(self) -> bool:
        if self._may_draw() and self._enqueue_trial():
            return True
        if not self._may_select():
            return False
        if self._paused is not None:
            jobs = self._paused.finish()
            for job in reversed(jobs):
                self._continue(job)
            if jobs:
                return True
            for trial in self._paused.close():
                self.end(trial, "stopped")
        self._enqueue_finalists()
        return True

    def _has_more(self) -> bool:
        return self._may_promote() or self._may_draw() or self._may_select()

    def _may_promote(self) -> bool:
        """Return whether a paused trial may continue; after `max_hours` none does."""
        if self._paused is None or self._finalists is not None or self._clock() >= self._deadline:
            return False
        return self._paused.rule.candidate is not None

    def _continue(self, job: JournalJob) -> None:
        """Put a promoted trial first in the queue."""
        self._queue.appendleft(job)
        if job.id not in self.records.reopened:
            return
        try:  # its teachers may have been removed since it was stopped
            self._request_teachers(self.records[job.id])
        except StudyError as error:  # a scheme names weights that cannot be read
            self._abort(str(error))

    @property
    def _all_enqueued(self) -> bool:
        return self._finalists is not None

    def _trial_ended(self, record: Record) -> None:
        self.draws.finish(record)

    def _epoch_ended(self, record: Record, epoch: int) -> None:
        self.draws.report(record, epoch)

    # Phase 2: trials

    def _may_draw(self) -> bool:
        return (
            not self._exhausted
            and self._teachers.own_are_ready
            and self._waiting_trials < self.context.slots
            and self._trials < self.search.trials
            and self._clock() < self._deadline
        )

    @property
    def _trials(self) -> int:
        """Number of drawn trials, including those that wait for their teachers."""
        return len(self.records.of("trial")) + self._waiting_trials

    @property
    def _waiting_trials(self) -> int:
        """Number of drawn trials that have not started."""
        return sum(
            isinstance(job, TrainJob) and job.role == "trial" and job.id not in self.records
            for job in self._queue
        )

    def _enqueue_trial(self) -> bool:
        """Draw a point and queue its training; return False if there is no further point."""
        try:
            drawn, candidate = self.draws.draw()
        except SpaceExhausted as reason:
            self._exhausted = True
            self.note = str(reason)
            return False
        number = self._trials
        while f"trial-{number:04d}" in self.records:  # lines of a journal may have been removed
            number += 1
        record_id = f"trial-{number:04d}"
        self.draws.start(drawn, record_id)
        score = drawn.user_attrs.get(SCORE)  # of a zero-cost proxy
        scores = {} if score is None else {SCORE: float(score)}
        self._enqueue_student(record_id, candidate.resolved, scores=scores)
        return True

    # Phase 3: finalists and the null arm

    def _may_select(self) -> bool:
        return (
            self._finalists is None
            and not self._queue
            and not self._may_draw()
            and not self.records.running("teacher", "trial")
        )

    def _enqueue_finalists(self) -> None:
        self.draws.close()
        self._finalists = self.records.choose(self.search.objectives, self.search.finalists)
        for record in self._finalists:
            self._publish(Note(record.id, {"chosen": "true"}, step=None))
        for number in range(1, self.search.replicates + 1):
            for record in self._finalists:
                self._enqueue_replicate(record, number)

    def _enqueue_replicate(self, record: Record, number: int) -> None:
        """Queue a finalist under a fresh seed, and its student without a teacher."""
        study = read_study(record.job.study)
        seed = study.seed + number
        replicate_id, baseline_id = f"{record.id}/seed-{number}", f"{record.id}/alone-{number}"
        fields = {"parent": record.id, "seed": seed, "test": True}
        if replicate_id not in self.records:
            keep = f"{self.context.folder}/students/{replicate_id.replace('/', '.')}.pt"
            replicate = replace(study, seed=seed)
            self._enqueue_student(replicate_id, replicate, role="replicate", keep=keep, **fields)
        has_labels = study.data.labels_per_class != 0
        is_taught = not isinstance(study.scheme, Alone)
        if is_taught and has_labels and baseline_id not in self.records:
            baseline = replace(study, seed=seed, scheme=Alone(), knowledge=())
            self._enqueue_student(baseline_id, baseline, role="alone", **fields)
