"""Single trainings without a search: in this process if possible, else in one slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from raykd.errors import Problem, StudyError
from raykd.models.proxies import NoProxy
from raykd.registry import replaced_unchecked
from raykd.runtime.cluster import is_remote
from raykd.study.open_study import OpenStudy
from raykd.study.samplers import Random
from raykd.study.schedulers import Unscheduled
from raykd.tracking.journal import Listener
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
    objects: Mapping[str, Any] | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train one concrete student: no search, the same file, the same record in MLflow.

    It is trained once under the study's seed and, if the study has replicates, again under fresh
    seeds with and without its teacher, as a search does for its finalists.

    Args:
        study: an open study, the path of a study file, or `FOLDER:trial-0007`: that trial of an
            earlier study, trained again with its drawn values.
        overrides: `a.b=value`, as on the command line; not with an open study.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        objects: handed over from Python, by kind (`PythonObjects`).
        verbose: show Ray's own output.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study leaves values open (names them), or cannot be started.
    """
    with study_of_trial(study, overrides) as (source, values):
        study = load_or_use(source, values, allow_import=allow_import, objects=objects)
        study.concrete()
        replicates = study.settings.search.replicates
        run = SingleRun(study, replicates=replicates, verbose=verbose, listeners=listeners)
        return run.run(_executor(study))


def train_teacher(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_import: bool = False,
    objects: Mapping[str, Any] | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train (or load) and evaluate the study's teacher or teachers alone.

    Raises:
        StudyError: the study has no teacher, or cannot be started.
    """
    study = load_or_use(study, overrides, allow_import=allow_import, objects=objects)
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
        study, verbose, listeners: as `StudyRun`'s.
        trials: 1; 0: the teachers alone are trained.
        replicates: further trainings under fresh seeds, with and without teacher.
    """

    verb: ClassVar[Verb] = "distill"

    def __init__(
        self,
        study: OpenStudy,
        trials: int = 1,
        replicates: int = 0,
        *,
        verbose: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        search = replaced_unchecked(
            study.settings.search,
            trials=trials,
            replicates=replicates,
            finalists=1,
            sampler=Random(),
            scheduler=Unscheduled(),
            proxy=NoProxy(),
        )
        super().__init__(study, search=search, verbose=verbose, listeners=listeners)


class TeacherRun(SingleRun):
    """A training and evaluation of the study's teachers alone."""

    verb: ClassVar[Verb] = "teacher"

    def __init__(
        self, study: OpenStudy, *, verbose: bool = False, listeners: Sequence[Listener] = ()
    ) -> None:
        super().__init__(study, trials=0, verbose=verbose, listeners=listeners)


def _executor(study: OpenStudy) -> Executor:
    """Return an executor in this process where one process of this machine suffices."""
    local = study.settings.cluster.workers_per_trial == 1 and not is_remote()
    return LocalExecutor() if local else RayExecutor()
