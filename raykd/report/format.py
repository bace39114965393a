"""Teachers' cached outputs in the lines of a running study."""

from __future__ import annotations

import re

from raykd.tracking.events import TeacherCacheChanged

UNITS = ("B", "kB", "MB", "GB", "TB")


def outputs_line(event: TeacherCacheChanged) -> str:
    """Return the state of a teacher's cached outputs in one line."""
    status = event.status
    if status == "live":
        return f"the teacher runs in every training step: {event.reason}"
    if status == "removed":
        return f"removed teacher outputs {event.key[:12]} from the cache (least recently used)"
    views = "1 view" if event.views == 1 else f"{event.views} views"
    size = f"{views}, {in_bytes(event.bytes or 0)}"
    text = {
        "begun": "computing teacher outputs for all trials",
        "kept": "cached teacher outputs for all trials",
        "found": "using cached teacher outputs",
    }[status]
    return f"{text} ({size})"


def in_bytes(count: float) -> str:
    """Return a number of bytes in a readable unit."""
    unit = UNITS[0]
    for unit in UNITS:
        if abs(count) < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def short_parameter(name: str) -> str:
    """Return `knowledge[1].loss.temperature` as `loss 2 temperature`.

    The form of MLflow, `knowledge.1.loss.temperature`, is shortened likewise.
    """
    text = name
    for prefix, short in (("student.model.", ""), ("student.model", "student"), ("train.", "")):
        if text.startswith(prefix):
            return short + text.removeprefix(prefix)
    term = re.match(r"knowledge(?:\[(\d+)\]|\.(\d+))\.(.*)", text)
    if term is None:
        return text
    number = int(term[1] or term[2]) + 1
    rest = term[3].removeprefix("loss.") if term[3] != "loss" else ""
    return f"loss {number} {rest}".strip()
