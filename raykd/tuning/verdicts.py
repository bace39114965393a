"""Verdicts on differences of accuracies, in words."""

from __future__ import annotations

import math

from raykd.tuning.estimates import MIN_SEEDS, Estimate


def inconclusive_reason(difference: Estimate) -> str:
    """Return the reason that an accuracy difference is inconclusive; "" if it is conclusive."""
    if difference.count < MIN_SEEDS:
        seeds = "1 seed is" if difference.count == 1 else f"{difference.count} seeds are"
        return f"{seeds} too few for a verdict (at least {MIN_SEEDS} are needed)"
    if math.isnan(difference.half_width):
        if difference.mean == 0:
            return "no difference at the resolution of the test set"
        return (
            "no confidence interval: the difference is the same number of test samples under every "
            "seed, so its spread over seeds is unknown"
        )
    return "" if difference.clear_of_zero else "not significant (95% CI includes 0)"


def gain_verdict(gain: Estimate | None) -> str:
    """Return a sentence about the gain of a student over the same student trained alone."""
    if gain is None:
        return "no baseline to compare with."
    reason = inconclusive_reason(gain)
    if reason:
        return f"{reason}."
    return "better than without teacher." if gain.mean > 0 else "worse than without teacher."
