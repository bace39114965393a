"""Searches: draw trials from a study's space, train them, and train the best again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from raykd.models import Task
from raykd.models.proxies import Ranking
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.tuning.event_bus import Listener
from raykd.tuning.executors import RayExecutor
from raykd.tuning.planner import Planner
from raykd.tuning.proxy_ranking import screen
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.resume import resumed
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.session import RunSession
from raykd.tuning.study_dir import StudyFolder, Verb
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import search_of_trial
from raykd.tuning.warm_start import MARK, Start, absolute, enqueue_start_points, starts


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
            study = folder.given
        else:
            named = search_of_trial(study, overrides, [absolute(run) for run in first])
            study, overrides, first = stack.enter_context(named)
        study = load_or_use(study, overrides, allow_import=allow_import)
        run = SearchRun(study, folder, first, verbose=verbose, listeners=listeners)
        return run.run(executor or RayExecutor())


class SearchRun(StudyRun[StudyResult]):
    """A search.

    Args:
        study, folder, settings: as `StudyRun`'s.
        start_from: runs whose best trials are tried first.
    """

    verb: ClassVar[Verb] = "search"

    def __init__(
        self,
        study: OpenStudy,
        folder: StudyFolder | None = None,
        start_from: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(study, folder, **settings)
        self.start_from = tuple(map(absolute, start_from))
        self._starts: list[Start] = []

    def check(self, study: OpenStudy, task: Task) -> None:
        if self.start_from:
            self._starts = starts(study, task, self.start_from)

    def planner(self, session: RunSession, slots: int) -> SearchPlanner:
        study, search = session.study, session.prepared.search
        settings = study.settings
        drawn = open_optuna(settings.name, search, settings.seed, session.folder, slots)
        # the best trials of other runs first
        runs = session.folder.start_from
        if runs and drawn.user_attrs.get(MARK) is None:
            points = self._starts or starts(study, session.task, runs)
            enqueue_start_points(drawn, points, session.bus.write)
            plain = [point.plain() for point in points]
            session.bus.tell({"event": "start", "starts": plain})
            # the sampler's seed counts the points that were put first
            drawn = open_optuna(settings.name, search, settings.seed, session.folder, slots)
        # then the architectures that a proxy ranks highest
        if isinstance(search.proxy, Ranking):
            session.bus.tell({"event": "phase", "phase": "screen"})
        screen(study, session.task, session.data, drawn, search, session.bus.write)
        return SearchPlanner(session.context(slots), drawn)

    def conclude(self, session: RunSession, planner: Planner) -> StudyResult:
        result = read_result(session.folder.path)
        tags = result.tags() | ({"drawing_ended": planner.note} if planner.note else {})
        session.bus.write("note", id=None, tags=tags, metrics=result.figures(), step=0)
        return result


def open_optuna(name: str, search: Search, seed: int, folder: StudyFolder, slots: int) -> Any:
    """Optuna's study in the folder's own file, made or taken up."""
    import optuna

    from raykd.tuning.samplers import DrawsFile

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = optuna.storages.JournalStorage(DrawsFile(folder.optuna))
    done = sum(summary.n_trials for summary in optuna.get_all_study_summaries(stored))
    startup = max(4, min(10, search.trials // 2))
    towards = {
        "max": optuna.study.StudyDirection.MAXIMIZE,
        "min": optuna.study.StudyDirection.MINIMIZE,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = optuna.create_study(
            storage=stored,
            study_name=name,
            load_if_exists=True,
            directions=[towards[direction] for direction in search.objectives.values()],
            sampler=search.sampler.build(seed=seed + done, startup_trials=startup, slots=slots),
        )
        made.set_metric_names(list(search.objectives))
    return made
