"""Prepared studies and sessions: what runs, executors and planners share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raykd.data import Dataset
from raykd.models import Signature
from raykd.storage import Storage
from raykd.study.config import Search
from raykd.study.costs import StudentCosts
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import Event, Note, StudyExtended
from raykd.tracking.journal import EventBus
from raykd.training.teacher_cache.plan import CachePlan
from raykd.tuning.cache_jobs import CacheJobs
from raykd.tuning.failure_logs import Logs
from raykd.tuning.records import Records
from raykd.tuning.study_dir import StudyFolder
from raykd.tuning.teacher_store import Remarks, TeacherStore


@dataclass(frozen=True)
class RunContext:
    """Everything that a planner works with.

    Attributes:
        study: with its domains open.
        signature: inputs and classes of the data.
        search: search settings of the run.
        bus: takes every event.
        storage: of the files that every node must reach.
        folder: the study's folder below the storage.
        teacher_store: of teacher networks; missing ones are trained.
        records: of trainings, from the journal of the run that is resumed.
        costs: of students.
        cache_jobs: of teacher outputs; None: all teachers are run live.
        logs: of failed trainings; None: they are not gathered.
        val_counts: samples of each class of the validation split, to judge teachers by.
        slots: number of trials in parallel.
    """

    study: OpenStudy
    signature: Signature
    search: Search
    bus: EventBus
    storage: Storage
    folder: str
    teacher_store: TeacherStore
    records: Records
    costs: StudentCosts
    cache_jobs: CacheJobs | None = None
    logs: Logs | None = None
    val_counts: Sequence[int] = ()
    slots: int = 1


@dataclass(frozen=True)
class Prepared:
    """A study that passed every check, with its data.

    Attributes:
        study: checked.
        data: loaded.
        signature: inputs and classes of the data.
        search: search settings of the run.
        costs: of students, measured or estimated.
        history: events of the run that is resumed, without those of its trainings; empty for a new
            run.
        records: of its trainings.
        digests: SHA-256 of the files that decide what its models are, by name.
        weights: remarks on the weights that it loads.
        extension: growth of the study since its last run; None if it is the same.
    """

    study: OpenStudy
    data: Dataset
    signature: Signature
    search: Search
    costs: StudentCosts
    history: Sequence[Event]
    records: Records
    digests: Mapping[str, str]
    weights: Remarks
    extension: StudyExtended | None = None

    @property
    def events(self) -> list[Event]:
        """History of the run that is resumed, and its extension."""
        return [*self.history, *([] if self.extension is None else [self.extension])]


@dataclass(frozen=True)
class RunSession:
    """A run with an open journal.

    Attributes:
        prepared: its study and data.
        folder: of the study.
        bus: takes every event.
        records: of trainings, from the journal.
        verbose: whether Ray's own output is shown.
    """

    prepared: Prepared
    folder: StudyFolder
    bus: EventBus
    records: Records
    verbose: bool = False

    @property
    def study(self) -> OpenStudy:
        return self.prepared.study

    @property
    def data(self) -> Dataset:
        return self.prepared.data

    @property
    def signature(self) -> Signature:
        return self.prepared.signature

    def context(self, slots: int) -> RunContext:
        """Return the context of a planner for this number of slots."""
        study, data, search = self.study, self.data, self.prepared.search
        settings, storage = study.settings, Storage(self.folder.storage)
        plan = CachePlan(study, self.signature, len(data.train), search, data.unlabeled)
        return RunContext(
            study=study,
            signature=self.signature,
            bus=self.bus,
            storage=storage,
            folder=self.folder.name,
            teacher_store=TeacherStore(
                settings, data.fingerprint, storage, self.signature, self._warn_of_teacher
            ),
            records=self.records,
            search=search,
            costs=self.prepared.costs,
            cache_jobs=CacheJobs(
                plan,
                storage,
                data.fingerprint,
                len(data.train),
                slots=slots,
                publish=self.bus.publish,
            ),
            logs=Logs(self.folder, settings.cluster.workers_per_trial),
            val_counts=data.class_counts("val"),
            slots=slots,
        )

    def _warn_of_teacher(self, file: str, warning: str) -> None:
        key = Path(file).stem[:8]
        self.bus.publish(Note(None, {f"warning_teacher_{key}": warning}))
