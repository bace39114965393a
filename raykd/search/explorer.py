"""What is trained next, and what came of it: the search itself, without Ray.

The phases of a study, each of which fills the same warm slots:
1. teachers are trained or measured;
2. trials are drawn, one point of the space each;
3. when all trials have ended, students are chosen from the front by validation metrics, and each
   is trained again under fresh seeds, with its distillation (replicates) and without a teacher
   (the null arm) at the same budget; these alone see the test split.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from raykd.architecture import Task, anatomy
from raykd.problems import Infeasible
from raykd.schemes import Alone
from raykd.search.records import Record, Records
from raykd.search.samplers import Grid
from raykd.study.opened import OpenStudy
from raykd.study.schema import Search, Study, Teacher, plain, read_study
from raykd.training.assignment import Assignment
from raykd.training.storage import Storage
from raykd.training.teacher import teacher_study

MAX_DRAWS = 1000
"""Draws in a row without a new feasible point before the search gives up drawing."""


BOOKS = frozenset(
    {"done", "epoch", "training_iteration", "timestamp", "time_this_iter_s", "time_total_s", "pid"}
    | {"time_since_restore", "iterations_since_restore", "trial_id", "id"}
)
"""What Tune adds to a result and what is no metric of the training."""


Drawn = frozenset[tuple[str, Any]]
"""A point of the space by its drawn values."""


class Journal(Protocol):
    def write(self, event: str, **fields: Any) -> None: ...


class Explorer:
    """Decides what each free slot trains, and keeps the books.

    Args:
        study: with its domains open.
        task: what models must take and give.
        optuna_study: draws the points.
        journal: takes every event.
        storage: where files are that every node must reach.
        folder: the study's folder below it.
        teachers: each concrete teacher's file of weights below the storage; a file that is
            not there yet is trained.
        records: what is known already (of an interrupted search).
        search: how to search; None: as the study says.
    """

    def __init__(
        self,
        study: OpenStudy,
        task: Task,
        optuna_study: optuna.Study,
        journal: Journal,
        storage: Storage,
        folder: str,
        teachers: Mapping[Teacher, str],
        records: Records | None = None,
        search: Search | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.study = study
        self.task = task
        self.search = search or study.settings.search
        self.records = records or Records()
        self.note = ""
        self.fatal = ""
        self._optuna = optuna_study
        self._journal = journal
        self._storage = storage
        self._folder = folder
        self._teachers = dict(teachers)
        self._clock = clock
        self._deadline = (
            clock() + self.search.max_hours * 3600 if self.search.max_hours else float("inf")
        )
        self._exhausted = False
        self._waits = 0
        self._asked: dict[str, optuna.Trial | int] = {}
        self._points = study.space_for(task).size.points or math.inf
        self._tried: dict[Drawn, str] = {}
        self._infeasible: set[Drawn] = set()
        self._queue: deque[Assignment] = deque()
        self._half_drawn: deque[optuna.Trial] = deque()
        self._chosen: list[Record] | None = None
        self._take_up()

    # What is next

    def next(self) -> Assignment | None:
        """The next training; one that waits where there is none yet; None when all is over."""
        if self.fatal:
            return None
        if self._queue:
            return self._begin(self._queue.popleft())
        if self.finished:
            return None
        if self._may_draw():
            drawn = self._draw()
            if drawn is not None:
                return self._begin(drawn)
        if self._ready_to_choose():
            self._queue_replicates()
            return self.next()
        self._waits += 1
        return Assignment(f"wait-{self._waits}", "wait", {}, seed=0, epochs=0)

    @property
    def has_work(self) -> bool:
        """Whether `next` would give something else than waiting."""
        return bool(self._queue) or self.finished or self._may_draw() or self._ready_to_choose()

    @property
    def finished(self) -> bool:
        return bool(self.fatal) or (
            self._chosen is not None
            and not self._queue
            and not self.records.running("teacher", "trial", "replicate", "alone")
        )

    @property
    def chosen(self) -> list[Record]:
        """The chosen trials, once all trials have ended."""
        return list(self._chosen or [])

    # What came of it

    def report(self, result: Mapping[str, Any]) -> None:
        """Take in what a slot reports after an epoch."""
        record = self.records[result["id"]]
        for epoch, metrics in enumerate(result.get("history", ()), 1):
            if epoch < int(result["epoch"]):  # that one is the result itself
                self._epoch(record, epoch, {**record.assignment.metrics, **metrics})
        if result.get("failed"):
            self.end(record.id, "failed", str(result["failed"]), {})
            if result.get("unusable"):
                self.slot_failed(record.id, str(result["failed"]))
            return
        metrics = numbers(result)
        self._epoch(record, int(result["epoch"]), metrics, result)
        if result["done"]:
            self.end(record.id, "finished", "", metrics)

    def end(
        self,
        record_id: str,
        status: str,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """A training is over; ending one twice changes nothing."""
        record = self.records[record_id]
        if record.status != "running":
            return
        self._write("end", id=record_id, status=status, reason=reason, metrics=dict(metrics or {}))
        self._storage.remove(record.assignment.state_file)
        self._storage.remove(record.assignment.failure_file)
        if record.role == "trial":
            self._tell(record)
        elif record.role == "teacher" and status == "failed":
            self._abandon(f"the teacher could not be made ready: {reason}")

    def slot_failed(self, record_id: str, reason: str) -> None:
        """A slot died with what it was training; where none ever finished an epoch, none can."""
        if record_id not in self.records:
            return  # it was only waiting
        self.end(record_id, "failed", reason)
        if not self._anything_finished:
            self._abandon(f"no slot could be started: {reason}")

    @property
    def _anything_finished(self) -> bool:
        return any(r.epochs for r in self.records.of("teacher", "trial", "replicate", "alone"))

    def _abandon(self, why: str) -> None:
        self.fatal = self.fatal or why
        self._queue.clear()

    # Books

    def _begin(self, assignment: Assignment) -> Assignment:
        if assignment.id not in self.records:
            self._write(
                "run",
                id=assignment.id,
                role=assignment.role,
                parent=assignment.parent,
                params=dict(assignment.params),
                tags=dict(assignment.tags),
                seed=assignment.seed,
                assignment=assignment.plain(),
            )
        return assignment

    def _epoch(
        self,
        record: Record,
        epoch: int,
        metrics: Mapping[str, Any],
        result: Mapping[str, Any] | None = None,
    ) -> None:
        if epoch == len(record.epochs) + 1:
            said = result or {}
            where = {key: said[key] for key in ("slot", "clock") if key in said}
            self._write("epoch", id=record.id, epoch=epoch, metrics=numbers(metrics), **where)
            self._show_to_optuna(record, epoch)

    def _write(self, event: str, **fields: Any) -> None:
        self._journal.write(event, **fields)
        self.records.apply({"event": event, **fields})

    def _take_up(self) -> None:
        """Queue what an interrupted search left, then the teachers that are not ready."""
        self._settle_with_optuna()
        # Once students were chosen no more are drawn, or the choice would not hold.
        self._exhausted = bool(self.records.of("replicate", "alone"))
        records = self.records.of("teacher")
        settled = {_teacher_file(record) for record in records if self._is_settled(record)}
        number = len(records)
        for teacher, file in self._teachers.items():
            if file not in settled:
                self._queue.append(self._teacher_assignment(number, teacher, file))
                settled.add(file)
                number += 1
        for record in self.records.running("teacher", "trial", "replicate", "alone"):
            self._queue.append(record.assignment)

    def _is_settled(self, record: Record) -> bool:
        """Whether a teacher is under way, or done and still where it was put."""
        finished = record.status == "finished" and self._storage.exists(_teacher_file(record))
        return finished or record.status == "running"

    def _settle_with_optuna(self) -> None:
        """Tell Optuna what ended while nobody listened; take up what did not."""
        for trial in self._optuna.get_trials(deepcopy=False):
            record_id = str(trial.user_attrs.get("raykd.id"))
            if record_id in self.records:
                self._remember(trial.params, record_id)
            elif "raykd.infeasible" in trial.user_attrs:
                self._infeasible.add(frozenset(trial.params.items()))
            if trial.state != TrialState.RUNNING:
                continue
            if record_id not in self.records:
                # The search broke off while it was drawn: go on drawing it, or a grid would
                # take its point for tried.
                self._half_drawn.append(optuna.Trial(self._optuna, trial._trial_id))
                continue
            self._asked[record_id] = trial.number
            if self.records[record_id].status != "running":
                self._tell(self.records[record_id])

    # Phase 1: teachers

    def _teacher_assignment(self, number: int, teacher: Teacher, file: str) -> Assignment:
        ready = self._storage.exists(file)
        study = replace(self.study.settings, teacher=teacher)
        if teacher.model is not None:
            study = teacher_study(study)
        else:  # a whole network from MLflow: it is only measured
            study = replace(study, scheme=Alone(), knowledge=())
        return Assignment(
            id=f"teacher-{number}",
            role="teacher",
            study=plain(replace(study, teacher=teacher)),
            seed=study.seed,
            epochs=0 if ready else study.train.epochs,
            folder=self._folder,
            teacher=file if ready else None,
            keep=None if ready else file,
            test=True,
            params=self.study.flat(study),
            tags={"teacher": label(teacher.model) if teacher.model else str(teacher.weights)},
        )

    # Phase 2: trials

    def _may_draw(self) -> bool:
        return (
            not self._exhausted
            and not any(a.role == "teacher" for a in self._queue)
            and not self.records.running("teacher")
            and len(self.records.of("trial")) < self.search.trials
            and self._clock() < self._deadline
        )

    def _draw(self) -> Assignment | None:
        """One feasible point that was not tried before; None where there is none left."""
        for _ in range(MAX_DRAWS):
            if self._half_drawn:
                drawn = self._half_drawn.popleft()
            elif self._is_used_up:
                return self._give_up("every point of the space has been tried")
            else:
                drawn = self._optuna.ask()
            try:
                study = self.study.draw(drawn, self.task)
            except Infeasible as why:
                self._infeasible.add(frozenset(drawn.params.items()))
                drawn.set_user_attr("raykd.infeasible", str(why))
                _constrain(drawn, 1.0)
                self._optuna.tell(drawn, state=TrialState.PRUNED)
                continue
            _constrain(drawn, 0.0)
            if not self._was_tried(drawn):
                return self._trial_assignment(drawn, study)
        return self._give_up(
            f"{MAX_DRAWS} draws in a row were infeasible or tried before; the space is exhausted"
        )

    @property
    def _is_used_up(self) -> bool:
        sampler = self._optuna.sampler
        known = len(self._tried) + len(self._infeasible)
        return known >= self._points or (isinstance(sampler, Grid) and sampler.exhausted)

    def _give_up(self, why: str) -> None:
        self._exhausted = True
        self.note = why

    def _was_tried(self, drawn: optuna.Trial) -> bool:
        """Answer for a point that was drawn before with what came of it then."""
        twin = self._tried.get(frozenset(drawn.params.items()))
        if twin is None:
            return False
        record = self.records[twin]
        drawn.set_user_attr("raykd.same_as", twin)
        values = self._values(record) if record.seen(self.search.objectives) else None
        if values is None:
            self._optuna.tell(drawn, state=TrialState.FAIL)
        else:
            self._optuna.tell(drawn, values)
        return True

    def _trial_assignment(self, drawn: optuna.Trial, study: Study) -> Assignment:
        record_id = f"trial-{len(self.records.of('trial')):04d}"
        drawn.set_user_attr("raykd.id", record_id)
        self._asked[record_id] = drawn
        self._remember(drawn.params, record_id)
        return self._student_assignment(record_id, study)

    def _student_assignment(self, record_id: str, study: Study, **fields: Any) -> Assignment:
        teacher = study.teacher if type(study.scheme).needs_teacher else None
        cost = anatomy(study.student.model, self.task)
        return Assignment(
            **{
                "id": record_id,
                "role": "trial",
                "study": plain(study),
                "seed": study.seed,
                "epochs": study.train.epochs,
                "folder": self._folder,
                "teacher": self._teachers[teacher] if teacher is not None else None,
                "params": self.study.flat(study),
                "tags": tags_of(study) | {"params": str(cost.params), "macs": str(cost.macs)},
                "metrics": {"params": float(cost.params), "macs": float(cost.macs)},
                **fields,
            }
        )

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
        else:
            state = TrialState.PRUNED if record.status == "stopped" else TrialState.FAIL
            self._optuna.tell(drawn, state=state)

    def _show_to_optuna(self, record: Record, epoch: int) -> None:
        drawn = self._asked.get(record.id)
        objective = next(iter(self.search.objectives))
        alone = len(self.search.objectives) == 1
        if alone and isinstance(drawn, optuna.Trial) and objective in record.metrics:
            drawn.report(record.metrics[objective], epoch)

    # Phase 3: the chosen, again, and the null arm

    def _ready_to_choose(self) -> bool:
        return (
            self._chosen is None
            and not self._queue
            and not self._may_draw()
            and not self.records.running("teacher", "trial")
        )

    def _queue_replicates(self) -> None:
        for drawn in self._half_drawn:
            self._optuna.tell(drawn, state=TrialState.FAIL)
        self._chosen = self.records.choose(self.search.objectives, self.search.chosen)
        for record in self._chosen:
            self._journal.write("note", id=record.id, tags={"chosen": "true"}, metrics={})
        for number in range(1, self.search.replicates + 1):
            for record in self._chosen:
                for assignment in self._replicates(record, number):
                    if assignment.id not in self.records:
                        self._queue.append(assignment)

    def _replicates(self, record: Record, number: int) -> Iterable[Assignment]:
        study = read_study(record.assignment.study)
        seed = study.seed + number
        fields = {"parent": record.id, "seed": seed, "test": True}
        name = f"{record.id}/seed-{number}"
        keep = f"{self._folder}/students/{name.replace('/', '.')}.pt"
        yield self._student_assignment(
            name, replace(study, seed=seed), role="replicate", keep=keep, **fields
        )
        if not isinstance(study.scheme, Alone):
            null = replace(study, seed=seed, scheme=Alone(), knowledge=())
            yield self._student_assignment(
                f"{record.id}/alone-{number}", null, role="alone", **fields
            )


def _constrain(drawn: optuna.Trial, excess: float) -> None:
    if "feasible" not in drawn.constraints:  # it is in a point that is drawn to its end later
        drawn.set_constraint("feasible", excess)


def _teacher_file(record: Record) -> str:
    file = record.assignment.teacher or record.assignment.keep
    assert file is not None, "a teacher is loaded from a file or kept in one"
    return file


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result: its finite and infinite numbers, without its book-keeping."""
    return {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in BOOKS
    }


def label(part: object) -> str:
    """An option in short: its name and the fields that differ from their defaults."""
    fields = [
        f"{field.name}={getattr(part, field.name)}"
        for field in dataclasses.fields(part)  # type: ignore[arg-type]
        if field.name != "name" and getattr(part, field.name) != field.default
    ]
    name = getattr(part, "name", type(part).__name__)
    return f"{name}({', '.join(fields)})" if fields else name


def tags_of(study: Study) -> dict[str, str]:
    """What MLflow's filters and comparisons should know of a trial."""
    losses = [term.loss.name for term in study.knowledge if term.active and term.loss]
    teacher = study.teacher
    return {
        "teacher": (label(teacher.model) if teacher.model else str(teacher.weights))
        if teacher and type(study.scheme).needs_teacher
        else "none",
        "student": label(study.student.model),
        "scheme": study.scheme.name,
        "losses": "+".join(losses) or "none",
        "pairs": " ".join(
            f"{pair.hint}>{pair.guided}" for term in study.knowledge for pair in term.pairs or ()
        )
        or "none",
        "data": study.data.name,
    }
