"""What is trained next, and what came of it: the search itself, without Ray.

The phases of a study, each of which fills the same warm slots:
1. the study's teachers are trained or measured;
2. trials are drawn, one point of the space each; what else must be ready to teach one (assistants,
   earlier generations) is trained when the first trial that needs it is drawn;
3. when all trials have ended, students are chosen from the front by validation metrics, and each
   is trained again under fresh seeds, with its distillation (replicates) and without a teacher
   (the null arm) at the same budget; these alone see the test split.
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
from raykd.tuning.planner import Planner, RunContext
from raykd.tuning.proxy_ranking import again, score_of
from raykd.tuning.records import Record

MAX_DRAWS = 1000
"""Draws in a row without a new feasible point before the search gives up drawing."""


Drawn = frozenset[tuple[str, Any]]
"""A point of the space by its drawn values."""


class SearchPlanner(Planner):
    """Explores a study's space: draws trials, then chooses students.

    Args:
        context: study, data, storage and records of the run.
        optuna_study: draws the points.
        clock: seconds, for the time budget.
    """

    def __init__(
        self,
        context: RunContext,
        optuna_study: optuna.Study,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(context)
        self._optuna = optuna_study
        self._clock = clock
        self._deadline = (
            clock() + self.search.max_hours * 3600 if self.search.max_hours else float("inf")
        )
        self._exhausted = False
        self._asked: dict[str, optuna.Trial | int] = {}
        self._points = self._bound.space.size.points or math.inf
        self._tried: dict[Drawn, str] = {}
        self._infeasible: set[Drawn] = set()
        self._has_told = False  # Optuna of a trial that ran, so that it knows of feasible ones
        self._half_drawn: deque[optuna.Trial] = deque()
        self._finalists: list[Record] | None = None
        self._settle_with_optuna()
        # Once students were chosen no more are drawn, or the choice would not hold.
        self._exhausted = bool(self.records.of("replicate", "alone"))
        self._take_up()

    def _more(self) -> bool:
        if self._may_draw() and self._draw():
            return True
        if not self._ready_to_choose():
            return False
        self._queue_replicates()
        return True

    def draw_ahead(self) -> None:
        """Draw the next trial while the slots are at work, so that none waits for the sampler.

        The sampler does not know then what comes of the trials under way, as it does not with
        several slots anyway.  With `max_hours`, trials are drawn when they begin; in a finite
        space, too, where a point that comes up again is answered by what came of it.
        """
        timely = self._deadline < math.inf or self._points < math.inf
        if timely or self._queue or self.fatal or not self._may_draw():
            return
        try:
            self._draw()
        except StudyError as error:  # weights that a scheme names cannot be had
            self._abandon(str(error))

    def _has_more(self) -> bool:
        return self._may_draw() or self._ready_to_choose()

    @property
    def _all_queued(self) -> bool:
        return self._finalists is not None

    def _trial_ended(self, record: Record) -> None:
        self._tell(record)

    def _epoch_ended(self, record: Record, epoch: int) -> None:
        self._show_to_optuna(record, epoch)

    @property
    def finalists(self) -> list[Record]:
        """The chosen trials, once all trials have ended."""
        return list(self._finalists or [])

    def _settle_with_optuna(self) -> None:
        """Tell Optuna what ended while nobody listened; take up what did not."""
        for trial in self._optuna.get_trials(deepcopy=False):
            record_id = str(trial.user_attrs.get("raykd.id"))
            if record_id in self.records:
                self._remember(trial.params, record_id)
                self._has_told |= trial.state in LEARNABLE_STATES
            elif "raykd.infeasible" in trial.user_attrs:
                self._infeasible.add(frozenset(trial.params.items()))
            if trial.state != TrialState.RUNNING:
                continue
            if record_id not in self.records:
                # The search broke off while it was drawn: go on drawing it, or a grid would
                # take its point for tried.
                self._half_drawn.append(resume_trial(self._optuna, trial))
                continue
            self._asked[record_id] = trial.number
            if self.records[record_id].status != "running":
                self._tell(self.records[record_id])

    # Phase 2: trials

    def _may_draw(self) -> bool:
        return (
            not self._exhausted
            and self._own_are_ready
            and self._held < self._slots
            and self._trials < self.search.trials
            and self._clock() < self._deadline
        )

    @property
    def _trials(self) -> int:
        """How many trials were drawn, those that wait for their teachers included."""
        return len(self.records.of("trial")) + self._held

    @property
    def _held(self) -> int:
        """How many trials were drawn and have not begun."""
        return sum(
            isinstance(job, TrainJob) and job.role == "trial" and job.id not in self.records
            for job in self._queue
        )

    def _draw(self) -> bool:
        """Queue one feasible point that was not tried before; False where none is left."""
        for _ in range(MAX_DRAWS):
            if self._half_drawn:
                drawn = self._half_drawn.popleft()
            elif self._is_used_up:
                return self._give_up("every point of the space has been tried")
            else:
                drawn = self._optuna.ask()
            try:
                candidate = self._bound.draw(drawn)
                self._costs.check(candidate)
            except Infeasible as why:
                self._refuse(drawn, why)
                continue
            _constrain(drawn, 0.0)
            if not self._was_tried(drawn):
                self._queue_trial(drawn, candidate.resolved)
                return True
        return self._give_up(
            f"{MAX_DRAWS} draws in a row were infeasible or tried before; the space is exhausted"
        )

    def _refuse(self, drawn: optuna.Trial, why: Infeasible) -> None:
        """Tell Optuna that this point cannot be trained.

        TPE takes the best that it knows for good, so it would seek infeasible points where it
        knows of no other: with hundreds of slots that is so until the first trial ends.  It
        passes over trials that failed.
        """
        self._infeasible.add(frozenset(drawn.params.items()))
        drawn.set_user_attr("raykd.infeasible", str(why))
        _constrain(drawn, 1.0)
        state = TrialState.PRUNED if self._has_told else TrialState.FAIL
        self._optuna.tell(drawn, state=state)
        again(self._optuna, drawn)

    @property
    def _is_used_up(self) -> bool:
        known = len(self._tried) + len(self._infeasible)
        return known >= self._points or getattr(self._optuna.sampler, "exhausted", False)

    def _give_up(self, why: str) -> bool:
        self._exhausted = True
        self.note = why
        return False

    def _was_tried(self, drawn: optuna.Trial) -> bool:
        """Answer for a point that was drawn before with what came of it then."""
        twin = self._tried.get(frozenset(drawn.params.items()))
        if twin is None:
            return False
        drawn.set_user_attr("raykd.same_as", twin)
        known = twin in self.records and self.records[twin].seen(self.search.objectives)
        values = self._values(self.records[twin]) if known else None  # else it may still be held
        if values is None:
            self._optuna.tell(drawn, state=TrialState.FAIL)
        else:
            self._optuna.tell(drawn, values)
        return True

    def _queue_trial(self, drawn: optuna.Trial, study: Study) -> None:
        record_id = f"trial-{self._trials:04d}"
        drawn.set_user_attr("raykd.id", record_id)
        self._asked[record_id] = drawn
        self._remember(drawn.params, record_id)
        self._queue_student(record_id, study, screened=score_of(drawn))

    def _remember(self, params: Mapping[str, Any], record_id: str) -> None:
        self._tried.setdefault(frozenset(params.items()), record_id)

    def _values(self, record: Record) -> list[float]:
        return [record.metrics[name] for name in self.search.objectives]

    def _tell(self, record: Record) -> None:
        drawn = self._asked.pop(record.id, None)
        if drawn is None:
            return
        if record.seen(self.search.objectives):
            self._optuna.tell(drawn, self._values(record))
            self._has_told = True
        else:
            stopped = record.status == "stopped"
            self._has_told |= stopped
            self._optuna.tell(drawn, state=TrialState.PRUNED if stopped else TrialState.FAIL)

    def _show_to_optuna(self, record: Record, epoch: int) -> None:
        drawn = self._asked.get(record.id)
        objective = next(iter(self.search.objectives))
        alone = len(self.search.objectives) == 1
        if alone and isinstance(drawn, optuna.Trial) and objective in record.metrics:
            drawn.report(record.metrics[objective], epoch)

    # Phase 3: the chosen, again, and the null arm

    def _ready_to_choose(self) -> bool:
        return (
            self._finalists is None
            and not self._queue
            and not self._may_draw()
            and not self.records.running("teacher", "trial")
        )

    def _queue_replicates(self) -> None:
        for drawn in self._half_drawn:
            self._optuna.tell(drawn, state=TrialState.FAIL)
        self._finalists = self.records.choose(self.search.objectives, self.search.finalists)
        for record in self._finalists:
            self._journal.write("note", id=record.id, tags={"chosen": "true"}, metrics={})
        for number in range(1, self.search.replicates + 1):
            for record in self._finalists:
                self._queue_replicate(record, number)

    def _queue_replicate(self, record: Record, number: int) -> None:
        """Queue a chosen trial under a fresh seed, and its student alone."""
        study = read_study(record.job.study)
        seed = study.seed + number
        name, alone = f"{record.id}/seed-{number}", f"{record.id}/alone-{number}"
        fields = {"parent": record.id, "seed": seed, "test": True}
        if name not in self.records:
            keep = f"{self._folder}/students/{name.replace('/', '.')}.pt"
            again = replace(study, seed=seed)
            self._queue_student(name, again, role="replicate", keep=keep, **fields)
        if not isinstance(study.scheme, Alone) and alone not in self.records:
            null = replace(study, seed=seed, scheme=Alone(), knowledge=())
            self._queue_student(alone, null, role="alone", **fields)


def _constrain(drawn: optuna.Trial, excess: float) -> None:
    if "feasible" not in drawn.constraints:  # it is in a point that is drawn to its end later
        drawn.set_constraint("feasible", excess)
