"""Runs of a study: the part that searches, layer studies and single trainings share.

A run checks its study, loads the data, opens the study's folder, journal and tracking, lets an
executor train the jobs of its planner, and returns what it concludes.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from raykd.compat.packages import launcher
from raykd.errors import Problem, RayLost, StudyError
from raykd.models import Signature
from raykd.runtime.signals import begin_cleanup, received_stop_signal, stop_on_signals
from raykd.study.checks.latency import check_measured
from raykd.study.checks.load import check_shapes
from raykd.study.config import Cluster, Search
from raykd.study.costs import StudentCosts
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import (
    Event,
    PhaseStarted,
    StudyEnded,
    SummaryWritten,
    TrackingEnded,
    WarningIssued,
)
from raykd.tracking.journal import EventBus, Journal, Listener
from raykd.tracking.store_uri import absolute, masked
from raykd.training.build import signature_of
from raykd.tuning.export import export_students
from raykd.tuning.mlflow_store import with_recorded_store, without_password
from raykd.tuning.planner import Planner
from raykd.tuning.provenance import write_provenance
from raykd.tuning.records import TRAINING_EVENTS, Records, read_history
from raykd.tuning.resume import (
    check_same_files,
    check_unchanged,
    done_message,
    file_digests,
    is_done,
)
from raykd.tuning.session import Prepared, RunSession
from raykd.tuning.study_dir import StudyFolder, Verb, create_folder, save_extension
from raykd.tuning.study_input import CHECKS, load_data, located_problems
from raykd.tuning.study_lock import check_lock, is_lost, locked
from raykd.tuning.teacher_store import check_outputs_of_samples, remarks_on_weights

if TYPE_CHECKING:
    from raykd.tracking.sync import Tracker

UPLOAD_S = 60.0
"""Seconds after the end of a run in which MLflow gets what it does not have yet."""

INTERRUPTED_UPLOAD_S = 10.0
"""The same after a run that was interrupted."""

ResultT = TypeVar("ResultT")


class Executor(ABC):
    """Machine on which the jobs of a run are trained."""

    def check(self, cluster: Cluster) -> None:  # noqa: B027 - optional
        """Check that the machine has what the study requests.

        Raises:
            StudyError: it does not.
        """

    @abstractmethod
    def execute(self, run: StudyRun[Any], session: RunSession) -> Planner:
        """Train every job of the run's planner, and return the planner.

        Raises:
            KeyboardInterrupt: the user stopped it.
        """


class StudyRun(ABC, Generic[ResultT]):
    """One run of a study, new or resumed.

    Subclasses decide what is trained (`planner`) and what the result is (`conclude`).

    Args:
        study: checked.
        folder: of the interrupted run to resume; None: a new one is created.
        search: search settings; None: the study's.
        verbose: show Ray's own output.
        listeners: called with every event as it happens.

    Attributes:
        verb: command of which this is a run.
        start_from: runs whose best trials are tried first.
        extends: True for a run that extends the study of its folder.
    """

    verb: ClassVar[Verb]

    def __init__(
        self,
        study: OpenStudy,
        folder: StudyFolder | None = None,
        *,
        search: Search | None = None,
        verbose: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.study = study
        self.folder = folder
        self.search = search
        self.verbose = verbose
        self.listeners = listeners
        self.start_from: tuple[str, ...] = ()
        self.extends = False

    def check(self, study: OpenStudy, signature: Signature) -> None:
        """Check that this kind of run fits the study, before anything starts.

        Raises:
            StudyError: it does not.
        """

    @abstractmethod
    def planner(self, session: RunSession, slots: int) -> Planner:
        """Return the planner that decides what this number of slots trains."""

    @abstractmethod
    def conclude(self, session: RunSession, planner: Planner) -> ResultT:
        """Write what came out to the journal and the folder, and return it."""

    def read(self, folder: Path) -> ResultT:
        """Read the result of a run that has ended; only for runs that can be resumed."""
        raise NotImplementedError

    def describe(self, folder: Path) -> SummaryWritten | None:
        """Describe the result so far, for the pages of an interrupted run; None: nothing to say."""
        return None

    def run(self, executor: Executor) -> ResultT:
        """Check the study, train its jobs and return the result.

        Raises:
            StudyError: the study, its data or the machine cannot be used, or differ from those of
                the run to resume; or a training failed that all others need.
        """
        with stop_on_signals(), contextlib.ExitStack() as stack:
            if self.study.code is not None:  # another study may have files of the same names
                self.study.code.register()
            if self.folder is not None and self._is_done(self.folder):
                return self._read_done(self.folder)
            prepared = self._prepare(executor)
            folder = self.folder
            if folder is None:
                folder = self._create_folder()
                stack.enter_context(locked(folder.path, self.verb))
            return self._train(prepared, folder, executor)

    def _is_done(self, folder: StudyFolder) -> bool:
        if self.extends or not folder.journal.exists():
            return False
        history, records = read_history(folder.journal)
        return is_done(history, records, folder, with_recorded_store(self.study, history))

    def _read_done(self, folder: StudyFolder) -> ResultT:
        """Return the result of a finished study, and send to MLflow what it does not have yet."""
        from raykd.tracking.cursor import Cursor
        from raykd.tracking.sync import Tracker

        events: list[Event] = [WarningIssued(done_message(folder, self.study))]
        uri = self.study.settings.tracking.uri
        sent = Cursor(folder.journal, masked(absolute(uri))).load()
        if sent.end < folder.journal.stat().st_size:
            tracker = Tracker(folder.journal, uri, allow_code=self.study.runs_code)
            delivered = tracker.close(UPLOAD_S)
            events.append(TrackingEnded(delivered, str(tracker.status)))
        for event in events:
            for listener in self.listeners:
                listener(event)
        return self.read(folder.path)

    def _prepare(self, executor: Executor) -> Prepared:
        """Load the data and check all that can be checked before anything starts."""
        folder, history, records, extension = self.folder, [], Records(), None
        if folder is not None and folder.journal.exists():
            history, records = read_history(folder.journal)
        study = with_recorded_store(self.study, history)
        settings = study.settings
        search = self.search or settings.search
        with located_problems(study):
            executor.check(settings.cluster)
            data = load_data(settings, study.document)
            if folder is not None:
                extension = check_unchanged(history, folder, study, data, extending=self.extends)
            signature = signature_of(data)
            if study.signature is None:  # nothing could be checked before the data were loaded
                check_shapes(study, signature, checks=CHECKS)
            self.check(study, signature)
            digests = file_digests(study, signature)
            check_same_files(history, digests, extending=extension is not None)
            weights = remarks_on_weights(study, signature)
            check_outputs_of_samples(study, data)
            costs = StudentCosts(search)
            if folder is not None:
                costs.keep_in(folder.measured)
            if search.trials:
                check_measured(study.bind(signature), costs)
        if extension is not None:
            records.apply(extension)
        # the records have what matters of the trainings; their events take most of the memory
        history = [event for event in history if not isinstance(event, TRAINING_EVENTS)]
        return Prepared(
            study, data, signature, search, costs, history, records, digests, weights, extension
        )

    def _create_folder(self) -> StudyFolder:
        study, settings = self.study, self.study.settings
        with located_problems(study):
            return create_folder(
                settings.name,
                settings.cluster.storage,
                study.text,
                study.overrides,
                self.verb,
                self.start_from,
                study.code,
            )

    def _train(self, prepared: Prepared, folder: StudyFolder, executor: Executor) -> ResultT:
        """Train the planner's jobs with journal and tracking open, and write the result."""
        from raykd.tracking.sync import Tracker

        # open the journal and the tracking behind it
        prepared.costs.keep_in(folder.measured)
        if prepared.extension is not None:
            save_extension(folder, prepared.study.overrides, prepared.study.code)
        journal = Journal(folder.journal)
        bus = EventBus(journal, self.listeners, lambda: check_lock(folder.path))
        write_provenance(bus, prepared, folder)
        uri, runs_code = prepared.study.settings.tracking.uri, prepared.study.runs_code
        tracker = Tracker(folder.journal, uri, allow_code=runs_code)
        prepared = replace(prepared, study=without_password(prepared.study))
        status = "failed"
        try:
            # train
            session = RunSession(prepared, folder, bus, prepared.records, self.verbose)
            with located_problems(prepared.study):
                planner = executor.execute(self, session)
            if planner.fatal:
                raise StudyError(planner.fatal)
            # write the result
            export_students(session, planner)
            result = self.conclude(session, planner)
            status = "finished"
        except (KeyboardInterrupt, SystemExit, RayLost):
            status = "interrupted"
            raise
        except Exception as error:
            check_lock(folder.path)  # Tune may have wrapped the error
            if received_stop_signal():  # Ray's processes may have had the signal, too
                status = "interrupted"
                raise KeyboardInterrupt from None
            _check_disk(error, folder)
            raise
        finally:
            begin_cleanup(hurry=tracker.abandon)
            status = "lost" if is_lost(folder.path) else status
            if status in ("interrupted", "failed"):
                self._describe_part(bus, folder, status)
            _close(bus, journal, tracker, status)
        return result

    def _describe_part(self, bus: EventBus, folder: StudyFolder, status: str) -> None:
        """Write what a run has reached that ends before its time to the pages in MLflow."""
        try:
            summary = self.describe(folder.path)
            if summary is not None and summary.has_result:
                headline = f"{status.capitalize()}; best so far: {summary.headline}"
                bus.publish(replace(summary, headline=headline))
        except Exception:  # noqa: BLE001 - the error that ended the run is the one to report
            return


