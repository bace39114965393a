"""Resuming a study: in the working folder it was begun in, and only if nothing that decides its
results has changed.

Compared are the study, the data's fingerprint, and the content of every file that decides what a
model is: weights, configurations, the source of own code.  What decides no result may change:
`tracking`, and how much of the cluster is used (`FREE`).  Other versions of packages are warned of,
because a search of days must survive an upgrade.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from raykd.data import Dataset
from raykd.errors import Problem, StudyError
from raykd.models import Model, Task
from raykd.models.weights.files import weight_parts
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import dotted, parse_document
from raykd.tuning.study_dir import StudyFolder, Verb, open_folder
from raykd.tuning.study_lock import locked

FREE = (
    "tracking",
    "cluster.slots",
    "cluster.gpus_per_worker",
    "cluster.cpus_per_worker",
    "cluster.max_failures",
    "cluster.storage",
    "cache.folder",
)
"""Parts of a study that may change before it is resumed."""

SHOWN = 10
"""Differences listed in a message."""

Event = Mapping[str, Any]


@contextlib.contextmanager
def resumed(path: str | os.PathLike[str], verb: Verb) -> Iterator[tuple[StudyFolder, list[str]]]:
    """The folder of an interrupted run and its overrides: locked, with the process in the working
    folder the run was begun in.

    Args:
        path: the folder.
        verb: what shall be done with it.

    Raises:
        StudyError: it is no study's folder, another verb made it, or another process works there.
    """
    folder, overrides = open_folder(path)
    refuse_another_verb(folder, verb)
    with locked(folder.path, verb), working_folder(folder.begun_in):
        yield folder, overrides


def refuse_another_verb(folder: StudyFolder, verb: Verb) -> None:
    """See that an interrupted run is resumed by the verb that began it.

    Raises:
        StudyError: it was begun by another.
    """
    if folder.verb == verb:
        return
    message = f"{folder.path} was made by `raykd {folder.verb}`"
    if folder.verb in ("search", "pairs"):
        fix = f"resume it with `raykd {folder.verb} --resume {folder.path}`"
        raise StudyError(Problem(f"{message}, not by `raykd {verb}`", fix=fix))
    raise StudyError(
        Problem(
            f"{message}, which cannot be resumed",
            fix=f"run `raykd {folder.verb}` on {folder.given} again; a trained teacher is "
            "reused, not trained again",
        )
    )


@contextlib.contextmanager
def working_folder(path: str | None) -> Iterator[None]:
    """Relative paths mean `path` inside; None: nothing changes."""
    before = _present_folder()
    if path is None or path == before:
        yield
        return
    os.chdir(path)
    try:
        yield
    finally:
        if before is not None:
            os.chdir(before)


def _present_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


# What a study began with


def file_digests(study: OpenStudy, task: Task) -> dict[str, str]:
    """SHA-256 of every file that decides what the study's models are, by name.

    Files below the working folder are named relative to it.

    Args:
        study: checked.
        task: what its models take and give.
    """
    found: set[Path] = set()
    for candidate in study.bind(task).corners():
        found.update(_files_in(candidate.study))
    digests = {_name(file): _digest(file) for file in sorted(found)}
    return {name: digest for name, digest in digests.items() if digest}


def _files_in(value: Any) -> Iterator[Path]:
    """The files named anywhere in a concrete study or one of its parts."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _files_in(one)
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


# What has changed since


def check_unchanged(
    known: Sequence[Event], folder: StudyFolder, study: OpenStudy, data: Dataset
) -> None:
    """See that a resumed study and its data are those that it began with.

    Args:
        known: the journal.
        folder: the study's.
        study: as it is now.
        data: as they are now.

    Raises:
        StudyError: they are not; shows the differences.
    """
    problems = []
    begun = _first(known, "study")
    if begun is not None and (changed := _changes_of_study(begun, study)):
        problems.append(
            Problem(
                f"the study has changed since it began: {_listed(changed)}",
                file=str(folder.given),
                fix="undo the changes to resume, or start a new study with them",
            )
        )
    before = _first(known, "dataset")
    if before is not None and before["fingerprint"] != data.fingerprint:
        problems.append(
            Problem(
                f"the data are not those the study began with ({_changes_of_data(before, data)})",
                path="data",
                fix=f"restore the data in {before['origin']} to resume, or start a new study",
            )
        )
    if problems:
        raise StudyError(problems)


