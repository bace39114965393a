"""Intervals against Student's t by hand, and gains paired by seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raykd.tuning.estimates import estimate, paired_gain


def test_interval_uses_students_t() -> None:
    values = [0.91, 0.93, 0.90, 0.96]
    interval = estimate(values)
    spread = np.std(values, ddof=1) / math.sqrt(4)
    reach = stats.t.ppf(0.975, 3) * spread
    assert interval.count == 4
    assert interval.mean == pytest.approx(0.925)
    assert interval.low == pytest.approx(0.925 - reach)
    assert interval.high == pytest.approx(0.925 + reach)
    assert interval.half_width == pytest.approx(reach)


def test_three_seeds_by_table() -> None:
    # t(0.975; 2) = 4.3027, standard error 1/sqrt(3)
    interval = estimate([1.0, 2.0, 3.0], -10, 10)
    assert interval.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not interval.clear_of_zero


def test_gain_equals_scipys() -> None:
    treated, control = {1: 0.95, 2: 0.93, 3: 0.96}, {1: 0.93, 2: 0.92, 3: 0.93}
    interval = paired_gain(treated, control)
    expected = stats.ttest_rel(list(treated.values()), list(control.values()))
    low, high = expected.confidence_interval(0.95)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.clear_of_zero is bool(expected.pvalue < 0.05)


def test_single_seed_has_mean_and_no_interval() -> None:
    interval = estimate([0.5])
    assert (interval.mean, interval.count) == (0.5, 1)
    assert (
        math.isnan(interval.low) and math.isnan(interval.high) and math.isnan(interval.half_width)
    )
    assert not interval.clear_of_zero


def test_equal_values_have_no_interval() -> None:
    interval = estimate([0.75, 0.75, 0.75])  # counts of a finite test set: not free of noise
    assert (interval.mean, interval.count) == (0.75, 3)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert not interval.clear_of_zero


def test_differences_within_rounding_are_zero() -> None:
    # 3 of 359 samples under both seeds; the two differences of floats are not equal
    treated, control = {1: 326 / 359, 2: 336 / 359}, {1: 329 / 359, 2: 339 / 359}
    assert treated[1] - control[1] != treated[2] - control[2]
    interval = paired_gain(treated, control)
    assert interval is not None
    assert interval.mean == pytest.approx(-3 / 359)
    assert math.isnan(interval.half_width)
    assert not interval.clear_of_zero


def test_gain_within_rounding_is_zero() -> None:
    treated, control = {1: 0.1 + 0.2, 2: 0.7, 3: 0.9}, {1: 0.3, 2: 0.7, 3: 0.9}
    assert treated[1] != control[1]
    interval = paired_gain(treated, control)
    assert interval is not None
    assert interval.mean == 0
    assert not interval.clear_of_zero


def test_two_seeds_give_interval_and_no_verdict() -> None:
    # mean 0.1005, standard error 0.0005, t(0.975; 1) = 12.7062
    interval = paired_gain({1: 0.9, 2: 0.901}, {1: 0.8, 2: 0.8})
    assert interval is not None
    assert interval.low == pytest.approx(0.1005 - 12.7062 * 0.0005, rel=1e-4)
    assert interval.low > 0
    assert not interval.clear_of_zero


def test_intervals_are_clipped_to_range() -> None:
    # mean 0.99, standard error sqrt(1e-4 / 3), t(0.975; 2) = 4.3027: 0.9652 to 1.0148
    interval = estimate([0.98, 0.99, 1.0])
    assert interval.low == pytest.approx(0.99 - 4.3027 * math.sqrt(1e-4 / 3), rel=1e-4)
    assert interval.high == 1.0
    assert estimate([0.0, 0.01, 0.02]).low == 0.0
    gain = paired_gain({1: 1.0, 2: 0.9, 3: 0.1}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert gain is not None
    assert (gain.low, gain.high) == (pytest.approx(-0.5583, abs=1e-3), 1.0)


def test_non_finite_values_are_skipped() -> None:
    assert estimate([0.5, math.nan, 0.7]).count == 2
    interval = paired_gain({1: 0.5, 2: math.nan, 3: 0.7}, {1: 0.4, 2: 0.4, 3: 0.7})
    assert interval is not None
    assert (interval.count, interval.mean) == (2, pytest.approx(0.05))
    assert paired_gain({1: math.nan}, {1: 0.5}) is None


def test_no_values_raise() -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        estimate([])


def test_gains_are_paired_by_seed() -> None:
    interval = paired_gain({3: 0.9, 1: 0.7}, {1: 0.6, 2: 0.1, 3: 0.8})
    assert interval is not None
    assert (interval.mean, interval.count) == (pytest.approx(0.1), 2)
    assert math.isnan(interval.half_width)


def test_gains_require_shared_seed() -> None:
    assert paired_gain({1: 0.9}, {2: 0.8}) is None
    assert paired_gain({}, {}) is None


def test_significant_loss() -> None:
    interval = paired_gain({1: 0.1, 2: 0.12, 3: 0.11}, {1: 0.5, 2: 0.5, 3: 0.5})
    assert interval is not None and interval.high < 0 and interval.clear_of_zero
