"""Resuming a study, in its original working folder and only with unchanged inputs.

The study, the data's fingerprint and the content of every file that affects the models (weights,
configurations, source of custom code) must be the same.  Parts that do not affect results may
change: `tracking`, and the size of the cluster (`FREE`).  Changed package versions give a warning
only, because a search of several days must survive an upgrade.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from raykd.data import Dataset
from raykd.errors import Problem, StudyError
from raykd.models import Model, Task
from raykd.models.weights.files import weight_parts
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import dotted, parse_document
from raykd.tracking.events import DataLoaded, Event, StudyStarted
from raykd.tuning.study_dir import StudyFolder, Verb, open_folder
from raykd.tuning.study_lock import locked

E = TypeVar("E", bound=Event)

FREE = (
    "tracking",
    "cluster.slots",
    "cluster.gpus_per_worker",
    "cluster.cpus_per_worker",
    "cluster.max_failures",
    "cluster.storage",
    "cache.folder",
)
"""Parts of a study that may change before a resume."""

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
        fix = f"resume it with `raykd {folder.verb} --resume {folder.path}`"
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


def file_digests(study: OpenStudy, task: Task) -> dict[str, str]:
    """Return the SHA-256 of every file that affects the study's models, by name.

    Files below the working folder are named relative to it.

    Args:
        study: checked.
        task: inputs and classes of its models.
    """
    files: set[Path] = set()
    for candidate in study.bind(task).corners():
        files.update(_files_in(candidate.study))
    digests = {_name(file): _digest(file) for file in sorted(files)}
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


def check_unchanged(
    history: Sequence[Event], folder: StudyFolder, study: OpenStudy, data: Dataset
) -> None:
    """Check that a resumed study and its data have not changed.

    Args:
        history: events of the journal.
        folder: of the study.
        study: as it is now.
        data: as they are now.

    Raises:
        StudyError: they have changed; shows the differences.
    """
    problems = []
    start = _first(history, StudyStarted)
    if start is not None and (changed := _changes_of_study(start, study)):
        problems.append(
            Problem(
                f"the study has changed since it started: {_listed(changed)}",
                file=str(folder.study_file),
                fix="undo the changes to resume, or start a new study with them",
            )
        )
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


def check_same_files(history: Sequence[Event], digests: Mapping[str, str]) -> None:
    """Check that the files of a resumed study's models have not changed.

    Args:
        history: events of the journal.
        digests: `file_digests` the study now.

    Raises:
        StudyError: some have changed; names them.
    """
    start = _first(history, StudyStarted)
    if start is None or start.content is None:
        return
    before = start.content
    changes = []
    for name in sorted({*before, *digests}):
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


def _changes_of_study(start: StudyStarted, study: OpenStudy) -> list[str]:
    """Return the changed values of the study file; if there are none, the changed defaults."""
    overrides = study.overrides if start.overrides is None else start.overrides
    before = parse_document(start.given).with_overrides(overrides).data
    changed = [*_differences(before, study.document.data, ())]
    return changed or [*_differences(start.resolved, plain(study.settings), (), common=True)]


def _differences(old: Any, new: Any, place: tuple[Any, ...], common: bool = False) -> Iterator[str]:
    """Yield `a.b: 1 -> 2` for each place at which two plain values differ.

    Args:
        old, new: plain data.
        place: of both.
        common: compare only keys that both have (other versions of raykd have other options).
    """
    name = dotted(place)
    if any(name == free or name.startswith(f"{free}.") for free in FREE):
        return
    if old != new and all(value is None or isinstance(value, Mapping) for value in (old, new)):
        old, new = old or {}, new or {}
        for key in [*old, *(key for key in new if key not in old)]:
            if not common or (key in old and key in new):
                yield from _differences(old.get(key), new.get(key), (*place, key), common)
    elif _is_list(old) and _is_list(new) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*place, number), common)
    elif _comparable(old) != _comparable(new):
        yield f"{name}: {_value(old)} -> {_value(new)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _comparable(value: Any) -> Any:
    """Return a value as it is read from the journal's JSON."""
    if _is_list(value):
        return [_comparable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _comparable(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _value(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
