"""Queue of jobs for the slots, and their results: the part that all runs of a study share.

Subclasses decide which trials to queue: `SearchPlanner` draws points of a space,
`LayerStudyPlanner` has a list.  Without Ray.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from raykd.errors import StudyError
from raykd.models import Task
from raykd.runtime.jobs import (
    AnyJob,
    CacheJob,
    EvaluateJob,
    IdleJob,
    JobFailure,
    QueuedJob,
    RecordedJob,
    Report,
    Role,
    TrainJob,
)
from raykd.schemes import Alone, TeacherSpec
from raykd.storage import Storage
from raykd.study.config import Search, Study, plain, read_study
from raykd.study.open_study import OpenStudy
from raykd.study.short_names import names_of
from raykd.study.student_costs import StudentCosts
from raykd.training.output_check import probabilities_warning
from raykd.training.teachers import teacher_spec_of, teacher_training_study
from raykd.tuning.cache_jobs import CacheScheduler
from raykd.tuning.failure_logs import Failure, Logs
from raykd.tuning.records import Record, Records
from raykd.tuning.teacher_store import TeacherStore
from raykd.tuning.teacher_warnings import chance_warning, weak_teacher_warning

ROLES: tuple[Role, ...] = ("teacher", "trial", "replicate", "alone", "probe")
"""Roles of the jobs of which there are records."""


class Journal(Protocol):
    def write(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """Everything that a planner works with.

    Attributes:
        study: with its domains open.
        task: inputs and classes of the data.
        search: search settings of the run.
        journal: takes every event.
        storage: of the files that every node must reach.
        folder: the study's folder below the storage.
        shelf: of the teachers; those that are missing are trained.
        records: of trainings, from the journal of the run that is resumed.
        costs: of students.
        caching: decides which teachers' outputs are cached; None: all teachers are run live.
        logs: of failed trainings; None: they are not gathered.
        val_counts: samples of each class of the validation split, to judge teachers by.
        slots: number of trials in parallel.
    """

    study: OpenStudy
    task: Task
    search: Search
    journal: Journal
    storage: Storage
    folder: str
    shelf: TeacherStore
    records: Records
    costs: StudentCosts
    caching: CacheScheduler | None = None
    logs: Logs | None = None
    val_counts: Sequence[int] = ()
    slots: int = 1


class Planner:
    """Decides what each free slot trains, and records the results.

    Args:
        context: study, data, storage and records of the run.

    Attributes:
        expected_trials: number of trials, where it is known; None: as the study says.
        note: reason for ending the search early; empty if there is none.
        fatal: reason why the study cannot continue; empty while it can.
    """

    def __init__(self, context: RunContext) -> None:
        self._val_counts = context.val_counts
        self._doubted: set[str] = set()
        self._noted: set[str] = set()
        self.study = context.study
        self.task = context.task
        self.search = context.search
        self._bound = context.study.bind(context.task)
        self._costs = context.costs
        self.records = context.records
        self.expected_trials: int | None = None
        self.note = ""
        self.fatal = ""
        self._journal = context.journal
        self._storage = context.storage
        self._folder = context.folder
        self._shelf = context.shelf
        self._slots = context.slots
        self._caching = context.caching
        self._logs = context.logs
        self._outfitted: set[str] = set()
        self._builds: dict[str, CacheJob] = {}  # shares of outputs that slots compute now
        study = self.study
        own = [teacher_spec_of(replace(study.settings, teacher=one)) for one in study.teachers()]
        self._own = {self._shelf.file(prepared): prepared for prepared in own}
        self._lost: dict[str, Record] = {}  # trainings that failed here, by the file they owe
        self._waits = 0
        self._queue: deque[QueuedJob] = deque()

    # What is next

    def next(self) -> AnyJob | None:
        """The next training; one that waits where there is none yet; None when all is over."""
        if self.fatal or self.finished:
            return None
        self._outfit()
        ready = self._first_ready
        if ready is not None:
            self._queue.remove(ready)
            return self._begin(ready)
        try:
            if self._more():
                return self.next()
        except StudyError as error:  # weights that a scheme names cannot be had
            self._abandon(str(error))
            return None
        self._waits += 1
        return IdleJob(f"wait-{self._waits}")

    @property
    def _first_ready(self) -> QueuedJob | None:
        """The first in the queue whose teachers, and the outputs it reads of them, are all there.

        Whatever is queued has asked for its teachers: those that are not under way are there.
        """
        under_way = self._under_way
        ready = (one for one in self._queue if under_way.isdisjoint(one.teachers))
        return next((one for one in ready if not self._waits_for_outputs(one)), None)

    @property
    def has_work(self) -> bool:
        """Whether `next` would give something else than waiting."""
        ready = self._first_ready is not None
        return ready or self.finished or self._has_more()

    def draw_ahead(self) -> None:
        """Make ready, while the slots are at work, what one of them will ask for next."""

    @property
    def finished(self) -> bool:
        return bool(self.fatal) or (
            self._all_queued and not self._queue and not self.records.running(*ROLES)
        )

    # What a way of running a study decides itself

    def _more(self) -> bool:
        """Queue more trainings; False where there are none to queue now.

        Raises:
            StudyError: weights that a scheme names cannot be had.
        """
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Whether `_more` might queue something now."""
        raise NotImplementedError

    @property
    def _all_queued(self) -> bool:
        """Whether nothing will be queued any more."""
        raise NotImplementedError

    @property
    def finalists(self) -> list[Record]:
        """The trials that were chosen to be trained again; [] before they are."""
        raise NotImplementedError

    def _trial_ended(self, record: Record) -> None:
        """A trial is over, however it ended."""

    def _epoch_ended(self, record: Record, epoch: int) -> None:
        """An epoch of a training was told for the first time."""

    # What came of it

    def report(self, job_id: str, report: Report, slot: str = "") -> None:
        """Record the progress of a job.

        Args:
            job_id: id of the job.
            report: what it reached.
            slot: the slot that runs it, "HOST:PID"; empty: this process.
        """
        if self._caching is not None:
            self._caching.beat()
        if job_id in self._builds:
            if report.done:
                assert self._caching is not None
                self._caching.done(self._builds.pop(job_id))
            return
        record = self.records[job_id]
        known = {name: float(value) for name, value in record.job.metrics.items()}
        for epoch, metrics in enumerate(report.history, 1):
            if epoch < report.epoch:  # that one is the report itself
                self._epoch(record, epoch, {**known, **metrics})
        where = {"slot": slot, "clock": report.clock and dataclasses.asdict(report.clock)}
        metrics = {**known, **report.metrics}
        self._epoch(record, report.epoch, metrics, {k: v for k, v in where.items() if v})
        if report.done:
            self.end(record.id, "finished", "", metrics)

    def job_failed(self, job_id: str, failure: JobFailure) -> None:
        """Record the failure of a job."""
        if job_id in self._builds:
            self._build_failed(job_id, failure.reason)
            return
        record, place = self.records[job_id], failure.raised_at
        logged = Failure(failure.reason, place)
        if self._logs is not None:
            logged = self._logs.collect(
                record.job, failure.reason, raised_at=place, more=failure.traceback
            )
        self.end(record.id, "failed", failure=logged)
        if failure.slot_unusable:
            self.slot_failed(record.id, logged.reason)

    def end(
        self,
        record_id: str,
        status: str,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
        failure: Failure | None = None,
    ) -> None:
        """A training is over; ending one twice changes nothing.

        Args:
            reason: why it failed, where that is all there is to say of it.
            failure: why it failed.
        """
        if record_id not in self.records:
            return  # outputs were computed
        record = self.records[record_id]
        if record.status != "running":
            return
        failure = failure or Failure(reason)
        known = {"raised_at": failure.raised_at, "log": failure.log}
        more = {key: value for key, value in known.items() if value}
        told = dict(metrics or {})
        self._write("end", id=record_id, status=status, reason=failure.reason, metrics=told, **more)
        if failure.log:
            self._journal.write("artifact", id=record_id, path=failure.log, folder="logs")
        if failure.raised_at:
            tags = {"raised_at": failure.raised_at}
            self._journal.write(
                "note", id=record_id, tags=tags, metrics={}, step=len(record.epochs)
            )
        self._storage.remove(record.job.state_file)
        self._storage.remove(record.job.failure_file)
        if record.role == "trial":
            self._trial_ended(record)
        elif record.role == "teacher":
            self._teacher_ended(record)
        if record.role in ("trial", "alone"):
            self._compare_with_teacher(record)
        if record.role != "teacher":
            self._doubt_outputs(record)

    def slot_failed(
        self, record_id: str, reason: str, *, error: str = "", died: bool = False
    ) -> None:
        """A slot died with what it was training; where none ever finished an epoch, none can.

        Args:
            reason: in one line.
            error: the slot's whole error, for the log.
            died: whether its process ended without an answer.
        """
        if record_id in self._builds:
            self._build_failed(record_id, reason)
        if record_id not in self.records:
            return  # it was only waiting, or computed outputs
        failure = Failure(reason)
        record = self.records[record_id]
        if self._logs is not None and record.status == "running":
            failure = self._logs.collect(record.job, reason, more=error, died=died)
        self.end(record_id, "failed", failure=failure)
        if not self._anything_finished:
            self._abandon(f"no slot could be started: {failure.reason}")

    @property
    def _anything_finished(self) -> bool:
        return any(r.epochs for r in self.records.of(*ROLES))

    def _teacher_ended(self, record: Record) -> None:
        """Without the study's own teacher there is no study; without another, not its pupils."""
        file = _network_file(record)
        if record.status == "finished":
            self._shelf.note(file)
            self._doubt_outputs(record)
            accuracy = record.metrics.get("val_accuracy")
            if accuracy is not None:
                self._doubt(
                    record.id, chance_warning(_teacher_of(record), accuracy, self._val_counts)
                )
            return
        self._lost[file] = record
        if file in self._own:
            log = (
                f"; its log: {self._logs.folder.path / record.log}"
                if self._logs and record.log
                else ""
            )
            self._abandon(f"the teacher could not be made ready: {record.reason}{log}")
            return
        recorded = [job for job in self._queue if isinstance(job, RecordedJob)]
        for pupil in [waiting for waiting in recorded if file in waiting.teachers]:
            self._queue.remove(pupil)
            self._begin(pupil)
            why = f"{record.id}, which was to teach it, failed: {record.reason}"
            self.end(pupil.id, "failed", why)

    def _why(self, record: Record) -> str:
        """Why a training failed, and where to read more."""
        said = record.reason
        said += f"; raised at {record.raised_at}" if record.raised_at else ""
        if self._logs is None or not record.log:
            return said
        return f"{said}; log: {self._logs.folder.path / record.log}"

    def _compare_with_teacher(self, record: Record) -> None:
        """Warn where a student without a teacher is better than the study's teachers."""
        alone = record.metrics.get("val_accuracy")
        scheme = record.job.study.get("scheme", {}).get("name")
        teachers = [one for one in self.records.teachers if "val_accuracy" in one.metrics]
        if record.status != "finished" or alone is None or scheme != "alone" or not teachers:
            return
        best = max(teachers, key=lambda one: one.metrics["val_accuracy"])
        reached, samples = best.metrics["val_accuracy"], sum(self._val_counts)
        said = weak_teacher_warning(_teacher_of(best), reached, record.id, alone, samples)
        self._doubt("weak_teacher_warning", said)

    def _doubt_outputs(self, record: Record) -> None:
        """Warn where a network gives probabilities instead of logits."""
        is_teacher = record.role == "teacher"
        name = f"teacher {_teacher_of(record)}" if is_teacher else f"the student of {record.id}"
        key = f"outputs_{record.id}" if is_teacher else "outputs_student"
        self._doubt(key, probabilities_warning(name, record.metrics))

    def _doubt(self, key: str, warning: str) -> None:
        """Write a warning, once, into the journal; the displays and MLflow get it from there."""
        if warning and key not in self._doubted:
            self._doubted.add(key)
            tags = {f"warning_{key.replace('-', '_')}": warning}
            self._journal.write("note", id=None, tags=tags, metrics={}, step=0)

    def _abandon(self, why: str) -> None:
        self.fatal = self.fatal or why
        self._queue.clear()

    # Books

    def _begin(self, job: QueuedJob) -> QueuedJob:
        if isinstance(job, CacheJob):
            self._builds[job.id] = job
            return job
        if isinstance(job, TrainJob):
            if self._caching is not None:
                job = self._caching.usable(job)
            job = replace(job, exclusive=self._is_exclusive(job))
        if job.id not in self.records:
            job = replace(job, names=names_of(job.study))
            self._write(
                "run",
                id=job.id,
                role=job.role,
                parent=job.parent,
                params=dict(job.params),
                tags=dict(job.tags),
                seed=job.seed,
                assignment=job.plain(),
            )
        return job

    def _is_exclusive(self, job: TrainJob) -> bool:
        """Whether all else waits for this teacher, by the study's own order and not by chance.

        Training on more processors rounds differently, so that only what is the same each time
        the study is run may tell.
        """
        if job.keep not in self._own:
            return False
        others = [one for one in self.records.running(*ROLES) if one.id != job.id]
        return not others and all(job.keep in one.teachers for one in self._queue)

    def _epoch(
        self,
        record: Record,
        epoch: int,
        metrics: Mapping[str, float],
        where: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if epoch == len(record.epochs) + 1:
            self._write("epoch", id=record.id, epoch=epoch, metrics=dict(metrics), **where)
            self._epoch_ended(record, epoch)

    def _write(self, event: str, **fields: Any) -> None:
        self._journal.write(event, **fields)
        self.records.apply({"event": event, **fields})

    def _take_up(self) -> None:
        """Queue what an interrupted run left, then the teachers that are not ready."""
        records = self.records.of("teacher")
        settled = {_network_file(record) for record in records if self._is_settled(record)}
        for file, prepared in self._own.items():
            self._fetch(prepared)
            if file not in settled:
                self._queue.append(self._teacher_job(prepared, file))
        for record in self.records.running(*ROLES):
            if record.role != "teacher":
                study = read_study(record.job.study)
                self._ask_for(self._bound.candidate(study).networks)
            self._queue.append(record.job)

    def _is_settled(self, record: Record) -> bool:
        """Whether a teacher is under way, or done and still where it was put."""
        finished = record.status == "finished" and self._shelf.has(_network_file(record))
        return finished or record.status == "running"

    # Teachers: the study's own first, others when a trial is drawn that needs them

    def _ask_for(self, prepared: Iterable[TeacherSpec]) -> tuple[str, ...]:
        """The files of these networks; those that are not there are queued to be trained.

        Raises:
            StudyError: weights that are named cannot be had.
        """
        return tuple(self._asked_for(one) for one in prepared)

    def _asked_for(self, prepared: TeacherSpec) -> str:
        file = self._shelf.file(prepared)
        if prepared.weights is not None:
            self._fetch(prepared)
        elif not self._shelf.has(file) and file not in self._under_way | {*self._lost}:
            teachers = self._ask_for(prepared.needs)
            self._queue.append(self._teacher_job(prepared, file, teachers))
        return file

    def _fetch(self, prepared: TeacherSpec) -> None:
        """Put loaded weights on the shelf, and say what was done to them.

        Raises:
            StudyError: they cannot be read.
        """
        self._shelf.fetch(prepared)
        notes = self._shelf.take_notes()
        if notes and notes not in self._noted:
            self._noted.add(notes)
            tags = {"weights_notes_fetched": notes}
            self._journal.write("note", id=None, tags=tags, metrics={}, step=0)

    @property
    def _under_way(self) -> set[str | None]:
        """The files that networks being trained, or in the queue, will be put into."""
        running = [record.job for record in self.records.running("teacher")]
        jobs = [one for one in (*self._queue, *running) if isinstance(one, TrainJob)]
        return {job.keep for job in jobs if job.role == "teacher"}

    def _teacher_job(
        self, prepared: TeacherSpec, file: str, teachers: tuple[str, ...] = ()
    ) -> TrainJob | EvaluateJob:
        """Return the job that trains a teacher, or evaluates one that is there."""
        queued = sum(isinstance(job, RecordedJob) and job.role == "teacher" for job in self._queue)
        if prepared.model is not None:
            study = teacher_training_study(self.study.settings, prepared)
        else:  # a whole network from MLflow: it is only measured
            study = replace(
                self.study.settings, teacher=prepared.as_teacher, scheme=Alone(), knowledge=()
            )
        fields: dict[str, Any] = {
            "id": f"teacher-{len(self.records.of('teacher')) + queued}",
            "role": "teacher",
            "study": plain(study),
            "seed": study.seed,
            "folder": self._folder,
            "teachers": teachers,
            "test": file in self._own,
            "params": self.study.flat(study),
            "tags": {"teacher": lineage(prepared)},
        }
        if self._shelf.has(file):
            return EvaluateJob(**fields, weights_file=file)
        return TrainJob(**fields, epochs=study.train.epochs, keep=file)

    # What teachers say of the training samples, where it is computed once

    def _outfit(self) -> None:
        """Settle what those in the queue whose teachers are there read of them; what has to be
        computed first comes first."""
        if self._caching is None:
            return
        under_way = self._under_way
        builds: list[CacheJob] = []
        for place, one in enumerate(tuple(self._queue)):
            if not isinstance(one, TrainJob):
                continue
            learns = one.role in ("trial", "replicate") and one.teachers
            if learns and one.id not in self._outfitted and under_way.isdisjoint(one.teachers):
                self._outfitted.add(one.id)
                self._queue[place], more = self._caching.outfit(one)
                builds += more
        self._queue.extendleft(reversed(builds))

    def _waits_for_outputs(self, job: QueuedJob) -> bool:
        if self._caching is None or not isinstance(job, TrainJob):
            return False
        return self._caching.waits(job)

    def _build_failed(self, build_id: str, reason: str) -> None:
        """The teacher is run live; what is left to compute of its outputs is not asked for."""
        assert self._caching is not None
        self._caching.failed(self._builds.pop(build_id), reason)
        for one in [one for one in self._queue if isinstance(one, CacheJob)]:
            if not self._caching.still_wanted(one):
                self._queue.remove(one)

    @property
    def _own_are_ready(self) -> bool:
        running = [record.job for record in self.records.running("teacher")]
        jobs = [one for one in (*self._queue, *running) if isinstance(one, RecordedJob)]
        return all(job.network_file not in self._own for job in jobs)

    def _queue_student(
        self,
        record_id: str,
        study: Study,
        screened: Mapping[str, float] = MappingProxyType({}),
        **fields: Any,
    ) -> None:
        """Queue a training, after those of the teachers that it needs and that are not there."""
        if self._caching is not None:
            study = self._caching.fixed(study)
        candidate = self._bound.candidate(study)
        job = TrainJob(
            **{
                "id": record_id,
                "role": "trial",
                "study": plain(study),
                "seed": study.seed,
                "epochs": study.train.epochs,
                "folder": self._folder,
                "teachers": self._ask_for(candidate.networks),
                "params": self.study.flat(study),
                "tags": tags_of(study, candidate.teachers)
                | self._costs.tags(candidate)
                | fields.pop("tags", {}),
                "metrics": {**self._costs.of(candidate), **screened},
                **fields,
            }
        )
        self._queue.append(job)
        for file in {*job.teachers} & {*self._lost}:
            self._teacher_ended(self._lost[file])


def _network_file(record: Record) -> str:
    file = record.job.network_file
    assert file is not None, "a teacher is loaded from a file or kept in one"
    return file


def _teacher_of(record: Record) -> str:
    return record.job.tags.get("teacher", record.id)


def label(part: object) -> str:
    """An option in short: its name and the fields that differ from their defaults."""
    fields = [
        f"{field.name}={label(held) if dataclasses.is_dataclass(held) else held}"
        for field in dataclasses.fields(part)  # type: ignore[arg-type]
        if field.name != "name" and (held := getattr(part, field.name)) != field.default
    ]
    name = getattr(part, "name", type(part).__name__)
    return f"{name}({', '.join(fields)})" if fields else name


def lineage(prepared: TeacherSpec) -> str:
    """A network that teaches, in short, with those that taught it."""
    name = label(prepared.model) if prepared.model is not None else str(prepared.weights)
    above = " + ".join(lineage(one) for one in prepared.teachers)
    return f"{name} taught by {above}" if above else name


def tags_of(study: Study, teachers: tuple[TeacherSpec, ...]) -> dict[str, str]:
    """What MLflow's filters and comparisons should know of a trial.

    Args:
        study: concrete.
        teachers: those of its scheme.
    """
    parts = [part for term in study.knowledge for part in term.parts]
    losses = [term.loss.name for term in parts if term.active and term.loss]
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
