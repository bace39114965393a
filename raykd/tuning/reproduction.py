"""Reproduction: a student trained again from its record, and a comparison of the figures.

The training gets the concrete study and the seed of the record, in a study folder of its own
beside the recorded one.  Teachers and cached outputs are reused if their checksums match; others
are made again.  Times and latencies are not compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from raykd.errors import Problem, StudyError
from raykd.runtime.cluster import is_remote, plan_slots, this_machine, usable_cpus
from raykd.runtime.jobs import Report, Role, TrainJob
from raykd.storage import is_uri
from raykd.study.config import read_study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import parse_document, value_at
from raykd.tracking.events import (
    DataLoaded,
    EpochFinished,
    Event,
    RunStarted,
    StudyStarted,
    WarningIssued,
)
from raykd.tracking.journal import Listener
from raykd.tracking.mlflow_reader import default_store
from raykd.tuning.executors import LocalExecutor, RayExecutor
from raykd.tuning.planner import Planner
from raykd.tuning.provenance import git_commit, versions
from raykd.tuning.records import Record, Records, read_history
from raykd.tuning.reproduced_figures import TOLERANCE, Reproduction, compare
from raykd.tuning.resume import other_versions, working_folder
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.run_reference import recorded_training
from raykd.tuning.session import Prepared, RunContext, RunSession
from raykd.tuning.stored_study import is_fetched
from raykd.tuning.study_dir import StudyFolder, Verb, create_folder, open_folder
from raykd.tuning.study_input import load_or_use

STUDENTS: tuple[Role, ...] = ("trial", "replicate", "alone")


def reproduce(
    source: str | Path,
    *,
    tolerance: float = TOLERANCE,
    tracking_uri: str | None = None,
    allow_import: bool = False,
    objects: Mapping[str, Any] | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> Reproduction:
    """Train a student again from its record, and compare the figures.

    Args:
        source: a study's folder (its best trial), `FOLDER:trial-0007`, `FOLDER:TRAINING`, or the
            ID of a study's, trial's or training's run in MLflow.  If the study's folder is not on
            this machine, the record is taken from MLflow.
        tolerance: largest difference of figures that agree, see `TOLERANCE`.
        tracking_uri: URI of the MLflow store of a run ID; None: MLflow's default.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        objects: handed over from Python, by kind (`PythonObjects`).
        verbose: show Ray's own output.
        listeners: called with every event as it happens.

    Raises:
        StudyError: there is no such training, it failed or has not ended, or its data have
            changed; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        path, training = stack.enter_context(recorded_training(source, tracking_uri))
        folder, overrides = open_folder(path)
        history, records = read_history(folder.journal)
        name = f"{folder.path}:{training}"
        if is_fetched(path):  # this machine has its own storage and working folder
            name = f"{training} of MLflow run {source}"
            folder = replace(folder, begun_in=None)
            overrides = [*overrides, *_local_storage(folder, overrides)]
        recorded = RecordedTraining(name, folder, history, records, records[training])
        recorded.check()
        stack.enter_context(working_folder(folder.begun_in))
        study = load_or_use(
            folder.study_file, overrides, allow_import=allow_import, objects=objects
        )
        if is_fetched(path):
            folder = replace(folder, storage=study.settings.cluster.storage)
            recorded = replace(recorded, folder=folder)
            tracking = replace(study.settings.tracking, uri=default_store(tracking_uri))
            study = replace(study, settings=replace(study.settings, tracking=tracking))
        run = ReproductionRun(study, recorded, tolerance, verbose=verbose, listeners=listeners)
        stack.enter_context(_same_threads())
        return run.run(_executor(study, recorded))


def _local_storage(folder: StudyFolder, overrides: Sequence[str]) -> list[str]:
    """Return the override of a storage that does not exist on this machine; else an empty list."""
    written = parse_document(folder.study_file.read_text()).with_overrides(overrides)
    storage = value_at(written.data, ("cluster", "storage"))
    is_usable = isinstance(storage, str) and (
        is_uri(storage) or Path(storage).expanduser().is_dir()
    )
    return [] if is_usable else ["cluster.storage=studies"]


