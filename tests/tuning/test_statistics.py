"""Intervals against Student's t by hand, and gains that are paired by seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raykd.tuning.statistics import estimate, paired_gain


def test_interval_is_students_t() -> None:
    values = [0.91, 0.93, 0.90, 0.96]
    found = estimate(values)
    spread = np.std(values, ddof=1) / math.sqrt(4)
    reach = stats.t.ppf(0.975, 3) * spread
    assert found.count == 4
    assert found.mean == pytest.approx(0.925)
    assert found.low == pytest.approx(0.925 - reach)
    assert found.high == pytest.approx(0.925 + reach)
    assert found.half_width == pytest.approx(reach)


def test_three_seeds_by_the_table() -> None:
    # t(0.975; 2) = 4.3027, standard error 1/sqrt(3)
    found = estimate([1.0, 2.0, 3.0], -10, 10)
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not found.clear_of_zero


def test_scipy_says_the_same_of_a_gain() -> None:
    treated, control = {1: 0.95, 2: 0.93, 3: 0.96}, {1: 0.93, 2: 0.92, 3: 0.93}
    found = paired_gain(treated, control)
    expected = stats.ttest_rel(list(treated.values()), list(control.values()))
    low, high = expected.confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.clear_of_zero is bool(expected.pvalue < 0.05)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = estimate([0.5])
    assert (found.mean, found.count) == (0.5, 1)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.half_width)
    assert not found.clear_of_zero


def test_equal_values_have_no_interval() -> None:
    found = estimate([0.75, 0.75, 0.75])  # counts of a finite test set: not free of noise
    assert (found.mean, found.count) == (0.75, 3)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert not found.clear_of_zero


def test_differences_within_rounding_are_zero() -> None:
    # 3 of 359 samples under both seeds; the two differences of floats are not equal
    treated, control = {1: 326 / 359, 2: 336 / 359}, {1: 329 / 359, 2: 339 / 359}
    assert treated[1] - control[1] != treated[2] - control[2]
    found = paired_gain(treated, control)
    assert found is not None
    assert found.mean == pytest.approx(-3 / 359)
    assert math.isnan(found.half_width)
    assert not found.clear_of_zero


def test_a_gain_that_is_only_rounding_is_zero() -> None:
    treated, control = {1: 0.1 + 0.2, 2: 0.7, 3: 0.9}, {1: 0.3, 2: 0.7, 3: 0.9}
    assert treated[1] != control[1]
    found = paired_gain(treated, control)
    assert found is not None
    assert found.mean == 0
    assert not found.clear_of_zero


def test_two_seeds_give_an_interval_and_no_verdict() -> None:
    # mean 0.1005, standard error 0.0005, t(0.975; 1) = 12.7062
    found = paired_gain({1: 0.9, 2: 0.901}, {1: 0.8, 2: 0.8})
    assert found is not None
    assert found.low == pytest.approx(0.1005 - 12.7062 * 0.0005, rel=1e-4)
    assert found.low > 0
    assert not found.clear_of_zero


def test_intervals_stay_within_what_is_possible() -> None:
    # mean 0.99, standard error sqrt(1e-4 / 3), t(0.975; 2) = 4.3027: 0.9652 to 1.0148
    found = estimate([0.98, 0.99, 1.0])
    assert found.low == pytest.approx(0.99 - 4.3027 * math.sqrt(1e-4 / 3), rel=1e-4)
    assert found.high == 1.0
    assert estimate([0.0, 0.01, 0.02]).low == 0.0
    gain = paired_gain({1: 1.0, 2: 0.9, 3: 0.1}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert gain is not None
    assert (gain.low, gain.high) == (pytest.approx(-0.5583, abs=1e-3), 1.0)


def test_values_that_are_not_finite_are_left_out() -> None:
    assert estimate([0.5, math.nan, 0.7]).count == 2
    found = paired_gain({1: 0.5, 2: math.nan, 3: 0.7}, {1: 0.4, 2: 0.4, 3: 0.7})
    assert found is not None
    assert (found.count, found.mean) == (2, pytest.approx(0.05))
    assert paired_gain({1: math.nan}, {1: 0.5}) is None


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        estimate([])


def test_gains_are_paired_by_seed_not_by_place() -> None:
    found = paired_gain({3: 0.9, 1: 0.7}, {1: 0.6, 2: 0.1, 3: 0.8})
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(0.1), 2)
    assert math.isnan(found.half_width)


def test_gains_need_a_shared_seed() -> None:
    assert paired_gain({1: 0.9}, {2: 0.8}) is None
    assert paired_gain({}, {}) is None


def test_a_clear_loss_is_clear_too() -> None:
    found = paired_gain({1: 0.1, 2: 0.12, 3: 0.11}, {1: 0.5, 2: 0.5, 3: 0.5})
    assert found is not None and found.high < 0 and found.clear_of_zero
