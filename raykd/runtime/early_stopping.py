"""Early stopping of trials.

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


class StoppingRule(Protocol):
    """Rule that decides after each epoch of a searched trial whether it continues."""

    def keeps(self, trial: object, result: Mapping[str, Any]) -> bool:
        """Return whether the trial continues after a result with `epoch` and its metrics."""
        ...


class ParetoAsha:
    """Asynchronous successive halving over several objectives (MO-ASHA: Schmucker 2021,
    arXiv:2106.12639, Algorithm 1, with crowding distance where it has an epsilon-net).

    The rungs are at `grace * reduction**k` epochs, as in ASHA (Li 2020, arXiv:1810.05934,
    Algorithm 2).  A trial that reaches a rung continues if it is among the best 1/`reduction` of
    those that have reached it.  Trials are ordered by their non-dominated front and, in the front
    that is only partly kept, by crowding distance (Deb 2002).  The whole first front of a rung with
    fewer than `reduction` trials continues, so that a first arrival is never stopped.

    Args:
        objectives: metric name -> "max" or "min".
        epochs: the full budget; no rung at or above it.
        grace: the first rung, in epochs.
        reduction: the best 1/`reduction` of the trials of a rung continue.
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
        """Epochs of the rungs."""
        return tuple(self._rungs)

    def keeps(self, trial: object, result: Mapping[str, Any]) -> bool:
        rung = self._rungs.get(int(result["epoch"]))
        if rung is None:
            return True
        point = pareto.losses([result], self._objectives)[0]  # type: ignore[list-item]
        if not np.isfinite(point).all():
            return False
        return self._is_among_best(rung, rung.index(str(getattr(trial, "trial_id", trial)), point))

    def _is_among_best(self, rung: _Rung, index: int) -> bool:
        """Return whether the trial of that index continues."""
        points, rank = rung.fronts.points, rung.fronts.ranks
        capacity = max(1, int(len(points) / self._reduction))
        better = int((rank < rank[index]).sum())
        front = np.flatnonzero(rank == rank[index])
        if better >= capacity:
            return False
        if better + len(front) <= capacity or (rank[index] == 0 and len(points) < self._reduction):
            return True
        # This front is only partly kept: its least crowded points continue.
        order = front[np.argsort(-pareto.crowding(points[front]), kind="stable")]
        return index in order[: capacity - better]


@dataclass
class _Rung:
    """Trials that reached a rung, and their objectives there.

    Attributes:
        indices: index of each trial's point.
        fronts: the points.
    """

    indices: dict[str, int]
    fronts: pareto.Fronts

    def index(self, trial: str, point: np.ndarray) -> int:
        """Return the index of the trial's point; a second point of a trial replaces its first."""
        index = self.indices.setdefault(trial, len(self.indices))
        if index == len(self.fronts.points):
            self.fronts.add(point)
        elif (self.fronts.points[index] != point).any():
            points = self.fronts.points
            points[index] = point
            self.fronts = pareto.Fronts(points.shape[1])
            for each in points:
                self.fronts.add(each)
        return index


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
    """Return the study's early-stopping rule; None if every trial runs to its end."""
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
