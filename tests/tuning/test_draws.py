"""Optuna's journal: complete after reopening, and robust to a truncated line."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from raykd.study.config import Search
from raykd.study.samplers import Tpe
from raykd.tuning.optuna_study import DrawsFile, open_optuna_study
from raykd.tuning.study_dir import create_folder

SEARCH = Search(objectives={"val_accuracy": "max"}, sampler=Tpe(), trials=8)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_with_trials(path: Path, trials: int) -> optuna.Study:
    """Open the study in this file and add trials."""
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(DrawsFile(path)),
        study_name="s",
        load_if_exists=True,
    )
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
    return study


def test_draws_are_read_back(tmp_path: Path) -> None:
    first = study_with_trials(tmp_path / "optuna.log", 3)
    first.ask().suggest_float("x", 0, 1)  # under way when the process ends
    reopened = study_with_trials(tmp_path / "optuna.log", 0)
    assert [trial.params for trial in reopened.trials] == [trial.params for trial in first.trials]
    assert [trial.state.name for trial in reopened.trials] == [*["COMPLETE"] * 3, "RUNNING"]


def test_optunas_backend_reads_journal(tmp_path: Path) -> None:
    mine = study_with_trials(tmp_path / "optuna.log", 3)
    backend = JournalFileBackend(str(tmp_path / "optuna.log"))
    theirs = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [trial.values for trial in theirs.trials] == [trial.values for trial in mine.trials]


def test_truncated_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "optuna.log"
    study_with_trials(path, 2)
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert len(study_with_trials(path, 1).trials) == 3
    assert len(study_with_trials(path, 0).trials) == 3


def test_search_continues_its_draws(tmp_path: Path) -> None:
    folder = create_folder("s", str(tmp_path), "", ())
    first = open_optuna_study("s", SEARCH, 0, folder.optuna, slots=2)
    for value in (0.5, 0.75):
        trial = first.ask()
        trial.suggest_int("width", 1, 8)
        first.tell(trial, value)
    second = open_optuna_study("s", SEARCH, 0, folder.optuna, slots=2)
    assert [trial.values for trial in second.trials] == [[0.5], [0.75]]
    assert second.direction == optuna.study.StudyDirection.MAXIMIZE
    assert Path(folder.optuna).is_file()
