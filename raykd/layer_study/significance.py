"""Significance of the gains of arms that were trained under the same seeds.

Three seeds are too few to estimate the noise of each arm separately, and the best of many arms
looks better than it is.  So all arms share one error estimate, and the significance marks are
corrected for the number of arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raykd.metrics import METRICS, Metric
from raykd.tuning.estimates import MIN_SEEDS, Estimate, quantile, survival, without_rounding

Accuracies = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> validation metric, such as the accuracy."""

LEVEL = 0.05


@dataclass(frozen=True)
class Noise:
    """Residual noise of one training, after the effects of arm and seed.

    Attributes:
        deviation: standard deviation; NaN without degrees of freedom.
        freedom: degrees of freedom.
    """

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Contrast:
    """Gain of an arm over the arm that it is compared with.

    Attributes:
        gain: mean over the common seeds, with its 95% interval from the noise of all arms; the
            interval is not corrected for the number of arms.
        by_seed: difference under each seed.
        p: p value of the gain, two-sided; NaN if the noise is unknown.
        p_holm: p value corrected for the number of arms (Holm 1979).
    """

    gain: Estimate
    by_seed: Mapping[int, float]
    p: float
    p_holm: float

    @property
    def is_significant(self) -> bool:
        """True if the gain is significant, corrected for the number of arms."""
        return self.gain.count >= MIN_SEEDS and self.p_holm < LEVEL

    @property
    def is_significant_uncorrected(self) -> bool:
        """True if the gain would be significant for a single arm."""
        return self.gain.count >= MIN_SEEDS and self.p < LEVEL


def estimate_noise(accuracies: Accuracies) -> Noise:
    """Estimate the noise of one training by the two-way model arm + seed + noise.

    This is the model of a randomized block design; it assumes equal noise in all arms.
    """
    rows = [
        (arm, seed, value)
        for arm, of_arm in accuracies.items()
        for seed, value in of_arm.items()
        if math.isfinite(value)
    ]
    if not rows:
        return Noise(math.nan, 0)
    arms = sorted({arm for arm, _, _ in rows})
    seeds = sorted({seed for _, seed, _ in rows})
    design = np.zeros((len(rows), len(arms) + len(seeds)))
    for row, (arm, seed, _) in enumerate(rows):
        design[row, arms.index(arm)] = 1
        design[row, len(arms) + seeds.index(seed)] = 1
    observed = np.array([value for _, _, value in rows])
    fitted, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    freedom = len(rows) - int(rank)
    if freedom < 1:
        return Noise(math.nan, 0)
    residuals = observed - design @ fitted
    variance = float(residuals @ residuals) / freedom
    if variance <= (1e-12 * max(1.0, float(np.abs(observed).max()))) ** 2:
        variance = 0.0  # rounding
    return Noise(math.sqrt(variance), freedom)


def compare_arms(
    accuracies: Accuracies, baseline: str, facts: Metric = METRICS["accuracy"]
) -> dict[str, Contrast]:
    """Compare every arm with `baseline`; arms without a common seed are left out.

    Values without residual noise are counts of a small split; then no gain is significant.

    Args:
        accuracies: values of a metric of which more is better.
        baseline: arm to compare with.
        facts: of the metric.
    """
    noise = estimate_noise(accuracies)
    base = accuracies.get(baseline, {})
    results: dict[str, Contrast] = {}
    for arm, of_arm in accuracies.items():
        by_seed = {
            seed: without_rounding(of_arm[seed] - base[seed])
            for seed in sorted(of_arm.keys() & base.keys())
            if math.isfinite(of_arm[seed]) and math.isfinite(base[seed])
        }
        if arm == baseline or not by_seed:
            continue
        mean = without_rounding(math.fsum(by_seed.values()) / len(by_seed))
        count = len(by_seed)
        error = noise.deviation * math.sqrt(2 / count)
        if not error > 0:
            gain = Estimate(mean, math.nan, math.nan, count, facts.is_share)
            results[arm] = Contrast(gain, by_seed, math.nan, math.nan)
            continue
        half = quantile(1 - LEVEL / 2, noise.freedom) * error
        p = 2 * survival(abs(mean) / error, noise.freedom)
        results[arm] = Contrast(_within(mean, half, count, facts), by_seed, p, p)
    tested = {arm: contrast.p for arm, contrast in results.items() if not math.isnan(contrast.p)}
    corrected = correct_holm(tested)
    return {
        arm: replace(contrast, p_holm=corrected.get(arm, math.nan))
        for arm, contrast in results.items()
    }


def _within(mean: float, half: float, count: int, facts: Metric) -> Estimate:
    """Return a difference with an interval of this half width, within the range of the metric."""
    widest = facts.high - facts.low
    low, high = max(mean - half, -widest), min(mean + half, widest)
    return Estimate(mean, low, high, count, facts.is_share)


def correct_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number.

    They bound the family-wise error rate (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = least
    return corrected
