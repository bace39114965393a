"""Samplers and schedulers behave as `raykd list` describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from helpers.search_cases import build_sampler
from raykd.study.config import Search
from raykd.study.promotion import Promotions
from raykd.study.samplers import SAMPLERS, Sampler
from raykd.study.schedulers import SCHEDULERS

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda cls: cls.name)
every_sampler_here = pytest.mark.parametrize(
    "sampler", [cls for cls in SAMPLERS if not cls.runs_code], ids=lambda cls: cls.name
)
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.name)


def test_default_sampler_is_listed_first() -> None:
    assert type(Search().sampler) is next(iter(SAMPLERS))


def drawn_values(sampler: type[Sampler], result: Callable[[float, int], float]) -> list[Any]:
    """Draw with a sampler whose trials have the results of `result`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=build_sampler(sampler(name=sampler.name), 1)
    )
    for _ in range(24):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 3, step=0.25)
        y = trial.suggest_int("y", 1, 8)
        study.tell(trial, result(x, y))
    return [trial.params for trial in study.trials]


def up(x: float, y: int) -> float:
    return x + y


def down(x: float, y: int) -> float:
    return -x - y


@every_sampler_here
def test_samplers_learn_as_documented(sampler: type[Sampler]) -> None:
    same = drawn_values(sampler, up) == drawn_values(sampler, down)
    assert same is not sampler.learns


@every_scheduler
def test_schedulers_stop_early_as_documented(scheduler: Any) -> None:
    rule = scheduler().build({"val_accuracy": "max"}, 9)
    assert (rule is not None) is scheduler.stops_early


@every_scheduler
def test_schedulers_use_several_objectives_as_documented(scheduler: Any) -> None:
    objectives: dict[str, Any] = {"val_accuracy": "max", "params": "min"}
    rule = scheduler().build(objectives, 9)
    assert (rule is None or isinstance(rule, Promotions)) is scheduler.several_objectives


@every_scheduler
def test_every_scheduler_documents_its_use(scheduler: Any) -> None:
    assert scheduler.when and not scheduler.when.endswith(".")
    assert isinstance(scheduler.paper, str)


@every_sampler
def test_every_sampler_documents_its_use(sampler: type[Sampler]) -> None:
    assert sampler.when and not sampler.when.endswith(".")
    # test_samplers.py draws with each for two
    assert sampler.several_objectives is (sampler.name != "cmaes")