@dataclass(frozen=True)
class RecordedTraining:
    """A training to reproduce.

    Attributes:
        name: `FOLDER:TRAINING`, or the training and its study's run in MLflow.
        folder: its study's folder.
        history: events of that study.
        records: records of all trainings of that study.
        record: record of the training.
    """

    name: str
    folder: StudyFolder
    history: Sequence[Event]
    records: Records
    record: Record

    @property
    def start(self) -> StudyStarted:
        """Start of the run in which the training started."""
        start: StudyStarted | None = None
        for event in self.history:
            if isinstance(event, StudyStarted):
                start = event
            if isinstance(event, RunStarted) and event.id == self.record.id:
                break
        assert start is not None, "a training starts in a study"
        return start

    @property
    def ran_in_slot(self) -> bool:
        """True if a slot of Ray trained it, False if the process of the command did."""
        return any(
            isinstance(event, EpochFinished) and event.id == self.record.id and event.slot
            for event in self.history
        )

    def check(self) -> None:
        """Check that the training can be reproduced.

        Raises:
            StudyError: it is no student's, it failed, or it has not ended.
        """
        record = self.record
        if record.role not in STUDENTS:
            fix = f"name a trial, such as {self.folder.path}:trial-0000"
            text = f"{self.name} is a {record.role}; only students can be trained from their record"
            raise StudyError(Problem(text, fix=fix))
        if record.status not in ("finished", "stopped"):
            reason = f"failed: {record.reason}" if record.status == "failed" else "has not ended"
            raise StudyError(Problem(f"{self.name} {reason}", fix="name another training"))


