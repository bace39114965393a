"""Optuna's study of a search, and the file of its draws."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from raykd.study.config import Search
from raykd.tracking.journal import append_whole
from raykd.tuning.study_lock import check_lock


class DrawsFile(JournalFileBackend):
    """Optuna's journal in a file that only one process writes.

    It takes no lock and does not wait for the disk: a draw writes about ten lines, between two
    trials.  A killed process loses nothing, and after a power failure the study's own journal
    has all results.  An unfinished last line is removed when the file is opened.

    A draw takes a sixth of the CPU time that Optuna's SQLite storage needs (eight slots, ten
    parameters), because the results of other trials stay in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        _remove_unfinished_line(self._path)
        super().__init__(str(path))

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        check_lock(self._path.parent)
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open(self._path, "ab", buffering=0) as file:
            append_whole(file, lines.encode())


def first_fault(path: Path) -> str:
    """Return the first line of a file of draws that is not JSON, in words; empty if all are."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return f"line {number} is not JSON"
    return ""


def _remove_unfinished_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with open(path, "r+b") as file:
                file.truncate(end)


def startup_trials(search: Search) -> int:
    """Return the number of random trials with which a sampler that learns begins."""
    return max(4, min(10, search.trials // 2))


def open_optuna_study(
    name: str, search: Search, seed: int, file: str | Path, slots: int
) -> optuna.Study:
    """Create Optuna's study in a file, or load it to resume."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = optuna.storages.JournalStorage(DrawsFile(file))
    done = sum(summary.n_trials for summary in optuna.get_all_study_summaries(stored))
    directions = {
        "max": optuna.study.StudyDirection.MAXIMIZE,
        "min": optuna.study.StudyDirection.MINIMIZE,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=stored,
            study_name=name,
            load_if_exists=True,
            directions=[directions[direction] for direction in search.objectives.values()],
            sampler=search.sampler.build(
                seed=seed + done, startup_trials=startup_trials(search), slots=slots
            ),
        )
        study.set_metric_names(list(search.objectives))
        study.get_trials(deepcopy=False)  # reads the whole file
    return study
