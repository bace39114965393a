"""Planner base: the job queue of a run and the records of its results.

Subclasses decide which trials to queue: `SearchPlanner` draws points of a space,
`LayerStudyPlanner` has a list.  Nothing here depends on Ray.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from raykd.errors import StudyError
from raykd.runtime.jobs import (
    DIVERGED,
    OUT_OF_MEMORY,
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
from raykd.study.short_names import training_names, trial_tags
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
    WarningIssued,
)
from raykd.tuning.failure_logs import Failure
from raykd.tuning.records import Record, run_name
from raykd.tuning.session import RunContext
from raykd.tuning.teacher_jobs import TeacherJobs, TeacherWarnings, network_file

ALIKE_FAILURES = 5
"""Number of trials after which a study ends if all have failed for the same reason."""

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
        self._bound = context.study.bind(context.signature)
        self._cache_jobs = context.cache_jobs
        self._queue: deque[QueuedJob] = deque()
        self._teachers = TeacherJobs(context, self._queue)
        self._warnings = TeacherWarnings(self.records, context.val_counts, context.bus.publish)
        self._idle_jobs = 0
        self._losses: Counter[str] = Counter()  # slots that were lost, by the id of their job

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
        if report.warnings:
            text = "\n".join(f"{record.id}: {warning}" for warning in report.warnings)
            self._publish(Note(record.id, {"warning_state": text}, step=None))
        costs = {name: float(value) for name, value in record.job.metrics.items()}
        for epoch, metrics in enumerate(report.history, 1):
            if epoch < report.epoch:  # that one is the report itself
                self._record_epoch(record, epoch, {**costs, **metrics})
        metrics = {**costs, **report.metrics}
        self._record_epoch(record, report.epoch, metrics, slot or None, report.clock)
        if report.done:
            self.end(record.id, "finished", "", metrics, class_hits=report.class_hits)

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
            self._abort_without_epochs(logged.reason)

    def end(
        self,
        record_id: str,
        status: EndStatus,
        reason: str = "",
        metrics: Metrics | None = None,
        failure: Failure | None = None,
        class_hits: Sequence[int] = (),
    ) -> None:
        """Record the end of a training; ignores ended trainings and jobs without a record.

        Args:
            record_id: id of the training.
            status: of its end.
            reason: of its failure, if there is no `failure`.
            metrics: of the whole training.
            failure: with its reason, place and log.
            class_hits: correct predictions for each class of the test split.
        """
        if record_id not in self.records:
            return
        record = self.records[record_id]
        if record.status not in ("running", "paused"):
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
                class_hits,
            )
        )
        if failure.log:
            self._publish(ArtifactSaved(record_id, failure.log, folder="logs"))
        if failure.raised_at:
            tags = {"raised_at": failure.raised_at}
            self._publish(Note(record_id, tags, step=len(record.epochs)))
        for file in (*record.job.state_files, record.job.failure_file):
            self.context.storage.remove(file)
        if record.role == "teacher":
            self._teacher_ended(record)
            return
        if record.role == "trial":
            self._trial_ended(record)
            self._check_alike(record)
        self._warnings.check_student(record)

    def keeps(self, job_id: str, metrics: Metrics) -> bool:
        """Return whether a trial trains another epoch; if not, it leaves its slot.

        Args:
            job_id: id of the trial's job.
            metrics: of its last epoch, with costs and the number of the epoch as `epoch`.
        """
        return True

    def leave(self, job_id: str) -> None:
        """Record that a job left its slot; ignores ended jobs and those without a record."""
        self.end(job_id, "stopped")

    def has_ended(self, job_id: str) -> bool:
        """Return True for a training with a record that has ended."""
        return job_id in self.records and self.records[job_id].status != "running"

    def slot_failed(
        self, job_id: str, reason: str, *, error: str = "", died: bool = False, began: bool = True
    ) -> None:
        """Queue the job of a lost slot again, or end it after too many losses.

        A training continues from its last finished epoch.

        Args:
            job_id: id of the job.
            reason: in one line.
            error: the slot's whole error, for the log.
            died: whether its process ended without an answer.
            began: whether the slot had begun the job; if not, the job is not to blame.
        """
        job = self._unfinished(job_id)
        if job is None:
            return  # an idle job, or one that has ended
        self._losses[job_id] += began
        if self._losses[job_id] <= self.study.settings.cluster.max_failures:
            self._queue.appendleft(job)
            if began:
                self._note_restart(job_id, reason)
            return
        if self._cache_jobs is not None and isinstance(job, CacheJob):
            self._cache_jobs.abort(job_id, reason, self._queue)
            return
        self._fail_slot(job_id, reason, error=error, died=died)

    def _unfinished(self, job_id: str) -> QueuedJob | None:
        """Return a job that a slot runs; None if there is none with this id."""
        if self._cache_jobs is not None and self._cache_jobs.is_running(job_id):
            return self._cache_jobs.running_job(job_id)
        if job_id in self.records and self.records[job_id].status == "running":
            return self.records[job_id].job
        return None

    def move(self, job_id: str, reason: str) -> None:
        """Queue the job of a slot that has to end, which is no failure of the job.

        Args:
            job_id: id of the job.
            reason: in one line.
        """
        job = self._unfinished(job_id)
        if job is not None:
            self._queue.appendleft(job)
            text = f"{job_id}: {reason}; it continues{self._progress(job_id)} in another slot"
            self.context.bus.publish(WarningIssued(text))

    def _note_restart(self, job_id: str, reason: str) -> None:
        """Publish that a job starts again in another slot."""
        losses, limit = self._losses[job_id], self.study.settings.cluster.max_failures
        if job_id in self.records:
            epochs = len(self.records[job_id].epochs)
            self._publish(Note(job_id, {"restarts": str(losses)}, step=epochs))
        place = self._progress(job_id)
        text = f"{job_id}: {reason}; it continues{place} in another slot ({losses} of {limit})"
        self.context.bus.publish(WarningIssued(text))

    def _progress(self, job_id: str) -> str:
        """Return the epoch after which a training continues, " after epoch 2"."""
        if job_id not in self.records:
            return ""
        epochs = len(self.records[job_id].epochs)
        return f" after epoch {epochs}" if epochs else " from its start"

    def _fail_slot(self, record_id: str, reason: str, *, error: str = "", died: bool) -> None:
        """End a job whose slots were lost; abort if no slot has ever finished an epoch."""
        record, logs = self.records[record_id], self.context.logs
        failure = Failure(reason)
        if logs is not None:
            failure = logs.collect(record.job, reason, more=error, died=died)
        self.end(record_id, "failed", failure=failure)
        self._abort_without_epochs(failure.reason)

    def _check_alike(self, record: Record) -> None:
        """Abort the study if all its trials have failed for the same reason.

        Training that diverges and memory that does not suffice depend on the point: others may be
        better.
        """
        if record.status != "failed" or record.reason.startswith((OUT_OF_MEMORY, DIVERGED)):
            return
        trials = [trial for trial in self.records.of("trial") if trial.status != "running"]
        causes = {_cause(trial) for trial in trials if trial.status == "failed"}
        all_failed = all(trial.status == "failed" for trial in trials)
        if len(trials) < ALIKE_FAILURES or not all_failed or len(causes) > 1:
            return
        place = f" at {record.raised_at}" if record.raised_at else ""
        self._abort(f"all {len(trials)} trials have failed alike{place}: {record.reason}")

    def _abort_without_epochs(self, reason: str) -> None:
        """Abort the study if no training has finished an epoch."""
        if not any(record.epochs for record in self.records.of(*ROLES)):
            self._abort(f"no slot could be started: {reason}")

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
            job = replace(job, names=training_names(job.study))
            self._publish(
                RunStarted(
                    id=job.id,
                    role=job.role,
                    parent=job.parent,
                    params=dict(job.params),
                    tags=dict(job.tags),
                    seed=job.seed,
                    assignment=job.plain(),
                    name=run_name(job),
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
                self._request_teachers(record)
            self._queue.append(record.job)

    def _request_teachers(self, record: Record) -> None:
        """Queue the training of the networks that a recorded training needs and that are gone.

        Raises:
            StudyError: named weights cannot be read.
        """
        study = read_study(record.job.study)
        self._teachers.request(self._bound.candidate(study).networks)

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
        tags = (
            trial_tags(study, candidate.teachers) | costs.tags(candidate) | fields.pop("tags", {})
        )
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


def _cause(record: Record) -> tuple[str, str]:
    """Return the reason of a failure without its numbers, and its place."""
    return re.sub(r"\d+", "0", record.reason), record.raised_at
