"""One trial of an earlier study as the beginning of another (`FOLDER:trial-0007`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd.problems import Problem, StudyError
from raykd.search.folder import StudyFolder, open_folder
from raykd.search.records import Record
from raykd.search.result import read_result
from raykd.search.resuming import working_folder
from raykd.study.again import open_paths
from raykd.study.domains import near
from raykd.study.files import Document, parse_document
from raykd.study.place import parse_place
from raykd.study.space import read_space


@contextlib.contextmanager
def fixed_trial(
    study: Any, overrides: Sequence[str], *, pairs_open: bool = False
) -> Iterator[tuple[Any, Sequence[str]]]:
    """The study file and overrides for a study that may be named as `FOLDER:TRIAL`.

    For a trial they are its study's file with what the trial drew in place of what the file leaves
    open, then `overrides`; relative paths mean the working folder its study was begun in.  Anything
    else is given back as it is.

    Args:
        study: an open study, the path of a study file, or `FOLDER:TRIAL`.
        overrides: `a.b=value`.
        pairs_open: keep layer pairs open where the file leaves them open.

    Raises:
        StudyError: the folder is no study's, it has no such trial, or the trial failed and nothing
            is overridden.
    """
    named = _named(study)
    if named is None:
        yield study, overrides
        return
    folder, before, record = named
    if record.status == "failed" and not overrides:
        raise StudyError(
            Problem(
                f"{record.id} of {folder.name} failed: {record.reason}",
                mend="name another trial, or change the cause with --set",
            )
        )
    document = parse_document(folder.given.read_text(), str(folder.given)).with_overrides(before)
    values = _values(document, record, pairs_open=pairs_open)
    with working_folder(folder.begun_in):
        yield str(folder.given), [*before, *values, *overrides]


@contextlib.contextmanager
def trial_first(
    study: Any, overrides: Sequence[str], start_from: Sequence[str]
) -> Iterator[tuple[Any, Sequence[str], list[str]]]:
    """The study file, overrides and runs to start from, for a study named as `FOLDER:TRIAL`.

    A search of a trial is a new search of the trial's study that tries the trial first.

    Raises:
        StudyError: the folder is no study's, or it has no such trial.
    """
    named = _named(study)
    if named is None:
        yield study, overrides, list(start_from)
        return
    folder, before, record = named
    first = f"{folder.path}:{record.id}"
    with working_folder(folder.begun_in):
        yield str(folder.given), [*before, *overrides], [first, *start_from]


def _named(study: Any) -> tuple[StudyFolder, list[str], Record] | None:
    """The folder, its overrides and the trial that a text names; None if it names no trial."""
    if not isinstance(study, str | Path) or Path(study).expanduser().is_file():
        return None
    path, colon, trial = str(study).rpartition(":")
    whole = Path(study).expanduser()
    if whole.is_dir() and (whole / "folder.json").exists():
        folder, _ = open_folder(whole)
        raise _without_trial(folder, "is a study's folder")
    if not colon or not Path(path).expanduser().is_dir():
        return None
    folder, overrides = open_folder(path)
    if not trial:
        raise _without_trial(folder, "no trial is named")
    return folder, overrides, _trial(folder, trial)


def _trial(folder: StudyFolder, trial: str) -> Record:
    records = read_result(folder.path).records.of("trial", "replicate", "alone")
    for record in records:
        if record.id == trial:
            return record
    known = [record.id for record in records if record.role == "trial"]
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    what = f"{folder.name} has no trial {trial!r}; it has {listed or 'none'}"
    raise StudyError(Problem(what, mend=near(trial, known)))


def _without_trial(folder: StudyFolder, what: str) -> StudyError:
    best = read_result(folder.path).best
    example = best.id if best is not None else "trial-0000"
    return StudyError(
        Problem(f"{folder.path}: {what}", mend=f"name one of its trials: {folder.path}:{example}")
    )


def _values(document: Document, record: Record, *, pairs_open: bool) -> Iterator[str]:
    """Overrides that put the trial's values in place of every part that the file leaves open."""
    study = record.assignment.study
    space, _, _ = read_space(document)
    parts = dict.fromkeys(str(parse_place(path)[0]) for path in open_paths(space))
    for part in parts:
        value = study[part]
        if part == "knowledge" and pairs_open:
            value = _with_open_pairs(value, document.get(("knowledge",)))
        yield f"{part}={json.dumps(value)}"
    if record.assignment.seed != study["seed"]:
        yield f"seed={record.assignment.seed}"


def _with_open_pairs(terms: Sequence[Mapping[str, Any]], written: Any) -> list[dict[str, Any]]:
    """The trial's terms with the pairings of the study file in place of the pairs it drew."""
    found = [dict(term) for term in terms]
    if isinstance(written, list) and len(written) == len(found):
        for term, given in zip(found, written, strict=True):
            pairs = given.get("pairs") if isinstance(given, Mapping) else None
            if isinstance(pairs, Mapping) and "pairing" in pairs and term.get("loss"):
                term["pairs"] = dict(pairs)
    return found
