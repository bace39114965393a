"""Searches: draw trials from a study's space, train them, and train the best again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna

from raykd.errors import StudyError, first_line
from raykd.models import Signature
from raykd.models.proxies import RankingProxy
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import (
    ArtifactSaved,
    Event,
    Note,
    PhaseStarted,
    StartPoint,
    StudyExtended,
    SummaryWritten,
    WarmStarted,
    WarningIssued,
)
from raykd.tracking.journal import Listener
from raykd.tuning.executors import RayExecutor
from raykd.tuning.optuna_growth import GROWTHS, copy_draws
from raykd.tuning.optuna_study import first_fault, open_optuna_study, startup_trials
from raykd.tuning.planner import Planner
from raykd.tuning.prior import prior_points
from raykd.tuning.proxy_ranking import rank_students
from raykd.tuning.result import StudyResult, read_result, read_search
from raykd.tuning.resume import resumed
from raykd.tuning.run import Executor, StudyRun, as_finished
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.session import RunSession
from raykd.tuning.study_description import describe_result
from raykd.tuning.study_dir import StudyFolder, Verb
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import search_of_trial
from raykd.tuning.warm_start import (
    MARK,
    absolute_reference,
    enqueue_start_points,
    start_points,
)

Draw = Callable[[StudyResult, Sequence[Event]], Path]
"""Writes a page about a result and its journal into the study's folder and returns its path."""

PAGE_FOLDER = "report"
"""Folder of the page among MLflow's artifacts."""


