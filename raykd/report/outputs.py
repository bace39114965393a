"""What is said of teachers' kept outputs while a study runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNITS = ("B", "kB", "MB", "GB", "TB")


def outputs_line(event: Mapping[str, Any]) -> str:
    """One line for an `outputs` event of a running study."""
    status = event["status"]
    if status == "live":
        return f"the teacher is run live: {event['why']}"
    if status == "removed":
        return f"outputs {event['key'][:12]}, unused longest, removed from the cache"
    size = f"{event['views']} view(s), {in_bytes(event['bytes'])}"
    doing = {"begun": "computing", "kept": "computed", "found": "found"}[status]
    return f"{doing} the teacher's outputs, once for all trials ({size})"


def in_bytes(count: float) -> str:
    """A number of bytes, to be read."""
    unit = UNITS[0]
    for unit in UNITS:
        if abs(count) < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
