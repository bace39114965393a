"""Early stopping of trials: the rule of a study's scheduler, and Ray Tune's schedulers as rules."""

from __future__ import annotations

from typing import Any

from ray.tune import schedulers
from ray.tune.schedulers import TrialScheduler

from raykd.study.config import Search
from raykd.study.promotion import Promotions
from raykd.study.schedulers import StoppingRule, TuneScheduler
from raykd.tracking.events import Metrics


class TuneRule:
    """Rule that asks one of Tune's own schedulers.

    Args:
        scheduler: works on `epoch` and one metric.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def keeps(self, trial: object, metrics: Metrics) -> bool:
        decision = self._scheduler.on_trial_result(_NoController(), trial, dict(metrics))  # type: ignore[arg-type]
        return decision == TrialScheduler.CONTINUE

    def added(self, trial: object) -> None:
        """Announce a trial to the scheduler."""
        self._scheduler.on_trial_add(_NoController(), trial)  # type: ignore[arg-type]


class _NoController:
    """Stand-in for Tune's controller, which schedulers ask for paused trials; there are none."""

    def get_live_trials(self) -> list[Any]:
        return []


def make_stopping_rule(search: Search, epochs: int) -> StoppingRule | None:
    """Return the rule that stops trials early; None if none is stopped.

    Trials that pause are the planner's.
    """
    rule = search.scheduler.build(search.objectives, epochs)
    if isinstance(rule, Promotions):
        return None
    if isinstance(rule, TuneScheduler):
        return TuneRule(getattr(schedulers, rule.name)(**rule.arguments))
    return rule