def search(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    extension: Sequence[str] | None = None,
    start_from: Sequence[str | Path] = (),
    allow_import: bool = False,
    objects: Mapping[str, Any] | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    executor: Executor | None = None,
    draw: Draw | None = None,
) -> StudyResult:
    """Search a study's space.

    Args:
        study: an open study (`load_study`), the path of a study file, or `FOLDER:trial-0007`: the
            study of that trial is searched again, the trial first.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to resume; `study` is then not read, and
            relative paths mean the working folder in which the search started.
        extension: overrides with which the study to resume grows (`raykd extend`), such as
            `search.trials=40`; None: it is only resumed.
        start_from: runs whose best trials are tried first, where they fit this study: a study's
            folder, `FOLDER:trial-0007`, or the id of a run in MLflow.  A resumed search remembers
            them.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        objects: handed over from Python, by kind (`PythonObjects`); only with a path or `resume`.
        verbose: show Ray's own output.
        listeners: called with every event as it happens.
        executor: trains the jobs; None: slots of a Ray cluster.
        draw: writes a page about the result into the study's folder, which is uploaded to MLflow.

    Raises:
        StudyError: the study, its data or the cluster cannot be used, another process works on
            the study to resume, or what decides its results has changed; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        folder, first = None, [str(run) for run in start_from]
        if resume is not None:
            folder, overrides = stack.enter_context(resumed(resume, "search"))
            study, overrides = folder.study_file, [*overrides, *(extension or ())]
        else:
            named = search_of_trial(study, overrides, [absolute_reference(run) for run in first])
            study, overrides, first = stack.enter_context(named)
        study = load_or_use(study, overrides, allow_import=allow_import, objects=objects)
        run = SearchRun(study, folder, first, verbose=verbose, listeners=listeners)
        run.draw, run.extends = draw, extension is not None
        return run.run(executor or RayExecutor())


class SearchRun(StudyRun[StudyResult]):
    """A search.

    Args:
        study, folder, search, verbose, listeners: as `StudyRun`'s.
        start_from: runs whose best trials are tried first.

    Attributes:
        draw: writes a page about the result into the study's folder; None: no page.
    """

    verb: ClassVar[Verb] = "search"

    def __init__(
        self,
        study: OpenStudy,
        folder: StudyFolder | None = None,
        start_from: Sequence[str] = (),
        *,
        search: Search | None = None,
        verbose: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        super().__init__(study, folder, search=search, verbose=verbose, listeners=listeners)
        self.start_from = tuple(map(absolute_reference, start_from))
        self.draw: Draw | None = None
        self._start_points: list[StartPoint] = []

    def check(self, study: OpenStudy, signature: Signature) -> None:
        if self.start_from:
            self._start_points = start_points(study, signature, self.start_from)

    def planner(self, session: RunSession, slots: int) -> SearchPlanner:
        study, search = session.study, session.prepared.search
        grace, epochs = getattr(search.scheduler, "grace_epochs", 0), study.settings.train.epochs
        if grace > epochs:
            text = f"search.scheduler.grace_epochs is {grace}, and a trial ends after {epochs}"
            session.bus.publish(WarningIssued(f"{text} (train.epochs): none is stopped early"))
        drawn = self._open_in_space(session, slots)
        # the best trials of other runs first
        runs = session.folder.start_from
        if runs and drawn.user_attrs.get(MARK) is None:
            points = self._start_points or start_points(study, session.signature, runs)
            if search.sampler.learns:
                count = startup_trials(search) // 2
                points = [*points, *prior_points(study, session.signature, runs, count)]
            enqueue_start_points(drawn, points, session.bus.publish)
            session.bus.publish(WarmStarted(points))
            # the sampler's seed counts the points that were put first
            drawn = self._open_optuna(session, slots)
        # then the architectures that a proxy ranks highest
        if isinstance(search.proxy, RankingProxy):
            session.bus.publish(PhaseStarted("screen"))
        rank_students(study, session.signature, session.data, drawn, search, session.bus.publish)
        return SearchPlanner(session.context(slots), drawn)

    def _open_optuna(self, session: RunSession, slots: int) -> optuna.Study:
        """Open Optuna's study; a file that cannot be read is replaced by a new one.

        The planner then gives the new one the trials of the journal.
        """
        settings, search = session.study.settings, session.prepared.search
        file = Path(session.folder.optuna)
        arguments = (settings.name, search, settings.seed, file, slots)
        try:
            return open_optuna_study(*arguments)
        except StudyError:
            raise
        except Exception as error:  # noqa: BLE001 - Optuna checks nothing while it reads
            damaged = file.with_name(f"{file.name}.damaged")
            file.replace(damaged)
            text = (
                f"{file} is damaged ({first_fault(damaged) or type(error).__name__}) and was "
                f"renamed to {damaged.name}; the sampler learns from the trials of the journal"
            )
            session.bus.publish(Note(None, {"warning_sampler": text}))
            return open_optuna_study(*arguments)

    def _open_in_space(self, session: RunSession, slots: int) -> optuna.Study:
        """Open Optuna's study; if the space has grown since it was written, adapt its trials."""
        drawn = self._open_optuna(session, slots)
        growths = sum(
            isinstance(event, StudyExtended) and event.space for event in session.prepared.events
        )
        if drawn.user_attrs.get(GROWTHS, 0) == growths:
            return drawn
        settings, file = session.study.settings, Path(session.folder.optuna)
        draft = file.with_name(f"{file.name}.grown")
        draft.unlink(missing_ok=True)
        search = session.prepared.search
        grown = open_optuna_study(settings.name, search, settings.seed, draft, slots)
        copy_draws(drawn, grown, session.study.bind(session.signature), session.records)
        grown.set_user_attr(GROWTHS, growths)
        draft.replace(file)
        return self._open_optuna(session, slots)

    def conclude(self, session: RunSession, planner: Planner) -> StudyResult:
        result, history = read_search(session.folder.path)
        tags = result.tags() | ({"drawing_ended": planner.note} if planner.note else {})
        for finalist in result.finalists:
            if finalist.distilled is not None:
                note = Note(finalist.trial.id, metrics=finalist.metrics())
                history.append(session.bus.publish(note))
        history.append(session.bus.publish(Note(None, tags, result.metrics())))
        history.append(session.bus.publish(describe_result(result)))
        if self.draw is not None:
            publish_page(self.draw, result, as_finished(history), session)
        return result

    def read(self, folder: Path) -> StudyResult:
        return read_result(folder)

    def describe(self, folder: Path) -> SummaryWritten:
        return describe_result(read_result(folder))


def publish_page(
    draw: Draw, result: StudyResult, history: Sequence[Event], session: RunSession
) -> None:
    """Write the page of a result and publish it as an artifact of the study.

    An error becomes a warning: the results do not depend on the page.
    """
    try:
        file = draw(result, history)
    except Exception as error:  # noqa: BLE001 - any error in a figure
        text = f"the report page was not written: {first_line(error)}"
        session.bus.publish(WarningIssued(text))
        return
    path = file.relative_to(session.folder.path)
    session.bus.publish(ArtifactSaved(None, str(path), folder=PAGE_FOLDER))
