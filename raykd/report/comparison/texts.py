"""Figures of a comparison as text, in the unit of its metric."""

from __future__ import annotations

import math

from raykd.report.comparison.arms import Metric
from raykd.tuning.estimates import Estimate
from raykd.tuning.number_format import UNKNOWN, interval, points


def mean_text(metric: Metric, mean: Estimate) -> str:
    """Return a mean with its interval: "97.41% ± 0.35 (n=3)", "0.214 ± 0.012 (n=3)"."""
    if metric.is_accuracy:
        return interval(mean)
    return f"{mean.mean:.4g}{_half_width(mean)} (n={mean.count})"


def difference_text(metric: Metric, difference: Estimate) -> str:
    """Return a difference with its interval, of accuracies in percentage points."""
    if metric.is_accuracy:
        return points(difference)
    return f"{difference.mean:+.4g}{_half_width(difference)} (n={difference.count})"


def p_text(p: float) -> str:
    """Return a p value: "0.012", "< 0.001"; "" if there is none."""
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def volume_text(volume: Estimate | None) -> str:
    """Return a hypervolume with its interval: "0.812 [0.790, 0.812]"."""
    if volume is None:
        return UNKNOWN
    if math.isnan(volume.low):
        return f"{volume.mean:.3f}"
    return f"{volume.mean:.3f} [{volume.low:.3f}, {volume.high:.3f}]"


def _half_width(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.half_width) else f" ± {estimate.half_width:.2g}"
