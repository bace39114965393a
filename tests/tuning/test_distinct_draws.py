"""The rule by which a search draws each feasible point once."""

from __future__ import annotations

import itertools
from collections import Counter

import optuna
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from raykd.compat.optuna_tpe import CachedTPE
from raykd.errors import Infeasible
from raykd.tuning.search_planner import DistinctDraws, NearSampler, SpaceExhausted

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def tpe(kind: type[TPESampler] = CachedTPE) -> TPESampler:
    return kind(seed=0, n_startup_trials=5, constant_liar=True)


def infeasible_share(sampler: BaseSampler, slots: int = 200) -> float:
    """Return the share of infeasible draws after the first trials of many slots."""
    study = optuna.create_study(sampler=sampler, directions=DIRECTIONS)

    def make(trial: Trial) -> float:
        width = trial.suggest_int("width", 0, 99)
        if width > 91:
            raise Infeasible("too wide")
        return trial.suggest_float("rate", 0, 1) - abs(width - 50)

    draws = DistinctDraws(study, make, learns=True)
    running = [draws.draw() for _ in range(slots)]
    before, ended = len(study.get_trials(deepcopy=False)), 25
    for _ in range(ended):
        trial, value = running.pop(0)
        draws.complete(trial, [value, value**2])
        running.append(draws.draw())
    count = len(study.get_trials(deepcopy=False)) - before
    return (count - ended) / count


def test_running_trials_do_not_lead_to_infeasible_points() -> None:
    """8% of the points are infeasible; Optuna's own TPE draws many more."""
    assert infeasible_share(tpe()) < 0.2 < infeasible_share(tpe(TPESampler))


def grid_of(study: optuna.Study) -> DistinctDraws[int]:
    """Return draws from a space of 36 points whose sum is to be large."""

    def make(trial: Trial) -> int:
        return sum(trial.suggest_categorical(name, range(6)) for name in "ab")

    return DistinctDraws(study, make, learns=isinstance(study.sampler, TPESampler))


@pytest.mark.parametrize("sampler", [tpe(), RandomSampler(0)])
def test_each_point_is_drawn_once(sampler: BaseSampler) -> None:
    study = optuna.create_study(sampler=sampler, direction="maximize")
    draws, points = grid_of(study), Counter[tuple[int, ...]]()
    for number in range(36):
        trial, value = draws.draw()
        draws.remember(trial.params, str(number))
        draws.complete(trial, [value])
        points[tuple(trial.params.values())] += 1
    assert set(points) == set(itertools.product(range(6), repeat=2))
    assert max(points.values()) == 1
    assert study.sampler is sampler
    with pytest.raises(SpaceExhausted):
        draws.draw()


def test_draws_after_a_repeat_are_near_it() -> None:
    study = optuna.create_study(sampler=RandomSampler(0))
    point = study.ask()
    for name in "abcdefgh":
        point.suggest_float(name, 0, 1)
    kept = []
    for seed in range(40):
        study.sampler = NearSampler(seed, point)
        trial = study.ask()
        kept += [trial.suggest_float(n, 0, 1) == point.params[n] for n in "abcdefgh"]
        assert trial.suggest_int("other", 0, 9) in range(10)
    assert 0.7 < sum(kept) / len(kept) < 0.9
    narrow = study.ask()
    assert narrow.suggest_float("a", 2, 3) >= 2, "a value out of range is not kept"


def test_point_that_failed_is_infeasible_for_the_sampler() -> None:
    study = optuna.create_study(sampler=tpe())
    draws = grid_of(study)
    for by_point in (True, False):
        trial, _ = draws.draw()
        draws.fail(trial, by_point=by_point)
    first, second = study.get_trials(deepcopy=False)
    assert {first.state, second.state} == {TrialState.FAIL}
    assert first.constraints == {"feasible": 0.0, "failure": 1.0}
    assert second.constraints == {"feasible": 0.0}
