"""References to a trial of an earlier study, `FOLDER:trial-0007`, as the start of a run."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd.arguments import near
from raykd.compat.packages import launcher
from raykd.errors import Problem, StudyError
from raykd.study.open_study import OpenStudy
from raykd.study.space.reuse import open_paths
from raykd.study.space.space import read_space
from raykd.study.yaml_file import Document, parse_document, parse_place
from raykd.tuning.records import Record
from raykd.tuning.result import read_result
from raykd.tuning.resume import working_folder
from raykd.tuning.study_dir import StudyFolder, open_folder

StudySource = OpenStudy | str | Path
"""An open study, the path of a study file, or `FOLDER:TRIAL`."""


@contextlib.contextmanager
def study_of_trial(
    study: StudySource, overrides: Sequence[str], *, pairs_open: bool = False
) -> Iterator[tuple[StudySource, Sequence[str]]]:
    """Give the study file and overrides of a study, or of a trial named `FOLDER:TRIAL`.

    For a trial: its study's file, with the drawn values in place of the open domains, then
    `overrides`.  Relative paths are relative to the working folder in which its study started.
    Anything else is returned unchanged.

    Args:
        study: an open study, the path of a study file, or `FOLDER:TRIAL`.
        overrides: `a.b=value`.
        pairs_open: keep the domains of layer pairs open.

    Raises:
        StudyError: the folder is not a study's, it has no such trial, or the trial failed and
            nothing is overridden.
    """
    named = _named(study)
    if named is None:
        yield study, overrides
        return
    folder, study_overrides, record = named
    if record.status == "failed" and not overrides:
        raise StudyError(
            Problem(
                f"{record.id} of {folder.name} failed: {record.reason}",
                fix="name another trial, or change the cause with --set",
            )
        )
    document = parse_document(folder.study_file.read_text(), str(folder.study_file)).with_overrides(
        study_overrides
    )
    values = _values(document, record, pairs_open=pairs_open)
    with working_folder(folder.begun_in):
        yield str(folder.study_file), [*study_overrides, *values, *overrides]


@contextlib.contextmanager
def search_of_trial(
    study: StudySource, overrides: Sequence[str], start_from: Sequence[str]
) -> Iterator[tuple[StudySource, Sequence[str], list[str]]]:
    """Give the study file, overrides and runs to start from, for a study named `FOLDER:TRIAL`.

    Searching a trial means a new search of its study that tries this trial first.

    Raises:
        StudyError: the folder is not a study's, or it has no such trial.
    """
    named = _named(study)
    if named is None:
        yield study, overrides, list(start_from)
        return
    folder, study_overrides, record = named
    first = f"{folder.path}:{record.id}"
    with working_folder(folder.begun_in):
        yield str(folder.study_file), [*study_overrides, *overrides], [first, *start_from]


def _named(study: StudySource) -> tuple[StudyFolder, list[str], Record] | None:
    """Return the folder, its overrides and the trial that a text names; None without a trial."""
    if not isinstance(study, str | Path) or Path(study).expanduser().is_file():
        return None
    path, colon, trial = str(study).rpartition(":")
    folder_path = Path(study).expanduser()
    if folder_path.is_dir() and (folder_path / "folder.json").exists():
        folder, _ = open_folder(folder_path)
        raise _without_trial(folder, "this is a study's folder, neither a study file nor a trial")
    is_trial = re.fullmatch(r"trial-\d+", trial) is not None
    if not colon or not (is_trial or Path(path).expanduser().is_dir()):
        return None
    folder, overrides = open_folder(path)
    if not trial:
        raise _without_trial(folder, "the trial is missing after the colon")
    return folder, overrides, _trial(folder, trial)


def _trial(folder: StudyFolder, trial: str) -> Record:
    records = read_result(folder.path).records.of("trial", "replicate", "alone")
    for record in records:
        if record.id == trial:
            return record
    trials = [record.id for record in records if record.role == "trial"]
    listed = ", ".join(trials[:20]) + (f" and {len(trials) - 20} more" if len(trials) > 20 else "")
    text = f"{folder.name} has no trial {trial!r}; it has {listed or 'none'}"
    raise StudyError(Problem(text, fix=near(trial, trials)))


def _without_trial(folder: StudyFolder, text: str) -> StudyError:
    best = read_result(folder.path).best
    example = best.id if best is not None else "trial-0000"
    raykd = f"{launcher()}raykd"
    fix = (
        f"name one of its trials: {folder.path}:{example}; to continue the study: "
        f"{raykd} search --resume {folder.path}, or {raykd} extend {folder.path}"
    )
    return StudyError(Problem(f"{folder.path}: {text}", fix=fix))


def _values(document: Document, record: Record, *, pairs_open: bool) -> Iterator[str]:
    """Yield overrides that replace every part with open domains by the trial's values."""
    study = record.job.study
    space, _, _ = read_space(document)
    parts = dict.fromkeys(str(parse_place(path)[0]) for path in open_paths(space))
    for part in parts:
        value = study[part]
        if part == "knowledge" and pairs_open:
            value = _with_open_pairs(value, document.get(("knowledge",)))
        yield f"{part}={json.dumps(value)}"
    if record.job.seed != study["seed"]:
        yield f"seed={record.job.seed}"


def _with_open_pairs(terms: Sequence[Mapping[str, Any]], written: Any) -> list[dict[str, Any]]:
    """Return the trial's terms with the pairings of the study file instead of the drawn pairs."""
    opened = [dict(term) for term in terms]
    if isinstance(written, list) and len(written) == len(opened):
        for term, source in zip(opened, written, strict=True):
            pairs = source.get("pairs") if isinstance(source, Mapping) else None
            if isinstance(pairs, Mapping) and "pairing" in pairs and term.get("loss"):
                term["pairs"] = dict(pairs)
    return opened
