"""TPE with its looking up done once draws what Optuna's draws, number for number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from raykd.compat import optuna_tpe as tpe
from raykd.compat.optuna_tpe import PAUSED, CachedTPE, fits, make_tpe
from raykd.study.samplers import Tpe

TRIALS = 180
"""Enough for some to be beaten for good: four times the 25 that are good at most, and more."""

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]


def draw(trial: Trial) -> float:
    """A point of a conditional space, and what it is worth."""
    kind = trial.suggest_categorical("kind", ["mlp", "resnet", None])
    rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    width = trial.suggest_int("width", 4, 64, step=4)
    worth = 1 - abs(np.log10(rate) + 1) / 3 + width / 100
    if kind == "resnet":
        worth += trial.suggest_float("temperature", 1.0, 16.0) / 16
        worth += 0.1 * (trial.suggest_categorical("depth", [8, 14, 20]) == 14)
    elif kind == "mlp":
        # Its range changes, so cached values must be looked up again.
        worth -= trial.suggest_float("drift", 0.0, 1.0 + trial.number // 40)
        worth += trial.suggest_int("layers", 1, 64, log=True) / 64
    return worth


def end(study: optuna.Study, trial: Trial, worth: float, luck: np.random.RandomState) -> None:
    """End a trial: most are complete, some stopped, failed or infeasible."""
    values = [worth, trial.params["width"] * (1.0 + worth)][: len(study.directions)]
    fate = luck.choice(["whole", "stopped", "failed", "infeasible"], p=[0.6, 0.2, 0.08, 0.12])
    if fate == "failed":
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_constraint("params", 1.0 if fate == "infeasible" else 0.0)
    if fate == "whole" or (fate == "infeasible" and luck.rand() < 0.5):
        study.tell(trial, values)
    else:
        if len(values) == 1 and luck.rand() < 0.9:
            trial.report(worth / 2, step=int(luck.randint(1, 4)))
        study.tell(trial, state=TrialState.PRUNED)


def run(
    sampler: TPESampler, storage: BaseStorage, objectives: int, live: int
) -> list[dict[str, Any]]:
    """Return the draws of a sampler with `live` running trials, which end in any order."""
    luck = np.random.RandomState(0)
    study = optuna.create_study(
        storage=storage, sampler=sampler, directions=DIRECTIONS[:objectives]
    )
    running: list[tuple[Trial, float]] = []
    for _ in range(TRIALS):
        while len(running) >= live:
            trial, worth = running.pop(luck.randint(len(running)))
            end(study, trial, worth, luck)
        trial = study.ask()
        running.append((trial, draw(trial)))
    return [trial.params for trial in study.get_trials(deepcopy=False)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def in_memory(folder: Path) -> BaseStorage:
    return InMemoryStorage()


def in_a_journal(folder: Path) -> BaseStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(f"{folder}/{len(list(folder.iterdir()))}.log"))


@pytest.mark.parametrize(
    ("objectives", "live", "storage"),
    [(1, 1, in_memory), (1, 5, in_a_journal), (1, 40, in_memory), (2, 5, in_memory)],
)
def test_draws_equal_those_of_optuna(
    objectives: int, live: int, storage: Callable[[Path], BaseStorage], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"seed": 5, "n_startup_trials": 12, "constant_liar": live > 1}
    cached = CachedTPE(**arguments)
    draws = run(cached, storage(tmp_path), objectives, live)
    assert draws == run(TPESampler(**arguments), storage(tmp_path), objectives, live)
    assert draws != run(CachedTPE(**arguments | {"seed": 6}), storage(tmp_path), objectives, live)
    # All that makes it cached was in use.
    assert cached._columns.keys() == {key for params in draws for key in params}
    assert cached._beaten.any() == (objectives == 1)


def test_trial_sees_results_since_previous_one() -> None:
    """Nothing of the last trial's looking up is used for the next."""
    sampler = CachedTPE(seed=0, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    counts = []
    for _ in range(6):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_float("y", 0, 1)
        split = sampler._split
        counts.append(len(split.below) + len(split.above) if split else 0)
        study.tell(trial, 1.0)
    assert counts == [0, 1, 2, 3, 4, 5]


def test_studies_use_fast_implementation() -> None:
    assert fits()
    assert isinstance(Tpe().build(seed=0, startup_trials=4, slots=2), CachedTPE)


@pytest.mark.parametrize("part", ["_build_parzen_estimator", "_get_params"])
def test_other_optuna_version_uses_its_implementation(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TPESampler, part, lambda self, everything: None)
    assert not fits()
    assert type(make_tpe(seed=0)) is TPESampler


def test_optuna_without_function_uses_its_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tpe._tpe, "_split_trials")
    assert type(make_tpe(seed=0)) is TPESampler


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("liar", [False, True])
def test_paused_trials_count_as_stopped(objectives: int, liar: bool) -> None:
    """The next point is the same whether some trials have paused or were stopped."""
    points = []
    for pauses in (True, False):
        sampler = make_tpe(seed=1, n_startup_trials=1, constant_liar=liar)
        study = optuna.create_study(sampler=sampler, directions=DIRECTIONS[:objectives])
        luck = np.random.RandomState(3)
        for number in range(16):
            trial = study.ask({"rate": optuna.distributions.FloatDistribution(0, 1)})
            values = [float(luck.rand()) for _ in range(objectives)]
            if number % 3 != 1:
                study.tell(trial, values)
                continue
            if objectives == 1:
                trial.report(values[0], 2)
            if pauses:
                trial.set_user_attr(PAUSED, True)
            else:
                study.tell(trial, state=TrialState.PRUNED)
        points.append([trial.params for trial in study.get_trials(deepcopy=False)])
    assert points[0] == points[1]
    assert len({point["rate"] for point in points[0]}) == 16
