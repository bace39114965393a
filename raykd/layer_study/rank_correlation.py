"""Rank correlation of a predictor with the gains of the pairs (Kendall's tau-b)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
"""Number of bootstrap samples of an interval."""


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
        seed: seed of the bootstrap samples.
    """
    usable = np.isfinite(predicted).any(1) & np.isfinite(gains).any(1)
    predicted, gains = predicted[usable], gains[usable]
    cells = len(predicted)
    if cells < 3:
        return RankCorrelation(math.nan, math.nan, math.nan, cells)
    tau = _finite_tau(_means(predicted), _rounded(_means(gains)))
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    for _ in range(RESAMPLES):
        rows = rng.integers(cells, size=cells)
        columns = rng.integers(gains.shape[1], size=gains.shape[1])
        drawn = np.ix_(rows, columns)
        draws.append(_finite_tau(_means(predicted[drawn]), _rounded(_means(gains[drawn]))))
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


def _finite_tau(predicted: np.ndarray, gains: np.ndarray) -> float:
    finite = np.isfinite(predicted) & np.isfinite(gains)
    return kendall_tau(predicted[finite], gains[finite])


def kendall_tau(x: np.ndarray, y: np.ndarray) -> float:
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
