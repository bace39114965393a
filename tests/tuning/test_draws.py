"""Optuna's journal as raykd keeps it: found whole again, and a torn line harms nothing."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from raykd.study.config import Search
from raykd.study.samplers import Tpe
from raykd.tuning.samplers import DrawsFile
from raykd.tuning.search_run import open_optuna
from raykd.tuning.study_dir import create_folder

SEARCH = Search(sampler=Tpe(), trials=8)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def drawn(path: Path, trials: int) -> optuna.Study:
    """A study in this file, so many trials further on."""
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(DrawsFile(path)),
        study_name="s",
        load_if_exists=True,
    )
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
    return study


def test_what_was_drawn_is_found_again(tmp_path: Path) -> None:
    first = drawn(tmp_path / "optuna.log", 3)
    first.ask().suggest_float("x", 0, 1)  # under way when the process ends
    again = drawn(tmp_path / "optuna.log", 0)
    assert [trial.params for trial in again.trials] == [trial.params for trial in first.trials]
    assert [trial.state.name for trial in again.trials] == [*["COMPLETE"] * 3, "RUNNING"]


def test_optunas_own_backend_reads_it(tmp_path: Path) -> None:
    mine = drawn(tmp_path / "optuna.log", 3)
    backend = JournalFileBackend(str(tmp_path / "optuna.log"))
    theirs = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [trial.values for trial in theirs.trials] == [trial.values for trial in mine.trials]


def test_an_unfinished_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "optuna.log"
    drawn(path, 2)
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert len(drawn(path, 1).trials) == 3
    assert len(drawn(path, 0).trials) == 3


def test_a_search_takes_up_its_draws(tmp_path: Path) -> None:
    folder = create_folder("s", str(tmp_path), "", ())
    made = open_optuna("s", SEARCH, 0, folder, slots=2)
    for value in (0.5, 0.75):
        trial = made.ask()
        trial.suggest_int("width", 1, 8)
        made.tell(trial, value)
    again = open_optuna("s", SEARCH, 0, folder, slots=2)
    assert [trial.values for trial in again.trials] == [[0.5], [0.75]]
    assert again.direction == optuna.study.StudyDirection.MAXIMIZE
    assert Path(folder.optuna).is_file()
