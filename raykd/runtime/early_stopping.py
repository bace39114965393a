"""Early stopping of trials: the rule of a study's scheduler, and Ray Tune's schedulers as rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import schedulers
from ray.tune.schedulers import TrialScheduler

from raykd.study.config import Search
from raykd.study.schedulers import StoppingRule, TuneScheduler


class TuneRule:
    """Rule that asks one of Tune's own schedulers.

    Args:
        scheduler: works on `epoch` and one metric.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def keeps(self, trial: object, result: Mapping[str, Any]) -> bool:
        decision = self._scheduler.on_trial_result(_NoController(), trial, dict(result))  # type: ignore[arg-type]
        return decision == TrialScheduler.CONTINUE

    def added(self, trial: object) -> None:
        """Announce a trial to the scheduler."""
        self._scheduler.on_trial_add(_NoController(), trial)  # type: ignore[arg-type]


class _NoController:
    """Stand-in for Tune's controller, which schedulers ask for paused trials; there are none."""

    def get_live_trials(self) -> list[Any]:
        return []


def make_stopping_rule(search: Search, epochs: int) -> StoppingRule | None:
    """Return the rule that stops trials early; None if every trial runs to its end."""
    rule = search.scheduler.build(search.objectives, epochs)
    if isinstance(rule, TuneScheduler):
        return TuneRule(getattr(schedulers, rule.name)(**rule.arguments))
    return rule
