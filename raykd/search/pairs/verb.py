"""A layer study, from an open study to its result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raykd.architecture import Task
from raykd.architecture.screens import Unscreened
from raykd.option import replaced_unchecked
from raykd.problems import StudyError
from raykd.search.conductor import Conductor
from raykd.search.driver import (
    Chronicle,
    Enterprise,
    Listener,
    Way,
    in_slots,
    opened,
    run,
)
from raykd.search.folder import StudyFolder
from raykd.search.pairs.arms import arms_of
from raykd.search.pairs.conducting import Arms
from raykd.search.pairs.files import write_files
from raykd.search.pairs.question import question_of
from raykd.search.pairs.result import PairsResult, read_pairs
from raykd.search.resuming import resumed
from raykd.search.shelf import Shelf
from raykd.search.trials import fixed_trial
from raykd.study.opened import OpenStudy
from raykd.study.schema import Unscheduled
from raykd.training.storage import Storage

Draw = Callable[[PairsResult], Iterable[Path]]
"""Draws pictures of a result into its folder, and says which."""

IN_MLFLOW = "pairs"
"""The folder of a layer study's files among the artifacts of its run."""


def pairs(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    draw: Draw | None = None,
    conduct: Callable[[Enterprise], Conductor] = in_slots,
) -> PairsResult:
    """Study which hint layer should teach which guided layer, and return what was found.

    Args:
        study: an open study (`load_study`), the path of a study file, or `FOLDER:trial-0007`: the
            layers of that trial's teacher and student are paired.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted layer study to go on with; `study` is then not read.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        listeners: called with every event as it happens.
        draw: draws the pictures; None: there are none.
        conduct: where trainings run: in slots, or in this process.

    Raises:
        StudyError: the study, its data or the cluster is not fit; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        folder = None
        if resume is not None:
            folder, overrides = stack.enter_context(resumed(resume, "pairs"))
            study = folder.given
        else:
            named = fixed_trial(study, overrides, pairs_open=True)
            study, overrides = stack.enter_context(named)
        study = opened(study, overrides, allow_import=allow_import)
        return _studied(study, folder, verbose, listeners, draw, conduct)


def _studied(
    study: OpenStudy,
    folder: StudyFolder | None,
    verbose: bool,
    listeners: Sequence[Listener],
    draw: Draw | None,
    conduct: Callable[[Enterprise], Conductor],
) -> PairsResult:
    how = replace(
        study.settings.search,
        finalists=1,
        sampler="random",
        scheduler=Unscheduled(),
        proxy=Unscreened(),
        max_hours=None,
    )
    if study.task is not None:
        check(study, study.task)
        how = replaced_unchecked(how, trials=_trainings(study, study.task))
    way = Way(_conductor, _Conclusion(draw), check)
    return run(
        study,
        folder,
        conduct,
        verb="pairs",
        how=how,
        verbose=verbose,
        listeners=listeners,
        way=way,
    )


def check(study: OpenStudy, task: Task) -> None:
    """See that a study can be a layer study.

    Raises:
        StudyError: see `question_of`; or none of its pairs can be compared by its loss.
    """
    question = question_of(study, task)
    arms = arms_of(question, study.settings.search.pairs)
    singles = [arm for arm in arms if arm.kind == "pair"]
    if all(arm.why_not for arm in singles):
        what = f"none of its {len(singles)} pairs can be compared: {singles[0].why_not}"
        place = ("knowledge", question.term, "pairs")
        mend = "take another loss, or name other layers"
        raise StudyError(study.document.problem(place, what, mend))


def _trainings(study: OpenStudy, task: Task) -> int:
    how = study.settings.search.pairs
    arms = arms_of(question_of(study, task), how)
    return how.seeds * sum(not arm.why_not for arm in arms)


def _conductor(enterprise: Enterprise, slots: int) -> Conductor:
    storage = Storage(enterprise.folder.storage)
    settings = enterprise.study.settings
    return Arms(
        question_of(enterprise.study, enterprise.task),
        enterprise.study,
        enterprise.task,
        enterprise.chronicle,
        storage,
        enterprise.folder.name,
        Shelf(settings, enterprise.data.fingerprint, storage, enterprise.task),
        enterprise.records,
        enterprise.search,
        slots=slots,
        caching=enterprise.caching(storage, slots),
        costs=enterprise.costs,
        logs=enterprise.logs,
        val_counts=enterprise.val_counts,
    )


@dataclass(frozen=True)
class _Conclusion:
    """Writes the files, has pictures drawn, and notes all of it for MLflow."""

    draw: Draw | None

    def __call__(
        self, chronicle: Chronicle, conductor: Conductor, folder: StudyFolder
    ) -> PairsResult:
        result = read_pairs(folder.path)
        files = [*write_files(result), *(self.draw(result) if self.draw is not None else ())]
        for file in files:
            chronicle.write(
                "artifact", id=None, path=str(file.relative_to(folder.path)), folder=IN_MLFLOW
            )
        chronicle.write("note", id=None, tags=result.tags(), metrics=result.figures(), step=0)
        return result
