"""Successive halving with promotion: decisions for any sequence of reports."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
import pytest

from raykd import pareto
from raykd.study.promotion import Halving, Promotions
from raykd.study.schedulers import Asha, Hyperband

SINGLE = {"val_accuracy": "max"}
SEVERAL = {"val_accuracy": "max", "params": "min"}
EPOCHS = 9

Curve = Callable[[int, int], float]


def metrics(epoch: int, accuracy: float, params: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "val_accuracy": accuracy, "params": params}


def report(rule: Promotions, trial: str, epoch: int, accuracy: float, params: float = 1.0) -> bool:
    """Report an epoch; the trial pauses if the rule says so."""
    keeps = rule.keeps(trial, metrics(epoch, accuracy, params))
    if not keeps:
        rule.pause(trial, epoch)
    return keeps


class Simulation:
    """Slots on a simulated clock that drive a rule as a search does."""

    def __init__(self, rule: Promotions, slots: int, trials: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rule, self.slots, self.trials = rule, slots, trials
        self.final = random.random(trials)
        self.params = random.integers(1, 1000, trials).astype(float)
        self.epochs = dict.fromkeys(map(str, range(trials)), 0)
        self.promotions: list[tuple[str, int]] = []
        self._busy: list[tuple[float, str]] = []
        self._started = 0

    def values(self, trial: str, epoch: int) -> dict[str, float]:
        accuracy = self.final[int(trial)] * (1 - 0.5 / epoch)
        return metrics(epoch, accuracy, self.params[int(trial)])

    def run(self, finish: float = 0.0) -> None:
        now = 0.0
        while self._fill(now) or self._busy or self._finish(finish, now):
            now, trial = heapq.heappop(self._busy)
            self.epochs[trial] += 1
            epoch = self.epochs[trial]
            if epoch == EPOCHS:
                continue
            if self.rule.keeps(trial, self.values(trial, epoch)):
                heapq.heappush(self._busy, (now + 1 + int(trial) % 7 / 10, trial))
            else:
                assert self.rule.pause(trial, epoch)

    def _fill(self, now: float) -> bool:
        while len(self._busy) < self.slots:
            trial = self.rule.candidate
            if trial is not None:
                self.promotions.append((trial, self.rule.promote(trial)))
            elif self._started < self.trials:
                trial = str(self._started)
                self._started += 1
            else:
                return False
            heapq.heappush(self._busy, (now + 1 + int(trial) % 7 / 10, trial))
        return True

    def _finish(self, epochs: float, now: float) -> bool:
        for trial in self.rule.finish(epochs, self.slots):
            self.rule.promote(trial)
            heapq.heappush(self._busy, (now + 1, trial))
        return bool(self._busy)


@pytest.mark.parametrize("objectives", [SINGLE, SEVERAL])
@pytest.mark.parametrize("slots", [1, 8, 100])
@pytest.mark.parametrize("brackets", [1, 3])
def test_simulation_ends_with_best_at_full_budget(
    objectives: dict[str, str], slots: int, brackets: int
) -> None:
    rule = Promotions(objectives, Halving(EPOCHS, 1, 3, brackets))
    simulation = Simulation(rule, slots, trials=120)
    simulation.run()
    assert all(epochs in (1, 3, 9) for epochs in simulation.epochs.values())
    assert rule.candidate is None and len(rule.paused) == sum(
        epochs < EPOCHS for epochs in simulation.epochs.values()
    )
    best = str(int(simulation.final.argmax()))
    assert simulation.epochs[best] == EPOCHS
    whole = sum(epochs == EPOCHS for epochs in simulation.epochs.values())
    assert whole < 60, "most trials stay below the full budget"


def test_every_trial_of_best_third_is_promoted() -> None:
    rule = Promotions(SINGLE, Halving(EPOCHS, 1, 3))
    simulation = Simulation(rule, 4, trials=90)
    simulation.run()
    best = np.argsort(-simulation.final)[:30]
    assert all(simulation.epochs[str(trial)] >= 3 for trial in best)


@pytest.mark.parametrize("slots", [1, 16])
def test_ends_of_front_always_reach_full_budget(slots: int) -> None:
    for seed in range(5):
        rule = Promotions(SEVERAL, Halving(EPOCHS, 1, 3))
        simulation = Simulation(rule, slots, trials=60, seed=seed)
        simulation.run()
        smallest, best = simulation.params.argmin(), simulation.final.argmax()
        assert simulation.epochs[str(smallest)] == simulation.epochs[str(best)] == EPOCHS


@pytest.mark.parametrize("slots", [1, 16])
def test_finished_front_has_no_hole(slots: int) -> None:
    rule = Promotions(SEVERAL, Halving(EPOCHS, 1, 3))
    simulation = Simulation(rule, slots, trials=60)
    simulation.run(finish=math.inf)
    points = np.stack([-simulation.final, simulation.params], 1)
    assert all(simulation.epochs[str(trial)] == EPOCHS for trial in pareto.pareto(points))
    assert rule.on_front == []


def test_finish_stays_within_its_epochs_and_begins_at_highest_rung() -> None:
    rule = Promotions(SEVERAL, Halving(EPOCHS, 1, 3))
    for trial in range(2):  # too few to promote any: all non-dominated
        assert not report(rule, str(trial), 1, 0.1 * trial, trial + 1.0)
    report(rule, "higher", 1, 0.9, 9.0)
    if "higher" in rule.paused:
        rule.promote("higher")
    report(rule, "higher", 3, 0.95, 9.0)
    assert rule.on_front[0] == "higher"
    assert rule.finish(5, 10) == [], "six epochs are left to train"
    assert rule.finish(6 + 8, 10)[0] == "higher"


def test_first_arrivals_wait_until_rung_has_enough_trials() -> None:
    rule = Promotions(SINGLE, Halving(EPOCHS, 1, 3))
    assert not report(rule, "a", 1, 0.9)
    assert not report(rule, "b", 1, 0.5)
    assert rule.candidate is None
    assert not report(rule, "c", 1, 0.1)
    assert rule.candidate == "a"
    assert rule.promote("a") == 1
    assert rule.candidate is None and set(rule.paused) == {"b", "c"}


def test_repeated_epoch_changes_nothing() -> None:
    rule = Promotions(SINGLE, Halving(EPOCHS, 1, 3))
    for trial in "abc":
        report(rule, trial, 1, {"a": 0.9, "b": 0.5, "c": 0.1}[trial])
    rule.promote("a")
    assert rule.keeps("a", metrics(1, 0.9)), "a training that starts over passes its rung again"
    assert rule.candidate is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_objective_that_is_not_finite_never_continues(value: float) -> None:
    rule = Promotions(SEVERAL, Halving(EPOCHS, 1, 3))
    assert not rule.keeps("a", metrics(1, value))
    assert not rule.pause("a", 1)
    assert rule.candidate is None and rule.worst() is None


def test_worst_is_of_lowest_rung() -> None:
    rule = Promotions(SINGLE, Halving(EPOCHS, 1, 2))
    for trial, accuracy in {"a": 0.9, "b": 0.5, "c": 0.1, "d": 0.2}.items():
        report(rule, trial, 1, accuracy)
    assert rule.worst() == "c"
    rule.drop("c")
    assert rule.worst() == "d"
    assert "c" not in rule.paused


def test_brackets_share_trials() -> None:
    halving = Halving(27, 1, 3, brackets=3)
    rule = Promotions(SINGLE, halving)
    brackets = np.bincount([rule.bracket(f"trial-{n:04d}") for n in range(3000)], minlength=3)
    assert np.allclose(brackets / 3000, halving.shares, atol=0.04)
    assert halving.shares[0] > halving.shares[1] > halving.shares[2]
    late = next(f"t{n}" for n in range(100) if rule.bracket(f"t{n}") == 2)
    assert rule.keeps(late, metrics(1, 0.0)) and rule.keeps(late, metrics(3, 0.0))
    assert not rule.keeps(late, metrics(9, 0.0))


@pytest.mark.parametrize("scheduler", [Asha(), Hyperband(), Hyperband(brackets=1)])
@pytest.mark.parametrize("epochs", [1, 2, 8, 27])
def test_expected_cost_is_fraction(scheduler: Asha | Hyperband, epochs: int) -> None:
    assert 0 < scheduler.trained_fraction(epochs) <= 1
    assert Hyperband(brackets=1).trained_fraction(epochs) == Asha().trained_fraction(epochs)
