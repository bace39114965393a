"""Honest figures: intervals over seeds, and gains paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval (Student's t; no interval from one seed).

    Attributes:
        mean: of the values.
        low, high: ends of the interval; NaN where there are fewer than two values.
        count: how many values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval leaves zero out: the figure can be told from noise.

        Values that are all the same tell nothing of the noise (they are counts of a small test
        split), so they are never clear.
        """
        return self.low < self.high and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval of independent values (one a seed).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("an estimate needs at least one value, found none")
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    from scipy import stats  # most of a second, which `raykd validate` need not wait for

    error = stats.sem(values)
    if error == 0:
        return Estimate(mean, mean, mean, count)
    low, high = stats.t.interval(0.95, count - 1, loc=mean, scale=error)
    return Estimate(mean, float(low), float(high), count)


def paired_gain(treated: Mapping[int, float], control: Mapping[int, float]) -> Estimate | None:
    """The mean difference over the seeds both have; None where they share none."""
    shared = sorted(treated.keys() & control.keys())
    if not shared:
        return None
    return estimate([treated[seed] - control[seed] for seed in shared])