def check_same_files(known: Sequence[Event], content: Mapping[str, str]) -> None:
    """See that the files of a resumed study's models hold what they held when it began.

    Args:
        known: the journal.
        content: `file_digests` the study now.

    Raises:
        StudyError: they do not; names them.
    """
    begun = _first(known, "study")
    before = (begun or {}).get("content")
    if before is None:
        return
    said = []
    for name in sorted({*before, *content}):
        old, new = before.get(name), content.get(name)
        if old != new:
            said.append(f"{name} ({_short(old)} -> {_short(new)})")
    if said:
        raise StudyError(
            Problem(
                "files that decide what the models are have changed since the study began "
                f"(SHA-256): {_listed(said)}",
                fix="restore them to resume, or start a new study",
            )
        )


def other_versions(known: Sequence[Event], versions: Mapping[str, str]) -> list[str]:
    """The packages whose versions differ from those the study ran with last: `torch 2.14 -> 2.15`.

    Args:
        known: the journal.
        versions: of the packages now.
    """
    ran = [event for event in known if event["event"] == "study"]
    before: Mapping[str, str] = ran[-1].get("versions", {}) if ran else {}
    names = sorted(before) if before else []
    changed = [name for name in names if versions.get(name) != before[name]]
    return [f"{name} {before[name]} -> {versions.get(name, 'not installed')}" for name in changed]


def _changes_of_study(begun: Event, study: OpenStudy) -> list[str]:
    """Values that are others now: those written, else defaults that became others."""
    overrides = begun.get("overrides", study.overrides)
    before = parse_document(begun["given"]).with_overrides(overrides).data
    changed = [*_differences(before, study.document.data, ())]
    resolved = begun.get("resolved") or {}
    return changed or [*_differences(resolved, plain(study.settings), (), known=True)]


def _differences(old: Any, new: Any, place: tuple[Any, ...], known: bool = False) -> Iterator[str]:
    """`a.b: 1 -> 2` for each place at which two plain values differ.

    Args:
        old, new: plain data.
        place: of both.
        known: leave out what only one of them has (options of another version of raykd).
    """
    name = dotted(place)
    if any(name == free or name.startswith(f"{free}.") for free in FREE):
        return
    if old != new and all(value is None or isinstance(value, Mapping) for value in (old, new)):
        old, new = old or {}, new or {}
        for key in [*old, *(key for key in new if key not in old)]:
            if not known or (key in old and key in new):
                yield from _differences(old.get(key), new.get(key), (*place, key), known)
    elif _is_list(old) and _is_list(new) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, (*place, number), known)
    elif _comparable(old) != _comparable(new):
        yield f"{name}: {_value(old)} -> {_value(new)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _comparable(value: Any) -> Any:
    """`value` as the journal's JSON gives it back."""
    if _is_list(value):
        return [_comparable(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _comparable(one) for key, one in value.items()}
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _value(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _changes_of_data(before: Event, data: Dataset) -> str:
    said = [f"fingerprint {before['fingerprint'][:8]} -> {data.fingerprint[:8]}"]
    old, new = before.get("class_names"), list(data.class_names)
    if old is not None and old != new:
        lost, added = [c for c in old if c not in new], [c for c in new if c not in old]
        said += [f"classes gone: {_listed(lost)}"] if lost else []
        said += [f"new classes: {_listed(added)}"] if added else []
        said += ["classes in another order"] if not lost and not added else []
    elif before["classes"] != data.classes:
        said.append(f"classes {before['classes']} -> {data.classes}")
    for part, size in data.sizes.items():
        if before["sizes"].get(part) != size:
            said.append(f"{part} samples {before['sizes'].get(part, 0)} -> {size}")
    if before["origin"] != data.origin:
        said.append(f"from {before['origin']} -> {data.origin}")
    if len(said) == 1:
        said.append("as many samples and the same classes, but other content")
    return "; ".join(said)


def _first(known: Sequence[Event], kind: str) -> Event | None:
    return next((event for event in known if event["event"] == kind), None)


def _listed(said: Iterable[str]) -> str:
    lines = list(said)
    more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return ", ".join(lines[:SHOWN]) + more


def _short(digest: str | None) -> str:
    return digest[:8] if digest else "missing"
