"""Searches: draw trials from a study's space, train them, and train the best again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import optuna

from raykd.models import Task
from raykd.models.proxies import RankingProxy
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import Note, PhaseStarted, StartPoint, WarmStarted
from raykd.tracking.journal import Listener
from raykd.tuning.executors import RayExecutor
from raykd.tuning.planner import Planner
from raykd.tuning.proxy_ranking import screen
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.resume import resumed
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.samplers import DrawsFile
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.session import RunSession
from raykd.tuning.study_dir import StudyFolder, Verb
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import search_of_trial
from raykd.tuning.warm_start import (
    MARK,
    absolute_reference,
    enqueue_start_points,
    start_points,
)


def search(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    start_from: Sequence[str | Path] = (),
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    executor: Executor | None = None,
) -> StudyResult:
    """Search a study's space.

    Args:
        study: an open study (`load_study`), the path of a study file, or `FOLDER:trial-0007`: the
            study of that trial is searched again, the trial first.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to resume; `study` is then not read, and
            relative paths mean the working folder in which the search started.
        start_from: runs whose best trials are tried first, where they fit this study: a study's
            folder, `FOLDER:trial-0007`, or the id of a run in MLflow.  A resumed search remembers
            them.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: show Ray's own output.
        listeners: called with every event as it happens.
        executor: trains the jobs; None: slots of a Ray cluster.

    Raises:
        StudyError: the study, its data or the cluster cannot be used, another process works on
            the study to resume, or what decides its results has changed; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        folder, first = None, [str(run) for run in start_from]
        if resume is not None:
            folder, overrides = stack.enter_context(resumed(resume, "search"))
            study = folder.study_file
        else:
            named = search_of_trial(study, overrides, [absolute_reference(run) for run in first])
            study, overrides, first = stack.enter_context(named)
        study = load_or_use(study, overrides, allow_import=allow_import)
        run = SearchRun(study, folder, first, verbose=verbose, listeners=listeners)
        return run.run(executor or RayExecutor())


class SearchRun(StudyRun[StudyResult]):
    """A search.

    Args:
        study, folder, search, verbose, listeners: as `StudyRun`'s.
        start_from: runs whose best trials are tried first.
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
        self._start_points: list[StartPoint] = []

    def check(self, study: OpenStudy, task: Task) -> None:
        if self.start_from:
            self._start_points = start_points(study, task, self.start_from)

    def planner(self, session: RunSession, slots: int) -> SearchPlanner:
        study, search = session.study, session.prepared.search
        settings = study.settings
        drawn = open_optuna(settings.name, search, settings.seed, session.folder, slots)
        # the best trials of other runs first
        runs = session.folder.start_from
        if runs and drawn.user_attrs.get(MARK) is None:
            points = self._start_points or start_points(study, session.task, runs)
            enqueue_start_points(drawn, points, session.bus.publish)
            session.bus.publish(WarmStarted(points))
            # the sampler's seed counts the points that were put first
            drawn = open_optuna(settings.name, search, settings.seed, session.folder, slots)
        # then the architectures that a proxy ranks highest
        if isinstance(search.proxy, RankingProxy):
            session.bus.publish(PhaseStarted("screen"))
        screen(study, session.task, session.data, drawn, search, session.bus.publish)
        return SearchPlanner(session.context(slots), drawn)

    def conclude(self, session: RunSession, planner: Planner) -> StudyResult:
        result = read_result(session.folder.path)
        tags = result.tags() | ({"drawing_ended": planner.note} if planner.note else {})
        session.bus.publish(Note(None, tags, result.metrics()))
        return result


def open_optuna(
    name: str, search: Search, seed: int, folder: StudyFolder, slots: int
) -> optuna.Study:
    """Create Optuna's study in the folder's file, or load it to resume."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = optuna.storages.JournalStorage(DrawsFile(folder.optuna))
    done = sum(summary.n_trials for summary in optuna.get_all_study_summaries(stored))
    startup = max(4, min(10, search.trials // 2))
    directions = {
        "max": optuna.study.StudyDirection.MAXIMIZE,
        "min": optuna.study.StudyDirection.MINIMIZE,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=stored,
            study_name=name,
            load_if_exists=True,
            directions=[directions[direction] for direction in search.objectives.values()],
            sampler=search.sampler.build(seed=seed + done, startup_trials=startup, slots=slots),
        )
        study.set_metric_names(list(search.objectives))
    return study
