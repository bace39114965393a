"""Resuming a study, in its original working folder and only with unchanged inputs.

The study, the data's fingerprint and the content of every file that affects the models (weights,
configurations, source of custom code) must be the same.  A few numbers may grow, in an extension
the space, too; parts that do not affect results may change (`study_changes.py`).  Changed package
versions give a warning only, because a search of several days must survive an upgrade.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from raykd.compat.packages import launcher
from raykd.data import Dataset
from raykd.errors import Problem, StudyError
from raykd.models import Model, Signature
from raykd.models.weights.files import weight_parts
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import DataLoaded, Event, StudyExtended, StudyStarted
from raykd.tuning.records import Records, last_status
from raykd.tuning.study_changes import GROWING, StudyChanges, changes_of_study
from raykd.tuning.study_dir import StudyFolder, Verb, open_folder
from raykd.tuning.study_lock import locked

E = TypeVar("E", bound=Event)

MAX_LISTED = 10
"""Maximum number of differences in a message."""


@contextlib.contextmanager
def resumed(path: str | os.PathLike[str], verb: Verb) -> Iterator[tuple[StudyFolder, list[str]]]:
    """Give the folder of an interrupted run and its overrides.

    Inside, the folder is locked, and the current directory is the run's original working folder.

    Args:
        path: the folder.
        verb: command that resumes it.

    Raises:
        StudyError: it is not a study's folder, another command created it, or another process
            works there.
    """
    folder, overrides = open_folder(path)
    check_verb(folder, verb)
    with locked(folder.path, verb), working_folder(folder.begun_in):
        yield folder, overrides


def check_verb(folder: StudyFolder, verb: Verb) -> None:
    """Check that an interrupted run is resumed by the command that started it.

    Raises:
        StudyError: another command started it.
    """
    if folder.verb == verb:
        return
    text = f"{folder.path} was created by `raykd {folder.verb}`"
    if folder.verb in ("search", "pairs"):
        fix = f"resume it with `{launcher()}raykd {folder.verb} --resume {folder.path}`"
        raise StudyError(Problem(f"{text}, not by `raykd {verb}`", fix=fix))
    raise StudyError(
        Problem(
            f"{text}, which cannot be resumed",
            fix=f"run `raykd {folder.verb}` on {folder.study_file} again; a trained teacher is "
            "reused, not trained again",
        )
    )


@contextlib.contextmanager
def working_folder(path: str | None) -> Iterator[None]:
    """Change the current directory to `path` inside; None: it stays."""
    previous = _current_folder()
    if path is None or path == previous:
        yield
        return
    os.chdir(path)
    try:
        yield
    finally:
        if previous is not None:
            os.chdir(previous)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


# Digests of the files of models


def file_digests(study: OpenStudy, signature: Signature) -> dict[str, str]:
    """Return the SHA-256 of every file that affects the study's models, by name.

    Files below the working folder are named relative to it, code that the study names by its file
    relative to the study file.

    Args:
        study: checked.
        signature: inputs and classes of its models.
    """
    files: set[Path] = set()
    for candidate in study.bind(signature).corners():
        files.update(_files_in(candidate.study))
    digests = {_name(file): _digest(file) for file in sorted(files)}
    digests |= study.code.digests() if study.code is not None else {}
    return {name: digest for name, digest in digests.items() if digest}


def _files_in(value: Any) -> Iterator[Path]:
    """Yield the files named anywhere in a concrete study or in a part of it."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _files_in(item)
    if not is_dataclass(value):
        return
    if isinstance(value, Model):
        yield from value.files()
    outputs = getattr(value, "outputs", None)
    if isinstance(outputs, str):
        yield Path(outputs).expanduser()
    weights = getattr(value, "weights", None)
    if isinstance(weights, str) and "://" not in weights and ":/" not in weights:
        try:
            yield from weight_parts(weights)
        except ValueError:  # reported where the weights are read
            yield Path(weights).expanduser()
    for field in fields(value):
        yield from _files_in(getattr(value, field.name))


def _name(file: Path) -> str:
    full, here = Path(os.path.abspath(file)), Path.cwd()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)


