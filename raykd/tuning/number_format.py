"""Numbers as text: percentages, counts, intervals and durations with their significant digits."""

from __future__ import annotations

import math

from raykd.metrics import facts_of
from raykd.tuning.estimates import Estimate

UNKNOWN = "-"

WORDS = {
    "macs": "MACs",
    "onnx": "ONNX",
    "f1": "F1",
    "r2": "R2",
    "auroc": "AUROC",
    "mae": "MAE",
    "rmse": "RMSE",
    "top5": "top-5",
}
"""Parts of names of metrics that are written otherwise."""


def percent(fraction: float | None) -> str:
    """Return 0.97415 as "97.41%"; an unknown value as "-"."""
    if fraction is None or math.isnan(fraction):
        return UNKNOWN
    return f"{100 * fraction:.2f}%"


def whole(number: float | None) -> str:
    """Return 12345.0 as "12,345"."""
    return UNKNOWN if number is None or not math.isfinite(number) else f"{number:,.0f}"


def compact(number: float | None) -> str:
    """Return a number in at most five characters: 9876, 65.1k, 1.23M."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < (9999.5 if not unit else 999.5):
            break
        number /= 1000
    return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"


def metric(name: str, value: float | None) -> str:
    """Return a metric's value in the unit that its name implies."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if facts_of(name).is_share:
        return percent(value)
    if name in ("params", "macs"):
        return whole(value)
    if name == "memory":
        return f"{compact(value)}B"
    return f"{value:.4g} ms" if name.endswith("latency") else f"{value:.4g}"


def words(name: str) -> str:
    """Return a metric's name in words: "val accuracy"."""
    return " ".join(WORDS.get(word, word) for word in name.split("_"))


def titled(name: str) -> str:
    """Return a metric's name in words, at the start of a sentence: "Val accuracy"."""
    text = words(name)
    return text[:1].upper() + text[1:]


def interval(estimate: Estimate | None) -> str:
    """Return a metric with the half width of its 95% interval: "97.41% ± 0.35 (n=3)".

    A plain number has four digits: "0.9312 ± 0.0041 (n=3)".  An interval that ends at
    100% is not symmetric: "99.50% [97.20, 100.00] (n=3)".
    """
    if estimate is None:
        return UNKNOWN
    mean = percent(estimate.mean) if estimate.is_share else f"{estimate.mean:.4g}"
    return f"{mean}{_half_width(estimate)} (n={estimate.count})"


def points(estimate: Estimate | None) -> str:
    """Return a difference in percentage points, or of plain numbers: "+0.61 ± 0.50 (n=3)"."""
    if estimate is None:
        return UNKNOWN
    mean = f"{100 * estimate.mean:+.2f}" if estimate.is_share else f"{estimate.mean:+.4g}"
    return f"{mean}{_half_width(estimate)} (n={estimate.count})"


def scale_of(estimate: Estimate) -> float:
    """Return 100 for shares, which are shown in percentage points, else 1."""
    return 100.0 if estimate.is_share else 1.0


def scaled(estimate: Estimate, value: float, form: str = "") -> str:
    """Return a value in the unit of `points`: two digits of points, three of plain numbers."""
    return f"{scale_of(estimate) * value:{form}{'.2f' if estimate.is_share else '.3g'}}"


def _half_width(estimate: Estimate) -> str:
    if math.isnan(estimate.half_width):
        return ""
    if abs((estimate.high + estimate.low) / 2 - estimate.mean) > 1e-6:
        ends = (_end(estimate, value) for value in (estimate.low, estimate.high))
        return f" [{', '.join(ends)}]"
    return f" ± {_end(estimate, estimate.half_width)}"


def _end(estimate: Estimate, value: float) -> str:
    return f"{100 * value:.2f}" if estimate.is_share else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Return seconds as on a stop watch: 0:42, 12:05, 1:02:03."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """Return seconds in words: "42 s", "3 min 20 s", "2 h 5 min"."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    minutes, second = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {second} s" if second else f"{minutes} min"
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute} min" if minute else f"{hours} h"


def rough(seconds: float) -> str:
    """Return an estimated time, rounded to 5 s, half minutes, minutes or 5 minutes."""
    step = 5 if seconds < 90 else 30 if seconds < 900 else 60 if seconds < 3600 else 300
    return duration(max(step, step * round(seconds / step)))


def time_left(seconds: float | None) -> str:
    """Return the remaining time in words; "" if none is left.

    Args:
        seconds: estimated; None: not known yet.
    """
    if seconds is None:
        return "time left: estimating"
    return f"about {rough(seconds)} left" if seconds else ""
