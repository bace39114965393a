"""Honest figures: intervals over seeds, and gains paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ENDS = ((1.0 - 0.95) / 2, (1.0 + 0.95) / 2)
"""The levels at which a 95% interval begins and ends."""

FEWEST = 3
"""Seeds below which no verdict is given."""

ROUNDING = 1e-12
"""Accuracies are fractions of a test set; differences below this are rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval (Student's t).

    Attributes:
        mean: of the values.
        low, high: ends of the interval, within the range of the quantity; NaN with fewer than two
            values, and where all values are the same: they are counts of a finite test set, so
            that they agree does not mean that there is no noise.
        count: number of values.
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
        """Whether the interval excludes zero, from at least `FEWEST` seeds."""
        return self.count >= FEWEST and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """Mean and 95% interval of independent values (one a seed).

    Args:
        values: accuracies, unless another range is given; those that are not finite are left out.
        lowest, highest: the range of the quantity; the interval stays within it.

    Raises:
        ValueError: there are no finite values.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        raise ValueError("an estimate needs at least one finite value, got none")
    count = len(values)
    mean = without_rounding(math.fsum(values) / count)
    if max(values) - min(values) <= ROUNDING:  # so has a single value
        return Estimate(mean, math.nan, math.nan, count)
    error = float(np.std(values, ddof=1)) / count**0.5
    low, high = (quantile(level, count - 1) * error + mean for level in ENDS)
    return Estimate(mean, max(low, lowest), min(high, highest), count)


def without_rounding(difference: float) -> float:
    """The difference, 0 where it is nothing but rounding."""
    return 0.0 if abs(difference) <= ROUNDING else difference


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
    """The mean difference of accuracies over the seeds that both have; None if they share none.

    A seed whose value is not finite on either side is left out.
    """
    both = sorted(treated.keys() & control.keys())
    differences = [without_rounding(treated[seed] - control[seed]) for seed in both]
    finite = [difference for difference in differences if math.isfinite(difference)]
    return estimate(finite, -1.0, 1.0) if finite else None


def proportion_interval(share: float, count: int) -> tuple[float, float]:
    """95% interval of a share of independent trials (Wilson 1927).

    Args:
        share: observed, 0 to 1.
        count: number of trials, > 0.

    Returns:
        Lower and upper end, within [0, 1].
    """
    z = 1.959963984540054
    center = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
