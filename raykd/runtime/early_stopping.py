"""Schedulers: which trials end early.

Ray Tune's ASHA and median rule serve one objective; `ParetoAsha` serves several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raykd import pareto
from raykd.study.config import Asha, Median, Search


class Rule(Protocol):
    """Says after each epoch of a searched trial whether it goes on."""

    def keeps(self, trial: Any, result: Mapping[str, Any]) -> bool: ...


class ParetoAsha:
    """Asynchronous successive halving over several objectives (MO-ASHA: Schmucker 2021,
    arXiv:2106.12639, Algorithm 1, with crowding distance where it has an epsilon-net).

    Rungs stand at `grace * reduction**k` epochs, as in ASHA (Li 2020, arXiv:1810.05934,
    Algorithm 2).  A trial that reaches a rung goes on if it is among the best 1/`reduction` of
    those that have reached it, where trials are ordered by their non-dominated front and, in the
    front that the cut runs through, by crowding distance (Deb 2002).  The whole first front of a
    rung with fewer than `reduction` trials goes on, so that a first arrival is never stopped.

    Args:
        objectives: metric name -> "max" or "min".
        epochs: the full budget; no rung at or above it.
        grace: the first rung, in epochs.
        reduction: one in so many goes on.
    """

    def __init__(
        self, objectives: Mapping[str, str], epochs: int, grace: int, reduction: float
    ) -> None:
        self._objectives = dict(objectives)
        self._reduction = reduction
        self._rungs: dict[int, _Rung] = {}
        rung = float(grace)
        while round(rung) < epochs:
            self._rungs[round(rung)] = _Rung({}, pareto.Fronts(len(self._objectives)))
            rung *= reduction

    @property
    def milestones(self) -> tuple[int, ...]:
        """The rungs, in epochs."""
        return tuple(self._rungs)

    def keeps(self, trial: Any, result: Mapping[str, Any]) -> bool:
        rung = self._rungs.get(int(result["epoch"]))
        if rung is None:
            return True
        point = pareto.losses([result], self._objectives)[0]  # type: ignore[list-item]
        if not np.isfinite(point).all():
            return False
        return self._is_among_best(rung, rung.place(str(getattr(trial, "trial_id", trial)), point))

    def _is_among_best(self, rung: _Rung, which: int) -> bool:
        points, rank = rung.fronts.points, rung.fronts.ranks
        room = max(1, int(len(points) / self._reduction))
        better = int((rank < rank[which]).sum())
        front = np.flatnonzero(rank == rank[which])
        if better >= room:
            return False
        if better + len(front) <= room or (rank[which] == 0 and len(points) < self._reduction):
            return True
        # The cut runs through this front: those with the most room around them go on.
        order = front[np.argsort(-pareto.crowding(points[front]), kind="stable")]
        return which in order[: room - better]


@dataclass
class _Rung:
    """Who reached a rung, and what they had reached there."""

    places: dict[str, int]
    fronts: pareto.Fronts

    def place(self, trial: str, point: np.ndarray) -> int:
        """Where among the rung's points the trial's is; told anew, it takes the old one's place."""
        known = self.places.setdefault(trial, len(self.places))
        if known == len(self.fronts.points):
            self.fronts.add(point)
        elif (self.fronts.points[known] != point).any():
            points = self.fronts.points
            points[known] = point
            self.fronts = pareto.Fronts(points.shape[1])
            for each in points:
                self.fronts.add(each)
        return known


class TuneRule:
    """One of Tune's own schedulers, asked as a rule.

    Args:
        scheduler: works on `epoch` and one metric.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler

    def keeps(self, trial: Any, result: Mapping[str, Any]) -> bool:
        decision = self._scheduler.on_trial_result(_NoController(), trial, dict(result))  # type: ignore[arg-type]
        return decision == TrialScheduler.CONTINUE

    def added(self, trial: Any) -> None:
        self._scheduler.on_trial_add(_NoController(), trial)  # type: ignore[arg-type]


class _NoController:
    """What Tune's rules may ask of the controller: no trial is ever paused."""

    def get_live_trials(self) -> list[Any]:
        return []


def make_stopping_rule(search: Search, epochs: int) -> Rule | None:
    """The study's early-stopping rule; None where every trial runs to its end."""
    scheduler = search.scheduler
    metric, direction = next(iter(search.objectives.items()))
    if isinstance(scheduler, Asha):
        grace = min(scheduler.grace_epochs, epochs)
        if len(search.objectives) > 1:
            return ParetoAsha(search.objectives, epochs, grace, scheduler.reduction)
        return TuneRule(
            AsyncHyperBandScheduler(
                time_attr="epoch",
                metric=metric,
                mode=direction,
                max_t=epochs,
                grace_period=grace,
                reduction_factor=scheduler.reduction,
                stop_last_trials=False,
            )
        )
    if isinstance(scheduler, Median):
        return TuneRule(
            MedianStoppingRule(
                time_attr="epoch",
                metric=metric,
                mode=direction,
                grace_period=scheduler.grace_epochs,
                min_samples_required=scheduler.min_trials,
                hard_stop=True,
            )
        )
    return None