def _digest(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""


# Comparison with the start of the study


def is_done(
    history: Sequence[Event], records: Records, folder: StudyFolder, study: OpenStudy
) -> bool:
    """Return True for a finished study that has not changed: resuming it would train nothing.

    Args:
        history: events of the journal.
        records: of its trainings.
        folder: of the study.
        study: as it is now.
    """
    starts = [event for event in history if isinstance(event, StudyStarted)]
    if not starts or last_status(history) != "finished":
        return False
    if records.running("teacher", "trial", "replicate", "alone"):
        return False
    changes = changes_of_study(starts[-1], study, folder.verb, space_may_grow=False)
    return not changes.grown and not changes.other


def done_message(folder: StudyFolder, study: OpenStudy) -> str:
    """Return the message about a study that is to be resumed and is finished."""
    more = "--trials +8"
    if folder.verb == "pairs":
        more = f"--set search.pairs.seeds={study.settings.search.pairs.seeds + 2}"
    return (
        f"{folder.path} is finished: there is nothing to resume, and nothing was started; to train "
        f"more: {launcher()}raykd extend {folder.path} {more}"
    )


def check_unchanged(
    history: Sequence[Event],
    folder: StudyFolder,
    study: OpenStudy,
    data: Dataset,
    *,
    extending: bool = False,
) -> StudyExtended | None:
    """Check that the data of a resumed study are the same, and that the study has only grown.

    Args:
        history: events of the journal.
        folder: of the study.
        study: as it is now.
        data: as they are now.
        extending: True: it must have grown, and its space may be larger.

    Returns:
        The event of its growth since the last run; None if it is the same.

    Raises:
        StudyError: they have changed; shows the differences.
    """
    problems = []
    starts = [event for event in history if isinstance(event, StudyStarted)]
    changes = StudyChanges()
    if starts:
        space_may_grow = extending and folder.verb == "search"
        changes = changes_of_study(starts[-1], study, folder.verb, space_may_grow=space_may_grow)
    if changes.other:
        problems.append(_changed_study(folder, changes, extending=extending))
    elif extending and not changes.grown:
        text = "the extension adds nothing to the study"
        fix = "give more --trials or --replicates, or a larger space with --set; to continue an "
        fix += f"interrupted study: {launcher()}raykd {folder.verb} --resume {folder.path}"
        problems.append(Problem(text, fix=fix))
    before = _first(history, DataLoaded)
    if before is not None and before.fingerprint != data.fingerprint:
        problems.append(
            Problem(
                f"the data have changed since the study started ({_changes_of_data(before, data)})",
                path="data",
                fix=f"restore the data in {before.origin} to resume, or start a new study",
            )
        )
    if problems:
        raise StudyError(problems)
    return changes.extension()


def _changed_study(folder: StudyFolder, changes: StudyChanges, *, extending: bool) -> Problem:
    listed, file = _listed(changes.other), str(folder.study_file)
    numbers = ", ".join(GROWING.get(folder.verb, ()))
    if extending:
        text = f"the change is no extension, in which the study only grows: {listed}"
        space = " and the options and ranges of its space" if folder.verb == "search" else ""
        fix = f"change only numbers that may grow ({numbers}){space}, or start a new study"
        if "search.trials" in listed:
            fix += "; to add 8 trials: --trials +8"
        return Problem(text, file=file, fix=fix)
    fix = f"undo the changes to resume, or start a new study with them. Only {numbers} may grow"
    if folder.verb == "search":
        fix += f"; for a larger space: {launcher()}raykd extend {folder.path}"
    return Problem(f"the study has changed since it started: {listed}", file=file, fix=fix)


def check_same_files(
    history: Sequence[Event], digests: Mapping[str, str], *, extending: bool = False
) -> None:
    """Check that the files of a resumed study's models have not changed.

    Args:
        history: events of the journal.
        digests: `file_digests` the study now.
        extending: True: files of new models may have been added.

    Raises:
        StudyError: some have changed; names them.
    """
    starts = [event for event in history if isinstance(event, StudyStarted)]
    if not starts or starts[-1].content is None:
        return
    before = starts[-1].content
    changes = []
    for name in sorted({*before} if extending else {*before, *digests}):
        old, new = before.get(name), digests.get(name)
        if old != new:
            changes.append(f"{name} ({_short(old)} -> {_short(new)})")
    if changes:
        raise StudyError(
            Problem(
                "files that affect the models have changed since the study started "
                f"(SHA-256): {_listed(changes)}",
                fix="restore them to resume, or start a new study",
            )
        )


def other_versions(history: Sequence[Event], versions: Mapping[str, str]) -> list[str]:
    """Return the packages with changed versions since the last run: `torch 2.14 -> 2.15`.

    Args:
        history: events of the journal.
        versions: of the packages now.
    """
    runs = [event for event in history if isinstance(event, StudyStarted)]
    before = runs[-1].versions if runs else {}
    changed = [name for name in sorted(before) if versions.get(name) != before[name]]
    return [f"{name} {before[name]} -> {versions.get(name, 'not installed')}" for name in changed]


def _changes_of_data(before: DataLoaded, data: Dataset) -> str:
    changes = [f"fingerprint {before.fingerprint[:8]} -> {data.fingerprint[:8]}"]
    old, new = list(before.class_names), list(data.class_names)
    if old and old != new:
        lost, added = [c for c in old if c not in new], [c for c in new if c not in old]
        changes += [f"classes gone: {_listed(lost)}"] if lost else []
        changes += [f"new classes: {_listed(added)}"] if added else []
        changes += ["classes in another order"] if not lost and not added else []
    elif before.classes != data.classes:
        changes.append(f"classes {before.classes} -> {data.classes}")
    for part, size in data.sizes.items():
        if before.sizes.get(part) != size:
            changes.append(f"{part} samples {before.sizes.get(part, 0)} -> {size}")
    if before.origin != data.origin:
        changes.append(f"from {before.origin} -> {data.origin}")
    if len(changes) == 1:
        changes.append("same number of samples and same classes, but other content")
    return "; ".join(changes)


def _first(history: Sequence[Event], kind: type[E]) -> E | None:
    return next((event for event in history if isinstance(event, kind)), None)


def _listed(items: Iterable[str]) -> str:
    lines = list(items)
    more = f", and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return ", ".join(lines[:MAX_LISTED]) + more


def _short(digest: str | None) -> str:
    return digest[:8] if digest else "missing"
