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
from raykd.problems import Infeasible, StudyError
from raykd.schemes import Alone, Preparation
from raykd.search.records import Record, Records
from raykd.search.samplers import Grid
from raykd.search.shelf import Shelf
from raykd.study.deployed import deployed
from raykd.study.opened import OpenStudy
from raykd.study.schema import Search, Study, plain, read_study
from raykd.study.teachers import teachers_of
from raykd.training.assignment import Assignment
from raykd.training.storage import Storage
from raykd.training.teacher import own_teacher, preparing_study

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
        shelf: where the networks that teach are; those that are not there yet are trained.
        records: what is known already (of an interrupted search).
        search: how to search; None: as the study says.
        clock: seconds, for the time budget.
        slots: trials side by side; at most so many are drawn while their teachers are trained.
    """

    def __init__(
        self,
        study: OpenStudy,
        task: Task,
        optuna_study: optuna.Study,
        journal: Journal,
        storage: Storage,
        folder: str,
        shelf: Shelf,
        records: Records | None = None,
        search: Search | None = None,
        clock: Callable[[], float] = time.time,
        slots: int = 1,
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
        self._shelf = shelf
        self._slots = slots
        own = [own_teacher(replace(study.settings, teacher=one)) for one in study.teachers()]
        self._own = {shelf.file(prepared): prepared for prepared in own}
        self._lost: dict[str, Record] = {}  # trainings that failed here, by the file they owe
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
        if self.fatal or self.finished:
            return None
        ready = self._first_ready
        if ready is not None:
            self._queue.remove(ready)
            return self._begin(ready)
        try:
            if (self._may_draw() and self._draw()) or self._ready_to_choose():
                if not self._queue:
                    self._queue_replicates()
                return self.next()
        except StudyError as error:  # weights that a scheme names cannot be had
            self._abandon(str(error))
            return None
        self._waits += 1
        return Assignment(f"wait-{self._waits}", "wait", {}, seed=0, epochs=0)

    @property
    def _first_ready(self) -> Assignment | None:
        """The first in the queue whose teachers are all there.

        Whatever is queued has asked for its teachers: those that are not under way are there.
        """
        under_way = self._under_way
        waiting = (one for one in self._queue if under_way.isdisjoint(one.teachers))
        return next(waiting, None)

    @property
    def has_work(self) -> bool:
        """Whether `next` would give something else than waiting."""
        ready = self._first_ready is not None
        return ready or self.finished or self._may_draw() or self._ready_to_choose()

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
        elif record.role == "teacher":
            self._teacher_ended(record)

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

    def _teacher_ended(self, record: Record) -> None:
        """Without the study's own teacher there is no study; without another, not its pupils."""
        file = _network_file(record)
        if record.status == "finished":
            self._shelf.note(file)
            return
        self._lost[file] = record
        if file in self._own:
            self._abandon(f"the teacher could not be made ready: {record.reason}")
            return
        for pupil in [waiting for waiting in self._queue if file in waiting.teachers]:
            self._queue.remove(pupil)
            self._begin(pupil)
            why = f"{record.id}, which was to teach it, failed: {record.reason}"
            self.end(pupil.id, "failed", why)

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
        settled = {_network_file(record) for record in records if self._is_settled(record)}
        for file, prepared in self._own.items():
            self._shelf.fetch(prepared)
            if file not in settled:
                self._queue.append(self._teacher_assignment(prepared, file))
        for record in self.records.running("teacher", "trial", "replicate", "alone"):
            if record.role != "teacher":
                self._ask_for(self._teachers_of(read_study(record.assignment.study)))
            self._queue.append(record.assignment)

    def _is_settled(self, record: Record) -> bool:
        """Whether a teacher is under way, or done and still where it was put."""
        finished = record.status == "finished" and self._shelf.has(_network_file(record))
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

    # Teachers: the study's own first, others when a trial is drawn that needs them

    def _teachers_of(self, study: Study) -> tuple[Preparation, ...]:
        """Replicates share the teachers that trials share, whatever their own seed."""
        return teachers_of(study, seed=self.study.settings.seed)

    def _ask_for(self, prepared: Iterable[Preparation]) -> tuple[str, ...]:
        """The files of these networks; those that are not there are queued to be trained.

        Raises:
            StudyError: weights that are named cannot be had.
        """
        return tuple(self._asked_for(one) for one in prepared)

    def _asked_for(self, prepared: Preparation) -> str:
        file = self._shelf.file(prepared)
        if prepared.weights is not None:
            self._shelf.fetch(prepared)
        elif not self._shelf.has(file) and file not in self._under_way | {*self._lost}:
            teachers = self._ask_for(prepared.teachers)
            self._queue.append(self._teacher_assignment(prepared, file, teachers))
        return file

    @property
    def _under_way(self) -> set[str | None]:
        """The files that networks being trained, or in the queue, will be put into."""
        running = [record.assignment for record in self.records.running("teacher")]
        return {one.keep for one in (*self._queue, *running) if one.role == "teacher"}

    def _teacher_assignment(
        self, prepared: Preparation, file: str, teachers: tuple[str, ...] = ()
    ) -> Assignment:
        own, ready = file in self._own, self._shelf.has(file)
        queued = sum(assignment.role == "teacher" for assignment in self._queue)
        if prepared.model is not None:
            study = preparing_study(self.study.settings, prepared)
        else:  # a whole network from MLflow: it is only measured
            study = replace(
                self.study.settings, teacher=prepared.as_teacher, scheme=Alone(), knowledge=()
            )
        return Assignment(
            id=f"teacher-{len(self.records.of('teacher')) + queued}",
            role="teacher",
            study=plain(study),
            seed=study.seed,
            epochs=0 if ready else study.train.epochs,
            folder=self._folder,
            teachers=teachers,
            measures=file if ready else None,
            keep=None if ready else file,
            test=own,
            params=self.study.flat(study),
            tags={"teacher": lineage(prepared)},
        )

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
    def _own_are_ready(self) -> bool:
        running = [record.assignment for record in self.records.running("teacher")]
        return all(one.makes not in self._own for one in (*self._queue, *running))

    @property
    def _trials(self) -> int:
        """How many trials were drawn, those that wait for their teachers included."""
        return len(self.records.of("trial")) + self._held

    @property
    def _held(self) -> int:
        """How many trials were drawn and have not begun."""
        return sum(a.role == "trial" and a.id not in self.records for a in self._queue)

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
                study = self.study.draw(drawn, self.task)
            except Infeasible as why:
                self._infeasible.add(frozenset(drawn.params.items()))
                drawn.set_user_attr("raykd.infeasible", str(why))
                _constrain(drawn, 1.0)
                self._optuna.tell(drawn, state=TrialState.PRUNED)
                continue
            _constrain(drawn, 0.0)
            if not self._was_tried(drawn):
                self._queue_trial(drawn, study)
                return True
        return self._give_up(
            f"{MAX_DRAWS} draws in a row were infeasible or tried before; the space is exhausted"
        )

    @property
    def _is_used_up(self) -> bool:
        sampler = self._optuna.sampler
        known = len(self._tried) + len(self._infeasible)
        return known >= self._points or (isinstance(sampler, Grid) and sampler.exhausted)

    def _give_up(self, why: str) -> bool:
        self._exhausted = True
        self.note = why
        return False

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

    def _queue_trial(self, drawn: optuna.Trial, study: Study) -> None:
        record_id = f"trial-{self._trials:04d}"
        drawn.set_user_attr("raykd.id", record_id)
        self._asked[record_id] = drawn
        self._remember(drawn.params, record_id)
        self._queue_student(record_id, study)

    def _queue_student(self, record_id: str, study: Study, **fields: Any) -> None:
        """Queue a training, after those of the teachers that it needs and that are not there."""
        teachers = self._teachers_of(study)
        cost = deployed(study, anatomy(study.student.model, self.task), self.task)
        tags = {"params": str(cost.params), "macs": str(cost.macs)}
        assignment = Assignment(
            **{
                "id": record_id,
                "role": "trial",
                "study": plain(study),
                "seed": study.seed,
                "epochs": study.train.epochs,
                "folder": self._folder,
                "teachers": self._ask_for(teachers),
                "params": self.study.flat(study),
                "tags": tags_of(study, teachers) | tags,
                "metrics": {"params": float(cost.params), "macs": float(cost.macs)},
                **fields,
            }
        )
        self._queue.append(assignment)
        for file in {*assignment.teachers} & {*self._lost}:
            self._teacher_ended(self._lost[file])

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
                self._queue_replicate(record, number)

    def _queue_replicate(self, record: Record, number: int) -> None:
        """Queue a chosen trial under a fresh seed, and its student alone."""
        study = read_study(record.assignment.study)
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


def _network_file(record: Record) -> str:
    file = record.assignment.makes
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


def lineage(prepared: Preparation) -> str:
    """A network that teaches, in short, with those that taught it."""
    name = label(prepared.model) if prepared.model is not None else str(prepared.weights)
    above = " + ".join(lineage(one) for one in prepared.teachers)
    return f"{name} taught by {above}" if above else name


def tags_of(study: Study, teachers: tuple[Preparation, ...]) -> dict[str, str]:
    """What MLflow's filters and comparisons should know of a trial.

    Args:
        study: concrete.
        teachers: those of its scheme.
    """
    losses = [term.loss.name for term in study.knowledge if term.active and term.loss]
    return {
        "teacher": " + ".join(map(lineage, teachers)) or "none",
        "student": label(study.student.model),
        "scheme": study.scheme.name,
        "losses": "+".join(losses) or "none",
        "pairs": " ".join(
            f"{pair.hint}>{pair.guided}" for term in study.knowledge for pair in term.pairs or ()
        )
        or "none",
        "data": study.data.name,
    }
