"""Progress of a search as short text: a sparkline of its trials, and its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raykd.report.run_state import RunState
from raykd.tuning.number_format import metric
from raykd.tuning.records import cost

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Return values as bars between the smallest and the largest one; "" without values.

    Values that are not finite are spaces.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(BARS) - 1
    return "".join(
        BARS[round(top * (value - low) / span) if span else top] if math.isfinite(value) else " "
        for value in values
    )


def trial_sparkline(state: RunState, width: int) -> str:
    """Return the main metric of the last trials that ended, as a sparkline with its range.

    Args:
        width: maximum number of characters.

    Returns:
        The text; "" before two trials have a value, and where the width is too small.
    """
    name = state.main_metric
    ended = [record for record in state.records.of("trial") if record.status != "running"]
    values = [record.metrics.get(name, math.nan) for record in ended]
    if sum(map(math.isfinite, values)) < 2:
        return ""
    label, bars = "trials ", max(8, width - 40)
    latest = values[-bars:]
    finite = [value for value in latest if math.isfinite(value)]
    if not finite:
        return ""
    text = f"{label}{sparkline(latest)} {metric(name, min(finite))} to {metric(name, max(finite))}"
    return text if len(text) <= width else ""


def front_text(state: RunState) -> str:
    """Return the objectives of the trials on the front; "" for a single objective."""
    if len(state.objectives) < 2 or not state.front:
        return ""
    points = [
        " / ".join(metric(name, cost(record, name)) for name in state.objectives)
        for record in state.front
    ]
    return f"Pareto front: {len(points)}  {' · '.join(points)}"
