"""What is said of teachers' kept outputs while a study runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNITS = ("B", "kB", "MB", "GB", "TB")


def outputs_line(event: Mapping[str, Any]) -> str:
    """One line for an `outputs` event of a running study."""
    status = event["status"]
    if status == "live":
        return f"the teacher runs in every training step: {event['why']}"
    if status == "removed":
        return f"removed teacher outputs {event['key'][:12]} from the cache (least recently used)"
    views = "1 view" if event["views"] == 1 else f"{event['views']} views"
    size = f"{views}, {in_bytes(event['bytes'])}"
    text = {
        "begun": "computing teacher outputs for all trials",
        "kept": "cached teacher outputs for all trials",
        "found": "using cached teacher outputs",
    }[status]
    return f"{text} ({size})"


def in_bytes(count: float) -> str:
    """A number of bytes, to be read."""
    unit = UNITS[0]
    for unit in UNITS:
        if abs(count) < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