class ReproductionRun(StudyRun[Reproduction]):
    """Trains a recorded student again.

    Args:
        study: the study of the record.
        recorded: the training.
        tolerance: largest deviation of figures that agree.
        verbose, listeners: as `StudyRun`'s.
    """

    verb: ClassVar[Verb] = "reproduce"

    def __init__(
        self,
        study: OpenStudy,
        recorded: RecordedTraining,
        tolerance: float = TOLERANCE,
        *,
        verbose: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        settings = study.settings
        tracking = settings.tracking
        name = f"{tracking.experiment or settings.name} reproductions"
        tracking = replace(tracking, experiment=name, register=None)
        study = replace(study, settings=replace(settings, tracking=tracking))
        search = read_study(recorded.record.job.study).search
        super().__init__(study, search=search, verbose=verbose, listeners=listeners)
        self._recorded = recorded
        self._tolerance = tolerance

    def _prepare(self, executor: Executor) -> Prepared:
        prepared = super()._prepare(executor)
        loaded = [event for event in self._recorded.history if isinstance(event, DataLoaded)]
        if loaded and loaded[-1].fingerprint != prepared.data.fingerprint:
            text = f"the data of {self._recorded.name} have changed since it was trained"
            fix = f"restore the data in {loaded[-1].origin}"
            raise StudyError(Problem(text, path="data", fix=fix))
        return prepared

    def _create_folder(self) -> StudyFolder:
        folder = self._recorded.folder
        name = f"{self.study.settings.name}-reproduced"
        text, overrides = self.study.text, self.study.overrides
        code = self.study.code
        return create_folder(name, folder.storage, text, overrides, self.verb, code=code)

    def planner(self, session: RunSession, slots: int) -> ReproductionPlanner:
        context = session.context(slots)
        job = self._recorded.record.job
        if not (isinstance(job, TrainJob) and job.cache_keys):
            context = replace(context, cache_jobs=None)
        planner = ReproductionPlanner(context, self._recorded.record)
        for file in planner.missing_teachers:
            text = (
                f"the weights of a teacher, {session.folder.storage}/{file}, are missing, so it is "
                "trained again; to use the recorded weights, copy them there from the machine "
                "that trained the study"
            )
            session.bus.publish(WarningIssued(text))
        return planner

    def conclude(self, session: RunSession, planner: Planner) -> Reproduction:
        old, new = self._recorded.record, planner.records[self._recorded.record.id]
        if new.status == "failed":
            raise StudyError(f"the training of {self._recorded.name} failed: {new.reason}")
        teachers_before = self._recorded.records.of("teacher")
        before = {each.job.network_file: each for each in teachers_before}
        teachers = [
            compare(before[each.job.network_file], each)
            for each in planner.records.of("teacher")
            if each.job.network_file in before and isinstance(each.job, TrainJob)
        ]
        return Reproduction(
            self._recorded.name,
            session.folder.path,
            compare(old, new),
            tuple(teachers),
            tuple(self._differences(session, new)),
            self._tolerance,
        )

    def _differences(self, session: RunSession, new: Record) -> Iterator[str]:
        """Yield what is different from the recorded run, one sentence each."""
        start, old = self._recorded.start, self._recorded.record
        yield from other_versions([start], versions())
        commit = start.git.get("commit") if isinstance(start.git, Mapping) else start.git
        if commit != git_commit():
            yield f"commit {_short(commit)} -> {_short(git_commit())}"
        now = session.prepared.digests
        for name, digest in (start.content or {}).items():
            if now.get(name) != digest:
                yield f"file {name} has changed"
        keys = [job.cache_keys for job in (old.job, new.job) if isinstance(job, TrainJob)]
        if any(keys[0]) and keys[1:] != keys[:1]:
            yield "the cached outputs of the teacher are others, or it runs live"


class ReproductionPlanner(Planner):
    """Trains one recorded student, after the teachers that are missing.

    Args:
        context: study, data, storage and records of the run.
        recorded: the student.
    """

    def __init__(self, context: RunContext, recorded: Record) -> None:
        super().__init__(context)
        self.expected_trials = 1
        self._recorded = recorded
        job = recorded.job
        self._enqueue_student(
            recorded.id,
            read_study(job.study),
            role=job.role,
            seed=job.seed,
            test=job.test,
            tags={**job.tags},
        )

    @property
    def missing_teachers(self) -> list[str]:
        """Files of the networks that are to be trained, below the storage."""
        jobs = [job for job in self._queue if isinstance(job, TrainJob) and job.role == "teacher"]
        return [job.keep for job in jobs if job.keep is not None]

    def report(self, job_id: str, report: Report, slot: str = "") -> None:
        super().report(job_id, report, slot)
        was_stopped = self._recorded.status == "stopped"
        if was_stopped and job_id == self._recorded.id:
            record = self.records[job_id]
            if len(record.epochs) == len(self._recorded.epochs):
                self.end(job_id, "stopped", metrics=record.metrics)

    def _enqueue_more(self) -> bool:
        return False

    def _has_more(self) -> bool:
        return False

    @property
    def _all_enqueued(self) -> bool:
        return True

    @property
    def finalists(self) -> list[Record]:
        return []

    def _trial_ended(self, record: Record) -> None:
        pass


def _short(commit: object) -> str:
    return str(commit)[:8] if commit else "none"


@contextlib.contextmanager
def _same_threads() -> Iterator[None]:
    """Restore the number of threads of this process at the end."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _executor(study: OpenStudy, recorded: RecordedTraining) -> Executor:
    """Return an executor that computes as the recorded one did: with as many threads."""
    cluster = study.settings.cluster
    if cluster.workers_per_trial > 1 or is_remote():
        return RayExecutor()
    if not recorded.ran_in_slot:
        return LocalExecutor()
    threads = max(1, int(cluster.cpus_per_worker))
    slots = plan_slots(cluster, this_machine()).slots
    return LocalExecutor(threads, max(threads, min(threads * slots, usable_cpus())))
