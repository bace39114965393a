"""Honest figures: intervals over seeds, and gains paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ENDS = ((1.0 - 0.95) / 2, (1.0 + 0.95) / 2)
"""The levels at which a 95% interval begins and ends."""


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
    error = float(np.std(values, ddof=1)) / count**0.5
    if error == 0:
        return Estimate(mean, mean, mean, count)
    low, high = (quantile(level, count - 1) * error + mean for level in ENDS)
    return Estimate(mean, low, high, count)


def quantile(level: float, freedom: int) -> float:
    """A quantile of Student's t distribution.

    `scipy.stats` computes it by the same function, but takes most of a second to import.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def survival(value: float, freedom: int) -> float:
    """The probability that Student's t is above `value`."""
    from scipy.special import stdtr

    return float(stdtr(freedom, -value))


def paired_gain(treated: Mapping[int, float], control: Mapping[int, float]) -> Estimate | None:
    """The mean difference over the seeds both have; None where they share none."""
    shared = sorted(treated.keys() & control.keys())
    if not shared:
        return None
    return estimate([treated[seed] - control[seed] for seed in shared])
