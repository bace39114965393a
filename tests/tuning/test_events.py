"""What `raykd list` says of samplers and schedulers is what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from helpers.search_cases import build_sampler
from raykd.runtime.early_stopping import make_stopping_rule
from raykd.study.config import Search
from raykd.study.samplers import SAMPLERS, Sampler
from raykd.study.schedulers import SCHEDULERS, ParetoAsha

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda cls: cls.name)
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.name)


def test_the_default_sampler_is_listed_first() -> None:
    assert type(Search().sampler) is next(iter(SAMPLERS))


def drawn(sampler: type[Sampler], result: Callable[[float, int], float]) -> list[Any]:
    """What a sampler draws when the trials come out as `result` says."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=build_sampler(sampler(name=sampler.name), 1)
    )
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
def test_a_sampler_learns_if_it_says_so(sampler: type[Sampler]) -> None:
    same = drawn(sampler, up) == drawn(sampler, down)
    assert same is not sampler.learns


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
def test_every_sampler_says_when_to_take_it(sampler: type[Sampler]) -> None:
    assert sampler.when and not sampler.when.endswith(".")
    assert sampler.several_objectives  # test_samplers.py draws with each for two
