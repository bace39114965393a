"""Planner of a search: draws trials, then trains the best again.  It does not depend on Ray.

A search has three phases; all of them fill the same warm slots:
1. the study's teachers are trained or evaluated;
2. trials are drawn, one point of the space each; other teachers (assistants, earlier generations)
   are trained when the first trial that needs them is drawn;
3. when all trials have ended, finalists are selected from the Pareto front by validation metrics.
   Each is trained again under fresh seeds, with its distillation (replicates) and without a
   teacher at the same budget (the null arm).  Only these see the test split.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState

from raykd.compat.optuna_tpe import LEARNABLE_STATES
from raykd.compat.optuna_trials import resume_trial
from raykd.errors import Infeasible, StudyError
from raykd.runtime.jobs import TrainJob
from raykd.schemes import Alone
from raykd.study.config import Study, read_study
from raykd.tracking.events import Note
from raykd.tuning.planner import Planner
from raykd.tuning.proxy_ranking import enqueue_again, score_of
from raykd.tuning.records import Record
from raykd.tuning.session import RunContext

MAX_DRAWS = 1000
"""Consecutive draws without a new feasible point before the search stops drawing."""


Values = frozenset[tuple[str, Any]]
"""A point of the space by its drawn values."""


class SearchPlanner(Planner):
    """Draws trials of a study's space, then selects and replicates finalists.

    Args:
        context: study, data, storage and records of the run.
        optuna_study: draws the points.
        clock: seconds, for the time budget.

    Attributes:
        optuna_study: draws the points.
        has_feasible: whether Optuna has a trial that ran.
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
        self._exhausted = False
        self._drawn: dict[str, optuna.Trial | int] = {}  # unfinished trials, or their numbers
        self._points = self._bound.space.size.points or math.inf
        self._tried: dict[Values, str] = {}
        self._infeasible: set[Values] = set()
        self.has_feasible = False
        self._partly_drawn: deque[optuna.Trial] = deque()
        self._finalists: list[Record] | None = None
        self._synchronize_optuna()
        # once finalists were selected, no more trials are drawn: they would change the selection
        self._exhausted = bool(self.records.of("replicate", "alone"))
        self._resume()

    def draw_ahead(self) -> None:
        """Draw the next trial while the slots are busy, so that none waits for the sampler.

        The sampler then does not have the results of the running trials, as with several slots.
        With `max_hours`, trials are drawn only when they start.  In a finite space, too, because
        a point that is drawn again gets the result of its first trial.
        """
        on_time = self._deadline < math.inf or self._points < math.inf
        if on_time or self._queue or self.fatal or not self._may_draw():
            return
        try:
            self._draw()
        except StudyError as error:  # a scheme names weights that cannot be read
            self._abort(str(error))

    @property
    def finalists(self) -> list[Record]:
        return list(self._finalists or [])

    def _enqueue_more(self) -> bool:
        if self._may_draw() and self._draw():
            return True
        if not self._may_select():
            return False
        self._enqueue_finalists()
        return True

    def _has_more(self) -> bool:
        return self._may_draw() or self._may_select()

    @property
    def _all_enqueued(self) -> bool:
        return self._finalists is not None

    def _trial_ended(self, record: Record) -> None:
        self._tell_optuna(record)

    def _epoch_ended(self, record: Record, epoch: int) -> None:
        """Report an intermediate value to Optuna, which supports it for a single objective."""
        drawn = self._drawn.get(record.id)
        objective = next(iter(self.search.objectives))
        single = len(self.search.objectives) == 1
        if single and isinstance(drawn, optuna.Trial) and objective in record.metrics:
            drawn.report(record.metrics[objective], epoch)

    def _synchronize_optuna(self) -> None:
        """Report trials that ended before a resume, and resume those that did not."""
        for trial in self.optuna_study.get_trials(deepcopy=False):
            record_id = str(trial.user_attrs.get("raykd.id"))
            if record_id in self.records:
                self._remember(trial.params, record_id)
                self.has_feasible |= trial.state in LEARNABLE_STATES
            elif "raykd.infeasible" in trial.user_attrs:
                self._infeasible.add(frozenset(trial.params.items()))
            if trial.state != TrialState.RUNNING:
                continue
            if record_id not in self.records:
                # The search was interrupted while it drew this point.  Finish it, or a grid would
                # count the point as tried.
                self._partly_drawn.append(resume_trial(self.optuna_study, trial))
                continue
            self._drawn[record_id] = trial.number
            if self.records[record_id].status != "running":
                self._tell_optuna(self.records[record_id])

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

    def _draw(self) -> bool:
        """Queue one new feasible point; return False if there is none."""
        for _ in range(MAX_DRAWS):
            if self._partly_drawn:
                drawn = self._partly_drawn.popleft()
            elif self._is_used_up:
                return self._stop_drawing("every point of the space has been tried")
            else:
                drawn = self.optuna_study.ask()
            try:
                candidate = self._bound.draw(drawn)
                self.context.costs.check(candidate)
            except Infeasible as error:
                self._reject(drawn, error)
                continue
            _set_constraint(drawn, 0.0)
            if not self._was_tried(drawn):
                self._enqueue_trial(drawn, candidate.resolved)
                return True
        return self._stop_drawing(
            f"{MAX_DRAWS} draws in a row were infeasible or tried before; the space is exhausted"
        )

    def _reject(self, drawn: optuna.Trial, error: Infeasible) -> None:
        """Report to Optuna that a point is infeasible.

        TPE treats its best trials as good, and would look for infeasible points as long as it has
        no feasible ones: with hundreds of slots, until the first trial ends.  It ignores failed
        trials.
        """
        self._infeasible.add(frozenset(drawn.params.items()))
        drawn.set_user_attr("raykd.infeasible", str(error))
        _set_constraint(drawn, 1.0)
        state = TrialState.PRUNED if self.has_feasible else TrialState.FAIL
        self.optuna_study.tell(drawn, state=state)
        enqueue_again(self.optuna_study, drawn)

    @property
    def _is_used_up(self) -> bool:
        tried = len(self._tried) + len(self._infeasible)
        return tried >= self._points or getattr(self.optuna_study.sampler, "exhausted", False)

    def _stop_drawing(self, reason: str) -> bool:
        self._exhausted = True
        self.note = reason
        return False

    def _was_tried(self, drawn: optuna.Trial) -> bool:
        """Return True for a point that was drawn before; Optuna gets the earlier result."""
        twin = self._tried.get(frozenset(drawn.params.items()))
        if twin is None:
            return False
        drawn.set_user_attr("raykd.same_as", twin)
        objectives = self.search.objectives  # a twin without a record waits in the queue
        if twin in self.records and self.records[twin].is_complete(objectives):
            self.optuna_study.tell(drawn, self._values(self.records[twin]))
        else:
            self.optuna_study.tell(drawn, state=TrialState.FAIL)
        return True

    def _enqueue_trial(self, drawn: optuna.Trial, study: Study) -> None:
        record_id = f"trial-{self._trials:04d}"
        drawn.set_user_attr("raykd.id", record_id)
        self._drawn[record_id] = drawn
        self._remember(drawn.params, record_id)
        self._enqueue_student(record_id, study, scores=score_of(drawn))

    def _remember(self, params: Mapping[str, Any], record_id: str) -> None:
        self._tried.setdefault(frozenset(params.items()), record_id)

    def _values(self, record: Record) -> list[float]:
        return [record.metrics[name] for name in self.search.objectives]

    def _tell_optuna(self, record: Record) -> None:
        drawn = self._drawn.pop(record.id, None)
        if drawn is None:
            return
        if record.is_complete(self.search.objectives):
            self.optuna_study.tell(drawn, self._values(record))
            self.has_feasible = True
        else:
            stopped = record.status == "stopped"
            self.has_feasible |= stopped
            self.optuna_study.tell(drawn, state=TrialState.PRUNED if stopped else TrialState.FAIL)

    # Phase 3: finalists and the null arm

    def _may_select(self) -> bool:
        return (
            self._finalists is None
            and not self._queue
            and not self._may_draw()
            and not self.records.running("teacher", "trial")
        )

    def _enqueue_finalists(self) -> None:
        for drawn in self._partly_drawn:
            self.optuna_study.tell(drawn, state=TrialState.FAIL)
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
        if not isinstance(study.scheme, Alone) and baseline_id not in self.records:
            baseline = replace(study, seed=seed, scheme=Alone(), knowledge=())
            self._enqueue_student(baseline_id, baseline, role="alone", **fields)


def _set_constraint(drawn: optuna.Trial, excess: float) -> None:
    if "feasible" not in drawn.constraints:  # a resumed trial may have it already
        drawn.set_constraint("feasible", excess)
