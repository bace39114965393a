"""One training without a search: in this process where it fits, else in one slot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from raykd.errors import Problem, StudyError
from raykd.models.proxies import NoProxy
from raykd.registry import replaced_unchecked
from raykd.runtime.cluster import is_remote
from raykd.study.open_study import OpenStudy
from raykd.study.schedulers import Unscheduled
from raykd.tuning.event_bus import Listener
from raykd.tuning.executors import LocalExecutor, RayExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.run import Executor
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_dir import Verb
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import study_of_trial


def distill(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train one concrete student: no search, the same file, the same record in MLflow.

    It is trained once under the study's seed and, where the study asks for replicates, again
    under fresh seeds with and without its teacher, as a search does for its chosen students.

    Args:
        study: an open study, the path of a study file, or `FOLDER:trial-0007`: that trial of an
            earlier study, trained again with the values it drew.
        overrides: `a.b=value`, as on the command line; not with an open study.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study leaves something open (names it), or is not fit to start.
    """
    with study_of_trial(study, overrides) as (named, values):
        study = load_or_use(named, values, allow_import=allow_import)
        study.concrete()
        replicates = study.settings.search.replicates
        run = SingleRun(study, replicates=replicates, verbose=verbose, listeners=listeners)
        return run.run(_executor(study))


def train_teacher(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train (or load) and evaluate the study's teacher or teachers alone.

    Raises:
        StudyError: the study has no teacher, or is not fit to start.
    """
    study = load_or_use(study, overrides, allow_import=allow_import)
    if not study.teachers():
        raise StudyError(
            Problem(
                "the study has no teacher",
                path="teacher",
                fix="name its model: teacher: {model: {name: resnet, depth: 20}}",
                file=study.document.file,
            )
        )
    run = TeacherRun(study, verbose=verbose, listeners=listeners)
    return run.run(_executor(study))


class SingleRun(SearchRun):
    """One training of a concrete student, with its replicates.

    Args:
        study, settings: as `StudyRun`'s.
        trials: 1; 0: the teachers alone are trained.
        replicates: further trainings under fresh seeds, with and without teacher.
    """

    verb: ClassVar[Verb] = "distill"

    def __init__(
        self, study: OpenStudy, trials: int = 1, replicates: int = 0, **settings: Any
    ) -> None:
        super().__init__(study, **settings)
        self.search = replaced_unchecked(
            study.settings.search,
            trials=trials,
            replicates=replicates,
            finalists=1,
            sampler="random",
            scheduler=Unscheduled(),
            proxy=NoProxy(),
        )


class TeacherRun(SingleRun):
    """A training and evaluation of the study's teachers alone."""

    verb: ClassVar[Verb] = "teacher"

    def __init__(self, study: OpenStudy, **settings: Any) -> None:
        super().__init__(study, trials=0, **settings)


def _executor(study: OpenStudy) -> Executor:
    """Return an executor in this process where one process of this machine suffices."""
    local = study.settings.cluster.workers_per_trial == 1 and not is_remote()
    return LocalExecutor() if local else RayExecutor()
