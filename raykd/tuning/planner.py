"""Planner base: the job queue of a run and the records of its results.

Subclasses decide which trials to queue: `SearchPlanner` draws points of a space,
`LayerStudyPlanner` has a list.  Nothing here depends on Ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from raykd.errors import StudyError
from raykd.runtime.jobs import (
    AnyJob,
    CacheJob,
    IdleJob,
    JobFailure,
    QueuedJob,
    RecordedJob,
    Report,
    Role,
    TrainJob,
)
from raykd.study.config import Study, plain, read_study
from raykd.study.short_names import names_of
from raykd.tracking.events import (
    ArtifactSaved,
    Clock,
    EndStatus,
    EpochFinished,
    Event,
    Metrics,
    Note,
    RunEnded,
    RunStarted,
)
from raykd.tuning.failure_logs import Failure
from raykd.tuning.records import Record
from raykd.tuning.run_tags import tags_of
from raykd.tuning.session import RunContext
from raykd.tuning.teacher_jobs import TeacherJobs, TeacherWarnings, network_file

ROLES: tuple[Role, ...] = ("teacher", "trial", "replicate", "alone", "probe")
"""Roles of the jobs that have records."""


class Planner(ABC):
    """Decides what each free slot trains, and records the results.

    It owns the job queue: teachers and their cache entries come before the trainings that need
    them.

    Args:
        context: study, data, storage and records of the run.

    Attributes:
        expected_trials: number of trials, if it is known; None: as the study says.
        note: reason why drawing ended early; "" if it did not.
        fatal: reason why the study cannot continue; "" while it can.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.study = context.study
        self.search = context.search
        self.records = context.records
        self.expected_trials: int | None = None
        self.note = ""
        self.fatal = ""
        self._bound = context.study.bind(context.task)
        self._cache_jobs = context.cache_jobs
        self._queue: deque[QueuedJob] = deque()
        self._teachers = TeacherJobs(context, self._queue)
        self._warnings = TeacherWarnings(self.records, context.val_counts, context.bus.publish)
        self._idle_jobs = 0

    # Next job

    def next(self) -> AnyJob | None:
        """Return the next job; an idle one if none is ready; None when the study is complete."""
        if self.fatal or self.finished:
            return None
        if self._cache_jobs is not None:
            self._cache_jobs.assign_entries(self._queue, self._teachers.pending)
        ready = self._first_ready
        if ready is not None:
            self._queue.remove(ready)
            return self._start(ready)
        try:
            if self._enqueue_more():
                return self.next()
        except StudyError as error:  # a scheme names weights that cannot be read
            self._abort(str(error))
            return None
        self._idle_jobs += 1
        return IdleJob(f"wait-{self._idle_jobs}")

    @property
    def _first_ready(self) -> QueuedJob | None:
        """The first job in the queue whose teachers and cache entries are all complete.

        Every queued job has requested its teachers: those that are not pending are stored.
        """
        pending, cache_jobs = self._teachers.pending, self._cache_jobs
        for job in self._queue:
            waits = cache_jobs is not None and isinstance(job, TrainJob) and cache_jobs.waits(job)
            if pending.isdisjoint(job.teachers) and not waits:
                return job
        return None

    @property
    def has_work(self) -> bool:
        """True if `next` would return something else than an idle job."""
        ready = self._first_ready is not None
        return ready or self.finished or self._has_more()

    def draw_ahead(self) -> None:  # noqa: B027 - optional
        """Prepare the next trial while the slots are busy."""

    @property
    def finished(self) -> bool:
        return bool(self.fatal) or (
            self._all_enqueued and not self._queue and not self.records.running(*ROLES)
        )

    # Decisions of the subclasses

    @abstractmethod
    def _enqueue_more(self) -> bool:
        """Queue more trainings; return False if there are none to queue now.

        Raises:
            StudyError: a scheme names weights that cannot be read.
        """

    @abstractmethod
    def _has_more(self) -> bool:
        """Return True if `_enqueue_more` could queue something now."""

    @property
    @abstractmethod
    def _all_enqueued(self) -> bool:
        """True if nothing more will be queued."""

    @property
    @abstractmethod
    def finalists(self) -> list[Record]:
        """The trials that are trained again; [] before they are selected."""

    @abstractmethod
    def _trial_ended(self, record: Record) -> None:
        """Handle the end of a trial, with any status."""

    def _epoch_ended(self, record: Record, epoch: int) -> None:  # noqa: B027 - optional
        """Handle the first report of an epoch."""

    # Results

    def report(self, job_id: str, report: Report, slot: str = "") -> None:
        """Record the progress of a job.

        Args:
            job_id: id of the job.
            report: what it reached.
            slot: the slot that runs it, "HOST:PID"; empty: this process.
        """
        if self._cache_jobs is not None:
            self._cache_jobs.beat()
            if self._cache_jobs.is_running(job_id):
                if report.done:
                    self._cache_jobs.finish(job_id)
                return
        record = self.records[job_id]
        costs = {name: float(value) for name, value in record.job.metrics.items()}
        for epoch, metrics in enumerate(report.history, 1):
            if epoch < report.epoch:  # that one is the report itself
                self._record_epoch(record, epoch, {**costs, **metrics})
        metrics = {**costs, **report.metrics}
        self._record_epoch(record, report.epoch, metrics, slot or None, report.clock)
        if report.done:
            self.end(record.id, "finished", "", metrics)

    def job_failed(self, job_id: str, failure: JobFailure) -> None:
        """Record the failure of a job."""
        if self._cache_jobs is not None and self._cache_jobs.is_running(job_id):
            self._cache_jobs.abort(job_id, failure.reason, self._queue)
            return
        record, logs = self.records[job_id], self.context.logs
        logged = Failure(failure.reason, failure.raised_at)
        if logs is not None:
            logged = logs.collect(
                record.job,
                failure.reason,
                raised_at=failure.raised_at,
                more=failure.traceback,
            )
        self.end(record.id, "failed", failure=logged)
        if failure.slot_unusable:
            self.slot_failed(record.id, logged.reason)

    def end(
        self,
        record_id: str,
        status: EndStatus,
        reason: str = "",
        metrics: Metrics | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Record the end of a training; ignores ended trainings and jobs without a record.

        Args:
            record_id: id of the training.
            status: of its end.
            reason: of its failure, if there is no `failure`.
            metrics: of the whole training.
            failure: with its reason, place and log.
        """
        if record_id not in self.records:
            return
        record = self.records[record_id]
        if record.status != "running":
            return
        failure = failure or Failure(reason)
        self._publish(
            RunEnded(
                record_id,
                status,
                failure.reason,
                dict(metrics or {}),
                failure.raised_at,
                failure.log,
            )
        )
        if failure.log:
            self._publish(ArtifactSaved(record_id, failure.log, folder="logs"))
        if failure.raised_at:
            tags = {"raised_at": failure.raised_at}
            self._publish(Note(record_id, tags, step=len(record.epochs)))
        self.context.storage.remove(record.job.state_file)
        self.context.storage.remove(record.job.failure_file)
        if record.role == "teacher":
            self._teacher_ended(record)
            return
        if record.role == "trial":
            self._trial_ended(record)
        self._warnings.check_student(record)

    def slot_failed(
        self, record_id: str, reason: str, *, error: str = "", died: bool = False
    ) -> None:
        """Record that a slot died during a job; abort if no slot has ever finished an epoch.

        Args:
            record_id: id of the job.
            reason: in one line.
            error: the slot's whole error, for the log.
            died: whether its process ended without an answer.
        """
        if self._cache_jobs is not None and self._cache_jobs.is_running(record_id):
            self._cache_jobs.abort(record_id, reason, self._queue)
        if record_id not in self.records:
            return  # an idle job, or one that computes a cache entry
        failure = Failure(reason)
        record, logs = self.records[record_id], self.context.logs
        if logs is not None and record.status == "running":
            failure = logs.collect(record.job, reason, more=error, died=died)
        self.end(record_id, "failed", failure=failure)
        if not any(record.epochs for record in self.records.of(*ROLES)):
            self._abort(f"no slot could be started: {failure.reason}")

    def _teacher_ended(self, record: Record) -> None:
        """Abort the study if its own teacher failed; any other teacher fails only its students."""
        if record.status == "finished":
            self._teachers.finished(record)
            self._warnings.check_teacher(record)
            return
        file, logs = network_file(record), self.context.logs
        self._teachers.failed[file] = record
        if file in self._teachers.own:
            log = f"; its log: {logs.folder.path / record.log}" if logs and record.log else ""
            self._abort(f"the teacher could not be prepared: {record.reason}{log}")
            return
        queued = [job for job in self._queue if isinstance(job, RecordedJob)]
        for student in [job for job in queued if file in job.teachers]:
            self._queue.remove(student)
            self._start(student)
            self.end(student.id, "failed", f"its teacher {record.id} failed: {record.reason}")

    def _abort(self, reason: str) -> None:
        self.fatal = self.fatal or reason
        self._queue.clear()

    # Queue and records

    def _start(self, job: QueuedJob) -> QueuedJob:
        """Return the job as it is sent to a slot, after recording its start."""
        if isinstance(job, CacheJob):
            assert self._cache_jobs is not None, "only the cache queues such jobs"
            self._cache_jobs.start(job)
            return job
        if isinstance(job, TrainJob):
            if self._cache_jobs is not None:
                job = self._cache_jobs.without_failed_entries(job)
            job = replace(job, exclusive=self._is_exclusive(job))
        if job.id not in self.records:
            job = replace(job, names=names_of(job.study))
            self._publish(
                RunStarted(
                    id=job.id,
                    role=job.role,
                    parent=job.parent,
                    params=dict(job.params),
                    tags=dict(job.tags),
                    seed=job.seed,
                    assignment=job.plain(),
                )
            )
        return job

    def _is_exclusive(self, job: TrainJob) -> bool:
        """Return True if all other jobs wait for this teacher.

        Training on more processors rounds differently.  So this depends only on the order of the
        study, which is the same in every run, and not on timing.
        """
        if job.keep not in self._teachers.own:
            return False
        running = [record for record in self.records.running(*ROLES) if record.id != job.id]
        return not running and all(job.keep in queued.teachers for queued in self._queue)

    def _record_epoch(
        self,
        record: Record,
        epoch: int,
        metrics: Metrics,
        slot: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        if epoch == len(record.epochs) + 1:
            self._publish(EpochFinished(record.id, epoch, dict(metrics), slot, clock))
            self._epoch_ended(record, epoch)

    def _publish(self, event: Event) -> None:
        self.context.bus.publish(event)
        self.records.apply(event)

    def _resume(self) -> None:
        """Queue the missing teachers and the unfinished trainings of an interrupted run."""
        self._teachers.queue_own()
        for record in self.records.running(*ROLES):
            if record.role != "teacher":
                study = read_study(record.job.study)
                self._teachers.request(self._bound.candidate(study).networks)
            self._queue.append(record.job)

    def _enqueue_student(
        self,
        record_id: str,
        study: Study,
        scores: Mapping[str, float] = MappingProxyType({}),
        **fields: Any,
    ) -> None:
        """Queue a training, after the missing teachers that it needs."""
        if self._cache_jobs is not None:
            study = self._cache_jobs.fixed(study)
        candidate, costs = self._bound.candidate(study), self.context.costs
        tags = tags_of(study, candidate.teachers) | costs.tags(candidate) | fields.pop("tags", {})
        defaults: dict[str, Any] = {
            "id": record_id,
            "role": "trial",
            "study": plain(study),
            "seed": study.seed,
            "epochs": study.train.epochs,
            "folder": self.context.folder,
            "teachers": self._teachers.request(candidate.networks),
            "params": self.study.flat(study),
            "tags": tags,
            "metrics": {**costs.of(candidate), **scores},
        }
        job = TrainJob(**(defaults | fields))
        self._queue.append(job)
        for file in {*job.teachers} & {*self._teachers.failed}:
            self._teacher_ended(self._teachers.failed[file])
