"""What `raykd list` says of samplers and schedulers is what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import optuna
import pytest

from raykd.runtime.early_stopping import ParetoAsha, make_stopping_rule
from raykd.study.config import SAMPLERS, Sampler, Scheduler, Search
from raykd.tuning.samplers import make_sampler

SCHEDULERS = get_args(get_args(Scheduler)[0])
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.name)


def test_every_sampler_is_told() -> None:
    assert set(SAMPLERS) == set(get_args(Sampler))
    assert next(iter(SAMPLERS)) == Search().sampler


def drawn(name: str, result: Callable[[float, int], float]) -> list[Any]:
    """What a sampler draws when the trials come out as `result` says."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = make_sampler(name, seed=1, startup_trials=4, slots=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(8):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 3, step=0.25)
        y = trial.suggest_int("y", 1, 8)
        study.tell(trial, result(x, y))
    return [trial.params for trial in study.trials]


def up(x: float, y: int) -> float:
    return x + y


def down(x: float, y: int) -> float:
    return -x - y


@every_sampler
def test_a_sampler_learns_if_it_says_so(name: Sampler) -> None:
    same = drawn(name, up) == drawn(name, down)
    assert same is not SAMPLERS[name].learns


@every_scheduler
def test_a_scheduler_stops_early_if_it_says_so(scheduler: Any) -> None:
    rule = make_stopping_rule(Search(scheduler=scheduler()), epochs=9)
    assert (rule is not None) is scheduler.stops_early


@every_scheduler
def test_a_scheduler_looks_at_several_objectives_if_it_says_so(scheduler: Any) -> None:
    objectives: dict[str, Any] = {"val_accuracy": "max", "params": "min"}
    rule = make_stopping_rule(Search(scheduler=scheduler(), objectives=objectives), epochs=9)
    assert (rule is None or isinstance(rule, ParetoAsha)) is scheduler.several_objectives


@every_scheduler
def test_every_scheduler_says_when_to_take_it(scheduler: Any) -> None:
    assert scheduler.when and not scheduler.when.endswith(".")
    assert isinstance(scheduler.paper, str)


@every_sampler
def test_every_sampler_says_when_to_take_it(name: Sampler) -> None:
    about = SAMPLERS[name]
    assert about.summary.endswith(".") and about.when and not about.when.endswith(".")
    assert about.several_objectives  # test_samplers.py draws with each for two
