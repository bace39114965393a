"""Pareto fronts of several members in one plane, and their hypervolumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raykd import pareto
from raykd.compat.optuna_hypervolume import hypervolume
from raykd.report.comparison.members import Member, Training
from raykd.study.objectives import COSTS
from raykd.tuning.estimates import Estimate

RESAMPLES = 200
"""Number of bootstrap samples of an interval."""

SMALLEST = 1e-12
"""Smallest cost on the logarithmic scale."""

MARGIN = 0.1
"""Distance of the reference point from the worst values, as a share of the range."""


@dataclass(frozen=True)
class MemberFront:
    """Front of one member.

    Attributes:
        member: name of the member.
        trials: complete trials, with all common objectives.
        front: the non-dominated ones, by the first objective.
        volume: share of the box from the reference point to the best values that the front
            dominates, with the middle 95% of bootstrap samples of the trials; None with one
            objective.
    """

    member: str
    trials: tuple[Training, ...]
    front: tuple[Training, ...]
    volume: Estimate | None


@dataclass(frozen=True)
class Fronts:
    """Fronts of members on the same data.

    Attributes:
        objectives: common objectives: metric -> "max" or "min".
        reference: value of the reference point by objective; worse than every trial.
        members: fronts of the members.
    """

    objectives: Mapping[str, str]
    reference: Mapping[str, float]
    members: tuple[MemberFront, ...]


def fronts_of(members: Sequence[Member]) -> Fronts | None:
    """Return the fronts of members in their common objectives; None without any.

    The box of the hypervolumes lies between the best and the worst values of all members' trials,
    with a margin.  Costs are measured on a logarithmic scale.
    """
    searches = [member for member in members if member.objectives and member.trials]
    if not searches:
        return None
    common = dict(searches[0].objectives)
    for member in searches[1:]:
        common = {k: v for k, v in common.items() if member.objectives.get(k) == v}
    trials = [_complete(member, common) for member in searches]
    if not common or not any(trials):
        return None
    points = [_points(of_member, common) for of_member in trials]
    everything = np.vstack([each for each in points if len(each)])
    low, high = everything.min(0), everything.max(0)
    span = np.where(high > low, high - low, 1.0)
    worst = high + MARGIN * span
    return Fronts(
        objectives=common,
        reference=dict(zip(common, _unscaled(worst, common), strict=True)),
        members=tuple(
            _front(member.name, of_member, (each - low) / span, common)
            for member, of_member, each in zip(searches, trials, points, strict=True)
        ),
    )


def _complete(member: Member, objectives: Mapping[str, str]) -> list[Training]:
    return [
        trial
        for trial in member.trials
        if trial.status == "finished"
        and all(math.isfinite(trial.metrics.get(name, math.nan)) for name in objectives)
    ]


def _points(trials: Sequence[Training], objectives: Mapping[str, str]) -> np.ndarray:
    """Return the objectives, smaller is better, costs as logarithms; shape (trials, objectives)."""
    points = pareto.losses([trial.metrics for trial in trials], objectives)
    for column, (name, way) in enumerate(objectives.items()):
        if name in COSTS and way == "min":
            points[:, column] = np.log10(np.maximum(points[:, column], SMALLEST))
    return points


def _unscaled(point: np.ndarray, objectives: Mapping[str, str]) -> list[float]:
    return [
        float(10**value if name in COSTS and way == "min" else -value if way == "max" else value)
        for value, (name, way) in zip(point, objectives.items(), strict=True)
    ]


def _front(
    name: str, trials: Sequence[Training], points: np.ndarray, objectives: Mapping[str, str]
) -> MemberFront:
    front = [trials[i] for i in pareto.pareto(points)]
    first, way = next(iter(objectives.items()))
    front.sort(key=lambda trial: trial.metrics[first], reverse=way == "max")
    volume = _volume(points) if len(objectives) > 1 and trials else None
    return MemberFront(name, tuple(trials), tuple(front), volume)


def _volume(points: np.ndarray) -> Estimate:
    """Return the hypervolume of points in [0, 1], as a share of the box, with its interval."""
    reference = np.full(points.shape[1], 1 + MARGIN)
    box = float(reference.prod())
    rng = np.random.default_rng(0)
    draws = [
        hypervolume(points[rng.integers(len(points), size=len(points))], reference)
        for _ in range(RESAMPLES if len(points) > 1 else 0)
    ]
    low, high = np.percentile(draws, [2.5, 97.5]) / box if draws else (math.nan, math.nan)
    mean = hypervolume(points, reference) / box
    return Estimate(mean, float(low), float(high), len(points))