def as_finished(history: Sequence[Event]) -> list[Event]:
    """Return the events of a run as they will be when it has finished, for its last page."""
    return [*history, StudyEnded("finished", at=time.time_ns() // 1_000_000)]


def _check_disk(error: Exception, folder: StudyFolder) -> None:
    """Raise a clear error if a run ended because its disk is full or away."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, OSError) and str(cause.filename).startswith(str(folder.path)):
            fix = "free some space, then continue: "
            fix += f"{launcher()}raykd {folder.verb} --resume {folder.path}"
            text = f"{cause.filename} cannot be written: {cause.strerror}"
            raise StudyError(Problem(text, fix=fix)) from None


def _close(bus: EventBus, journal: Journal, tracker: Tracker, status: str) -> None:
    """Write the end of the run, and give MLflow time to get it."""
    if status == "lost":  # journal and MLflow belong to another process now
        tracker.abandon()
        journal.close()
        return
    with contextlib.suppress(OSError):  # the disk is full: its error is raised already
        bus.publish(StudyEnded(status))
    bus.publish(PhaseStarted("tracking"))
    delivered = tracker.close(UPLOAD_S if status == "finished" else INTERRUPTED_UPLOAD_S)
    bus.publish(TrackingEnded(delivered, str(tracker.status)))
    journal.close()
