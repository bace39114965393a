"""Tests of differences between arms, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raykd.layer_study.significance import LEVEL, correct_holm
from raykd.report.comparison.arms import Arm, Metric
from raykd.tuning.estimates import (
    MIN_SEEDS,
    ROUNDING_ERROR,
    Estimate,
    estimate,
    without_rounding,
)

PAIRED, UNPAIRED, UNTESTED = "paired", "unpaired", ""


@dataclass(frozen=True)
class ArmContrast:
    """Difference of an arm and the reference, arm minus reference.

    Attributes:
        difference: mean difference, with its 95% interval, which is not corrected.
        test: "paired" (Student's t over common seeds), "unpaired" (Welch's t), or "" (no test).
        p: two-sided p value; NaN without a test.
        p_holm: p value corrected for the number of tests (Holm 1979).
    """

    difference: Estimate
    test: str
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def is_significant(self) -> bool:
        """True if the difference is significant at 5%, corrected for the number of tests."""
        return self.difference.count >= MIN_SEEDS and self.p_holm < LEVEL

    @property
    def reason(self) -> str:
        """Reason that there is no verdict; "" if the difference is significant."""
        if self.is_significant:
            return ""
        if self.difference.count < MIN_SEEDS:
            count = self.difference.count
            seeds = f"{count} seed{'s are' if count > 1 else ' is'}"
            return f"{seeds} too few for a verdict (at least {MIN_SEEDS} are needed)"
        if math.isnan(self.p):
            return (
                "it cannot be tested, because it is the same under every seed and its spread over "
                "seeds is unknown"
            )
        return f"not significant (p = {self.p_holm:.2g} after Holm's correction)"


def contrasts_with(
    reference: Arm, arms: Sequence[Arm], metric: Metric, *, paired: Mapping[str, bool]
) -> dict[int, ArmContrast]:
    """Return the difference of each arm and the reference, by the arm's index.

    The reference itself has none.  Holm's correction counts all tests.

    Args:
        reference: one of the arms.
        arms: arms on the same data.
        metric: metric of the arms.
        paired: for each member, True if its seeds can be paired with those of the reference.
    """
    contrasts = {
        index: _contrast(arm, reference, metric, paired[arm.member])
        for index, arm in enumerate(arms)
        if arm is not reference
    }
    tested = {str(i): c.p for i, c in contrasts.items() if not math.isnan(c.p)}
    corrected = correct_holm(tested)
    return {
        index: replace(contrast, p_holm=corrected.get(str(index), math.nan))
        for index, contrast in contrasts.items()
    }


def _contrast(arm: Arm, reference: Arm, metric: Metric, paired: bool) -> ArmContrast:
    low, high = metric.bounds
    span = high - low
    seeds = sorted(arm.values.keys() & reference.values.keys())
    if paired and arm.is_seeded and reference.is_seeded and len(seeds) > 1:
        pairs = [(arm.values[seed], reference.values[seed]) for seed in seeds]
        differences = [without_rounding(first - second) for first, second in pairs]
        difference = estimate(differences, -span, span)
        return ArmContrast(difference, PAIRED, _paired_p(differences))
    mean = without_rounding(arm.mean.mean - reference.mean.mean)
    count = min(arm.mean.count, reference.mean.count)
    if count < 2:
        return ArmContrast(Estimate(mean, math.nan, math.nan, count), UNTESTED)
    return _welch([*arm.values.values()], [*reference.values.values()], mean, span)


def _paired_p(differences: Sequence[float]) -> float:
    """Return the p value of a paired t test; NaN if all differences are the same."""
    if max(differences) - min(differences) <= ROUNDING_ERROR:
        return math.nan
    from scipy.stats import ttest_1samp

    return float(np.asarray(ttest_1samp(differences, 0.0))[1])


def _welch(first: list[float], second: list[float], mean: float, span: float) -> ArmContrast:
    """Return the difference of two independent samples (Welch 1947)."""
    from scipy.stats import ttest_ind

    count = min(len(first), len(second))
    if max(max(v) - min(v) for v in (first, second)) <= ROUNDING_ERROR:
        return ArmContrast(Estimate(mean, math.nan, math.nan, count), UNPAIRED)
    test = ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(0.95)
    low, high = max(float(interval.low), -span), min(float(interval.high), span)
    return ArmContrast(Estimate(mean, low, high, count), UNPAIRED, float(np.asarray(test)[1]))
