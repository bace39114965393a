"""Places in a study: `knowledge[0].loss.temperature` and the tuple of keys it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Place = tuple[str | int, ...]
"""Keys and list positions from the study's root; empty for the root."""

_STEP = re.compile(r"\.?(?P<key>[^.\[\]=\s]+)|\[(?P<index>\d+)\]")


def dotted(place: Iterable[str | int]) -> str:
    """`("knowledge", 0, "loss")` as `knowledge[0].loss`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def parse_place(text: str) -> Place:
    """`knowledge[0].loss` as `("knowledge", 0, "loss")`.

    Raises:
        ValueError: it is no dotted path.
    """
    place: list[str | int] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (at == 0) != (step[0][0] not in ".["):
            raise ValueError(f"{text!r} is no path; write one like knowledge[0].loss.temperature")
        place.append(step["key"] if step["key"] is not None else int(step["index"]))
        at = step.end()
    if not place:
        raise ValueError("an empty path; write one like knowledge[0].loss.temperature")
    return tuple(place)


def value_at(data: Any, place: Place) -> Any:
    """What stands at `place` of plain data; None where there is nothing."""
    for step in place:
        if isinstance(data, Mapping):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data
