"""Statistics of arms that were trained under the same seeds.

With three seeds, an arm's own values say almost nothing about the noise, and the best of many arms
looks better than it is.  So all arms share one error estimate, and the significance marks are
corrected for the number of arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raykd.tuning.statistics import MIN_SEEDS, Estimate, quantile, survival, without_rounding

Values = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> accuracy."""

LEVEL = 0.05
RESAMPLES = 1000


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
    def is_clear(self) -> bool:
        """True if the gain is significant, corrected for the number of arms."""
        return self.gain.count >= MIN_SEEDS and self.p_holm < LEVEL

    @property
    def leaves_zero_out(self) -> bool:
        """True if the gain would be significant for a single arm."""
        return self.gain.count >= MIN_SEEDS and self.p < LEVEL


def noise_of(values: Values) -> Noise:
    """Estimate the noise of one training by the two-way model arm + seed + noise.

    This is the model of a randomized block design; it assumes equal noise in all arms.
    """
    rows = [
        (arm, seed, value)
        for arm, of in values.items()
        for seed, value in of.items()
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


def contrasts(values: Values, control: str) -> dict[str, Contrast]:
    """Compare every arm with `control`; arms without a common seed are left out.

    Values without residual noise are counts of a small split; then no gain is significant.
    """
    noise = noise_of(values)
    base = values.get(control, {})
    results: dict[str, Contrast] = {}
    for arm, of in values.items():
        by_seed = {
            seed: without_rounding(of[seed] - base[seed])
            for seed in sorted(of.keys() & base.keys())
            if math.isfinite(of[seed]) and math.isfinite(base[seed])
        }
        if arm == control or not by_seed:
            continue
        mean = without_rounding(math.fsum(by_seed.values()) / len(by_seed))
        count = len(by_seed)
        error = noise.deviation * math.sqrt(2 / count)
        if not error > 0:
            gain = Estimate(mean, math.nan, math.nan, count)
            results[arm] = Contrast(gain, by_seed, math.nan, math.nan)
            continue
        half = quantile(1 - LEVEL / 2, noise.freedom) * error
        p = 2 * survival(abs(mean) / error, noise.freedom)
        results[arm] = Contrast(_within(mean, half, count), by_seed, p, p)
    corrected = holm({arm: each.p for arm, each in results.items() if not math.isnan(each.p)})
    return {
        arm: Contrast(each.gain, each.by_seed, each.p, corrected.get(arm, math.nan))
        for arm, each in results.items()
    }


def _within(mean: float, half: float, count: int) -> Estimate:
    """Return a difference of accuracies with an interval of this half width, within [-1, 1]."""
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0), count)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number.

    They bound the family-wise error rate (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = least
    return corrected


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of a predictor with the cells' gains.

    Attributes:
        tau: Kendall's tau-b; NaN if predictor or gain is the same for all cells.
        low, high: its 95% interval, from resampled cells and seeds; NaN if undefined.
        cells: number of ranked cells.
    """

    tau: float
    low: float
    high: float
    cells: int


def rank_correlation(predicted: np.ndarray, gains: np.ndarray, seed: int = 0) -> RankCorrelation:
    """Return Kendall's tau between a predictor and the cells' mean gains.

    The interval is the middle 95% of `RESAMPLES` bootstrap samples of cells and seeds.

    Args:
        predicted, gains: (cells, seeds); NaN for a missing value.
        seed: of the resampling.
    """
    usable = np.isfinite(predicted).any(1) & np.isfinite(gains).any(1)
    predicted, gains = predicted[usable], gains[usable]
    cells = len(predicted)
    if cells < 3:
        return RankCorrelation(math.nan, math.nan, math.nan, cells)
    tau = _tau(_means(predicted), _rounded(_means(gains)))
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(RESAMPLES):
        rows = rng.integers(cells, size=cells)
        columns = rng.integers(gains.shape[1], size=gains.shape[1])
        drawn = np.ix_(rows, columns)
        draws.append(_tau(_means(predicted[drawn]), _rounded(_means(gains[drawn]))))
    finite = [draw for draw in draws if not math.isnan(draw)]
    if math.isnan(tau) or len(finite) < RESAMPLES / 2:
        return RankCorrelation(tau, math.nan, math.nan, cells)
    low, high = np.percentile(finite, [2.5, 97.5])
    return RankCorrelation(tau, float(low), float(high), cells)


def _rounded(gains: np.ndarray) -> np.ndarray:
    """Return gains without rounding errors, so that equal numbers of samples are ties."""
    return np.round(gains, 12)


def _means(table: np.ndarray) -> np.ndarray:
    """Return the mean of each row's finite values; NaN for a row without any."""
    finite = np.isfinite(table)
    counts = finite.sum(1)
    sums = np.where(finite, table, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _tau(predicted: Sequence[float] | np.ndarray, gains: Sequence[float] | np.ndarray) -> float:
    x, y = np.asarray(predicted), np.asarray(gains)
    finite = np.isfinite(x) & np.isfinite(y)
    return kendall(x[finite], y[finite])


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b of finite values, both (N,); NaN if one side is constant.

    The same as `scipy.stats.kendalltau`, whose import takes most of a second.
    """
    order_x = np.sign(np.subtract.outer(x, x))
    order_y = np.sign(np.subtract.outer(y, y))
    # each pair of values counts twice, on both sides of the diagonal
    unequal_x, unequal_y = np.count_nonzero(order_x), np.count_nonzero(order_y)
    if not unequal_x or not unequal_y:
        return math.nan
    agreement = float((order_x * order_y).sum()) / 2
    tau = agreement / math.sqrt(unequal_x / 2) / math.sqrt(unequal_y / 2)
    return min(1.0, max(-1.0, tau))
