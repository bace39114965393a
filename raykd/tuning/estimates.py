"""Confidence intervals over seeds, and gains paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raykd.metrics import METRICS, Metric

INTERVAL_LEVELS = ((1.0 - 0.95) / 2, (1.0 + 0.95) / 2)
"""Quantiles at which a 95% interval begins and ends."""

SHARE = METRICS["accuracy"]
"""Facts of an accuracy."""

MIN_SEEDS = 3
"""Minimum number of seeds for a conclusion."""

ROUNDING_ERROR = 1e-12
"""Accuracies are fractions of a test set; differences below this are rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval (Student's t).

    Attributes:
        mean: of the values.
        low, high: ends of the interval, within the range of the quantity; NaN with fewer than two
            values, and if all values are the same: they are counts of a finite test set, so equal
            values do not mean that there is no noise.
        count: number of values.
        is_share: whether the values are shares, read as percentages.
    """

    mean: float
    low: float
    high: float
    count: int
    is_share: bool = True

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics `name_mean`, `name_low`, `name_high` (without NaN) and `name_n`."""
        values = {"mean": self.mean, "low": self.low, "high": self.high, "n": float(self.count)}
        return {f"{name}_{end}": value for end, value in values.items() if math.isfinite(value)}

    def plain(self) -> dict[str, float]:
        """Return mean, low, high and count."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}

    @property
    def clear_of_zero(self) -> bool:
        """True if the interval excludes zero, from at least `MIN_SEEDS` seeds."""
        return self.count >= MIN_SEEDS and (self.low > 0 or self.high < 0)


def estimate(
    values: Sequence[float], lowest: float = 0.0, highest: float = 1.0, *, is_share: bool = True
) -> Estimate:
    """Return the mean and 95% interval of independent values (one per seed).

    Args:
        values: one per seed; values that are not finite are ignored.
        lowest, highest: the range of the quantity; the interval stays within it.
        is_share: whether the values are read as percentages.

    Raises:
        ValueError: there are no finite values.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        raise ValueError("an estimate needs at least one finite value, got none")
    count = len(values)
    mean = without_rounding(math.fsum(values) / count)
    if max(values) - min(values) <= ROUNDING_ERROR:  # so has a single value
        return Estimate(mean, math.nan, math.nan, count, is_share)
    error = float(np.std(values, ddof=1)) / count**0.5
    low, high = (quantile(level, count - 1) * error + mean for level in INTERVAL_LEVELS)
    return Estimate(mean, max(low, lowest), min(high, highest), count, is_share)


def estimate_metric(values: Sequence[float], facts: Metric) -> Estimate:
    """Return the mean and 95% interval of a metric; see `estimate`."""
    return estimate(values, facts.low, facts.high, is_share=facts.is_share)


def without_rounding(difference: float) -> float:
    """Return the difference; 0 if it is only a rounding error."""
    return 0.0 if abs(difference) <= ROUNDING_ERROR else difference


def quantile(level: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution.

    `scipy.stats` uses the same function, but takes most of a second to import.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def survival(value: float, freedom: int) -> float:
    """Return the probability that Student's t is above `value`."""
    from scipy.special import stdtr

    return float(stdtr(freedom, -value))


def paired_gain(
    treated: Mapping[int, float], control: Mapping[int, float], facts: Metric = SHARE
) -> Estimate | None:
    """Return the mean improvement of a metric over common seeds; None without common seeds.

    It is positive if the treated values are better.  Seeds with a value that is not finite on
    either side are ignored.
    """
    sign = 1.0 if facts.direction == "max" else -1.0
    seeds = sorted(treated.keys() & control.keys())
    differences = [sign * without_rounding(treated[seed] - control[seed]) for seed in seeds]
    finite = [difference for difference in differences if math.isfinite(difference)]
    width = facts.high - facts.low
    return estimate(finite, -width, width, is_share=facts.is_share) if finite else None


def proportion_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a proportion of independent trials (Wilson 1927).

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
