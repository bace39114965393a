"""Early stopping: raykd's rule for several objectives, and Tune's for one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raykd.runtime.early_stopping import TuneRule, make_stopping_rule
from raykd.study.config import Search
from raykd.study.schedulers import Asha, Median, ParetoAsha, StoppingRule, Unscheduled

OBJECTIVES = {"val_accuracy": "max", "params": "min"}


def asha(epochs: int = 9, grace: int = 1, reduction: float = 3) -> ParetoAsha:
    return ParetoAsha(OBJECTIVES, epochs, grace, reduction)


def keeps(rule: StoppingRule, name: str, epoch: int, accuracy: float, params: float = 1.0) -> bool:
    result = {"epoch": epoch, "val_accuracy": accuracy, "params": params}
    return rule.keeps(SimpleNamespace(trial_id=name), result)


@pytest.mark.parametrize(
    ("epochs", "grace", "reduction", "rungs"),
    [
        (9, 1, 3, (1, 3)),
        (10, 1, 3, (1, 3, 9)),
        (8, 1, 2, (1, 2, 4)),
        (100, 5, 4, (5, 20, 80)),
        (10, 2, 1.5, (2, 3, 4, 7)),  # 2, 3, 4.5, 6.75 rounded (half to even)
        (4, 4, 2, ()),
        (1, 1, 3, ()),
    ],
)
def test_rungs(epochs: int, grace: int, reduction: float, rungs: tuple[int, ...]) -> None:
    rule = asha(epochs, grace, reduction)
    assert tuple(sorted(rule.milestones)) == rungs


def test_first_arrival_is_never_stopped() -> None:
    rule = asha(10)
    assert keeps(rule, "bad", 1, 0.01, 1e9)
    assert keeps(rule, "bad", 3, 0.01, 1e9)
    assert keeps(rule, "bad", 9, 0.01, 1e9)


def test_nothing_is_stopped_between_rungs() -> None:
    rule = asha()
    for i in range(6):
        keeps(rule, f"good{i}", 1, 0.9, 1)
        keeps(rule, f"good{i}", 3, 0.9, 1)
    assert keeps(rule, "bad", 2, 0.0, 9)
    assert not keeps(rule, "bad", 3, 0.0, 9)


def test_dominated_trial_is_stopped() -> None:
    rule = asha()
    assert keeps(rule, "first", 1, 0.9, 10)
    assert not keeps(rule, "worse in both", 1, 0.8, 20)
    assert not keeps(rule, "equal in one", 1, 0.9, 11)
    assert keeps(rule, "better in both", 1, 0.95, 5)


def test_whole_front_of_small_rung_continues() -> None:
    rule = asha(reduction=4)
    assert keeps(rule, "a", 1, 0.9, 100)
    assert keeps(rule, "b", 1, 0.8, 50)
    assert keeps(rule, "c", 1, 0.7, 10)


def test_at_most_one_in_reduction_trials_continues_in_limit() -> None:
    rule = asha()
    count = 0
    order = np.random.default_rng(0).permutation(60)
    for i in map(int, order):  # all of them non-dominated: only room decides
        count += keeps(rule, str(i), 1, 0.5 + i / 1000, 100 + i)
    assert 10 <= count <= 30  # about one in three of the 60


def test_truncation_keeps_ends_of_front() -> None:
    rule = asha(reduction=2)
    for i in (1, 5, 9, 2, 3, 4):
        keeps(rule, str(i), 1, i / 10, i)
    assert keeps(rule, "best", 1, 1.0, 10)  # an end of the front has all the room
    assert keeps(rule, "smallest", 1, 0.05, 0.5)
    assert not keeps(rule, "crowded", 1, 0.35, 3.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_is_never_kept(value: float) -> None:
    rule = asha()
    assert not keeps(rule, "a", 1, value)
    assert not keeps(rule, "b", 1, 0.9, math.nan)
    assert keeps(rule, "c", 1, 0.1, 9)  # and leaves no trace in the rung


def test_repeated_result_counts_once() -> None:
    rule = asha()
    assert keeps(rule, "a", 1, 0.9, 1)
    for _ in range(5):
        assert keeps(rule, "a", 1, 0.9, 1)
    assert not keeps(rule, "b", 1, 0.8, 1)


def test_new_result_for_rung_replaces_old_one() -> None:
    rule = asha()
    assert keeps(rule, "a", 1, 0.2, 1)
    assert keeps(rule, "b", 1, 0.3, 1)
    assert not keeps(rule, "a", 1, 0.1, 1)  # judged as itself, not as the last to arrive
    assert keeps(rule, "a", 1, 0.9, 1)
    assert not keeps(rule, "c", 1, 0.8, 1)


def search(**changed: Any) -> Search:
    return Search(**{"objectives": {"val_accuracy": "max"}, **changed})


def test_study_selects_rule() -> None:
    assert make_stopping_rule(search(scheduler=Unscheduled()), 9) is None
    assert isinstance(make_stopping_rule(search(scheduler=Asha(promote=False)), 9), TuneRule)
    assert make_stopping_rule(search(scheduler=Asha()), 9) is None, "the planner pauses trials"
    assert isinstance(make_stopping_rule(search(scheduler=Median()), 9), TuneRule)
    several = make_stopping_rule(
        search(objectives=OBJECTIVES, scheduler=Asha(promote=False, grace_epochs=2)), 9
    )
    assert isinstance(several, ParetoAsha)
    assert several.milestones == (2, 6)


def test_grace_beyond_budget_gives_no_rung() -> None:
    several = make_stopping_rule(
        search(objectives=OBJECTIVES, scheduler=Asha(promote=False, grace_epochs=50)), 9
    )
    assert isinstance(several, ParetoAsha)
    assert several.milestones == ()
    alone = make_stopping_rule(search(scheduler=Asha(promote=False, grace_epochs=50)), 9)
    assert alone is not None
    assert decisions(alone, [0.9, 0.1], epochs=9) == {0: 9, 1: 9}


def decisions(rule: StoppingRule, accuracies: list[float], *, epochs: int) -> dict[int, int]:
    """Run trials in sequence; return the last epoch of each."""
    ended: dict[int, int] = {}
    for number, accuracy in enumerate(accuracies):
        trial = _Trial(str(number))
        if isinstance(rule, TuneRule):
            rule.added(trial)
        for epoch in range(1, epochs):
            ended[number] = epoch
            result = {"epoch": epoch, "val_accuracy": accuracy, "val_loss": accuracy}
            if not rule.keeps(trial, result):
                break
        else:
            ended[number] = epochs
    return ended


class _Trial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_tunes_asha_stops_worse_trials() -> None:
    rule = make_stopping_rule(search(scheduler=Asha(promote=False, reduction=3)), 9)
    assert rule is not None
    assert decisions(rule, [0.9, 0.1, 0.95, 0.2], epochs=9) == {0: 9, 1: 1, 2: 9, 3: 1}


def test_tunes_asha_minimizes() -> None:
    rule = make_stopping_rule(
        search(objectives={"val_loss": "min"}, scheduler=Asha(promote=False)), 9
    )
    assert rule is not None
    assert decisions(rule, [0.1, 0.9, 0.05], epochs=9) == {0: 9, 1: 1, 2: 9}


def test_tunes_median_stops_trials_below_median() -> None:
    rule = make_stopping_rule(search(scheduler=Median(grace_epochs=2, min_trials=3)), 5)
    assert rule is not None
    epochs = decisions(rule, [0.5, 0.6, 0.7, 0.1, 0.65], epochs=5)
    assert epochs == {0: 5, 1: 5, 2: 5, 3: 2, 4: 5}


def test_tunes_median_waits_for_enough_trials() -> None:
    rule = make_stopping_rule(search(scheduler=Median(grace_epochs=1, min_trials=3)), 4)
    assert rule is not None
    assert decisions(rule, [0.9, 0.8, 0.1], epochs=4) == {0: 4, 1: 4, 2: 4}
