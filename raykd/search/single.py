"""One training without a search: in this process where it fits, else in one slot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raykd.architecture.screens import Unscreened
from raykd.option import replaced_unchecked
from raykd.problems import Problem, StudyError
from raykd.search.cluster import is_remote
from raykd.search.conductor import Conductor
from raykd.search.driver import Enterprise, Listener, in_slots, opened, run
from raykd.search.folder import Verb
from raykd.search.result import StudyResult
from raykd.search.trials import fixed_trial
from raykd.study.opened import OpenStudy
from raykd.study.schema import Unscheduled
from raykd.training.assignment import Assignment
from raykd.training.mailbox import Command
from raykd.training.storage import Storage


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
    with fixed_trial(study, overrides) as (named, values):
        study = opened(named, values, allow_import=allow_import)
        study.concrete()
        replicates = study.settings.search.replicates
        return _conducted(study, "distill", 1, replicates, verbose, listeners)


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
    study = opened(study, overrides, allow_import=allow_import)
    if not study.teachers():
        raise StudyError(
            Problem(
                "the study has no teacher",
                path="teacher",
                mend="name its model: teacher: {model: {name: resnet, depth: 20}}",
                file=study.document.file,
            )
        )
    return _conducted(study, "teacher", 0, 0, verbose, listeners)


def _conducted(
    study: OpenStudy,
    verb: Verb,
    trials: int,
    replicates: int,
    verbose: bool,
    listeners: Sequence[Listener],
) -> StudyResult:
    settings = study.settings
    how = replaced_unchecked(
        settings.search,
        trials=trials,
        replicates=replicates,
        finalists=1,
        sampler="random",
        scheduler=Unscheduled(),
        proxy=Unscreened(),
    )
    here = settings.cluster.workers_per_trial == 1 and not is_remote()
    conduct = in_this_process if here else in_slots
    return run(study, None, conduct, verb=verb, how=how, verbose=verbose, listeners=listeners)


def in_this_process(enterprise: Enterprise) -> Conductor:
    """Conduct a study in this process, one training after another, without Ray."""
    from raykd.training.worker import Bench, Seat, obey

    explorer = enterprise.conductor(slots=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = enterprise.data.to(device)
    seat = Seat(Bench(Storage(enterprise.folder.storage), data, device, rank=0, world=1))
    enterprise.chronicle.tell(
        {
            "event": "plan",
            "plan": None,
            "study": enterprise.study,
            "folder": enterprise.folder,
            "trials": explorer.expected_trials,
        }
    )
    try:
        while (assignment := explorer.next()) is not None:
            for result in _trained(seat, assignment, obey):
                explorer.report({"id": assignment.id, **assignment.metrics, **result})
    finally:
        seat.stop()
    return explorer


def _trained(seat: Any, assignment: Assignment, obey: Any) -> Any:
    """The results of one training, epoch by epoch, as a slot reports them."""
    begun = obey(seat, Command(0, "start", assignment.plain()))
    history = begun.get("history", [])
    while True:
        answer = begun if begun.get("failed") else obey(seat, Command(0, "epoch", {}))
        if answer.get("failed"):
            failed = {"failed": answer["reason"]}
            failed |= {key: answer[key] for key in ("traceback", "raised_at")}
            yield {"epoch": 0, "done": True, **failed}
            return
        yield {**answer["metrics"], **{k: answer[k] for k in ("epoch", "done")}, "history": history}
        history = []
        if answer["done"]:
            return
