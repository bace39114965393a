"""What can be said of many arms that were trained under the same seeds.

With three seeds an interval of each arm's own knows next to nothing of the noise, and the best of
many arms looks better than it is.  So one error is taken for all arms, and the marks are corrected
for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raykd.search.statistics import FEWEST, Estimate, quantile, survival, without_rounding

Values = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> what it reached."""

LEVEL = 0.05
RESAMPLES = 1000


@dataclass(frozen=True)
class Noise:
    """What is left of the arms' values when the arms and the seeds are taken out.

    Attributes:
        deviation: the standard deviation of one training; NaN where nothing is left to tell it.
        freedom: its degrees of freedom.
    """

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Contrast:
    """How much better an arm is than the arm it is compared with.

    Attributes:
        gain: mean over the seeds both have, with its 95% interval from the noise of all arms; the
            interval is this arm's alone, not corrected for the number of arms.
        by_seed: the difference under each seed.
        p: of the gain, two-sided; NaN where the noise is not known.
        p_holm: the same corrected for the number of arms compared (Holm 1979).
    """

    gain: Estimate
    by_seed: Mapping[int, float]
    p: float
    p_holm: float

    @property
    def is_clear(self) -> bool:
        """Whether the gain is significant, corrected for the number of arms."""
        return self.gain.count >= FEWEST and self.p_holm < LEVEL

    @property
    def leaves_zero_out(self) -> bool:
        """Whether the gain is significant if this arm were the only one."""
        return self.gain.count >= FEWEST and self.p < LEVEL


def noise_of(values: Values) -> Noise:
    """The noise of one training by the two-way model arm + seed + noise (randomised blocks).

    It takes the noise to be as large in every arm.
    """
    told = [
        (arm, seed, value)
        for arm, of in values.items()
        for seed, value in of.items()
        if math.isfinite(value)
    ]
    if not told:
        return Noise(math.nan, 0)
    arms = sorted({arm for arm, _, _ in told})
    seeds = sorted({seed for _, seed, _ in told})
    design = np.zeros((len(told), len(arms) + len(seeds)))
    for row, (arm, seed, _) in enumerate(told):
        design[row, arms.index(arm)] = 1
        design[row, len(arms) + seeds.index(seed)] = 1
    wanted = np.array([value for _, _, value in told])
    fitted, _, rank, _ = np.linalg.lstsq(design, wanted, rcond=None)
    freedom = len(told) - int(rank)
    if freedom < 1:
        return Noise(math.nan, 0)
    left = wanted - design @ fitted
    variance = float(left @ left) / freedom
    if variance <= (1e-12 * max(1.0, float(np.abs(wanted).max()))) ** 2:
        variance = 0.0  # rounding
    return Noise(math.sqrt(variance), freedom)


def contrasts(values: Values, control: str) -> dict[str, Contrast]:
    """Every arm against `control`; those without a seed in common with it are left out.

    Values that all follow from arm and seed show no noise; then nothing is clear, as the values are
    counts of a small split.
    """
    noise = noise_of(values)
    base = values.get(control, {})
    found: dict[str, Contrast] = {}
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
            found[arm] = Contrast(gain, by_seed, math.nan, math.nan)
            continue
        half = quantile(1 - LEVEL / 2, noise.freedom) * error
        p = 2 * survival(abs(mean) / error, noise.freedom)
        found[arm] = Contrast(_within(mean, half, count), by_seed, p, p)
    corrected = holm({arm: one.p for arm, one in found.items() if not math.isnan(one.p)})
    return {
        arm: Contrast(one.gain, one.by_seed, one.p, corrected.get(arm, math.nan))
        for arm, one in found.items()
    }


def _within(mean: float, half: float, count: int) -> Estimate:
    """A difference of accuracies with an interval of this half width, within [-1, 1]."""
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0), count)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p values, corrected so that the chance of any wrong mark among them stays below the
    level (Holm 1979, Scandinavian Journal of Statistics 6)."""
    found: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - rank)))
        found[name] = least
    return found


@dataclass(frozen=True)
class Ranking:
    """How well a predictor ranks the cells' gains.

    Attributes:
        tau: Kendall's tau-b; NaN where one of the two is the same for all cells.
        low, high: its 95% interval, from resampled cells and seeds; NaN where there is none.
        cells: how many were ranked.
    """

    tau: float
    low: float
    high: float
    cells: int


def ranking(predicted: np.ndarray, gains: np.ndarray, seed: int = 0) -> Ranking:
    """Kendall's tau between a predictor and the cells' mean gains.

    The interval is that of the middle 95% of `RESAMPLES` draws of cells, and of seeds, with
    replacement.  It holds for cells and seeds like these.

    Args:
        predicted, gains: (cells, seeds); NaN where a value is missing.
        seed: of the draws.
    """
    usable = np.isfinite(predicted).any(1) & np.isfinite(gains).any(1)
    predicted, gains = predicted[usable], gains[usable]
    cells = len(predicted)
    if cells < 3:
        return Ranking(math.nan, math.nan, math.nan, cells)
    tau = _tau(_means(predicted), _rounded(_means(gains)))
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(RESAMPLES):
        rows = rng.integers(cells, size=cells)
        columns = rng.integers(gains.shape[1], size=gains.shape[1])
        drawn = np.ix_(rows, columns)
        draws.append(_tau(_means(predicted[drawn]), _rounded(_means(gains[drawn]))))
    known = [draw for draw in draws if not math.isnan(draw)]
    if math.isnan(tau) or len(known) < RESAMPLES / 2:
        return Ranking(tau, math.nan, math.nan, cells)
    low, high = np.percentile(known, [2.5, 97.5])
    return Ranking(tau, float(low), float(high), cells)


def _rounded(gains: np.ndarray) -> np.ndarray:
    """Gains without rounding errors, so that equal numbers of samples are ties."""
    return np.round(gains, 12)


def _means(table: np.ndarray) -> np.ndarray:
    """The mean of each row's known values; NaN where it has none."""
    known = np.isfinite(table)
    counts = known.sum(1)
    sums = np.where(known, table, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _tau(predicted: Sequence[float] | np.ndarray, gains: Sequence[float] | np.ndarray) -> float:
    one, other = np.asarray(predicted), np.asarray(gains)
    known = np.isfinite(one) & np.isfinite(other)
    return kendall(one[known], other[known])


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau-b of finite values, both (N,); NaN where one side has no two unequal values.

    As `scipy.stats.kendalltau`, without its p value and its import, which takes most of a second.
    """
    before = np.sign(np.subtract.outer(one, one))
    after = np.sign(np.subtract.outer(other, other))
    # Each pair of values counts twice here, on both sides of the diagonal.
    unequal, unequal_other = np.count_nonzero(before), np.count_nonzero(after)
    if not unequal or not unequal_other:
        return math.nan
    agreement = float((before * after).sum()) / 2
    tau = agreement / math.sqrt(unequal / 2) / math.sqrt(unequal_other / 2)
    return min(1.0, max(-1.0, tau))
