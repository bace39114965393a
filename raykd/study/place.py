"""Places in a study: `knowledge[0].loss.temperature`, or the same as a tuple of keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""Plain data, as YAML and JSON files contain them."""

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
        ValueError: `text` is not a dotted path.
    """
    place: list[str | int] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (at == 0) != (step[0][0] not in ".["):
            raise ValueError(
                f"{text!r} is not a path; write one like knowledge[0].loss.temperature"
            )
        place.append(step["key"] if step["key"] is not None else int(step["index"]))
        at = step.end()
    if not place:
        raise ValueError("an empty path; write, e.g., knowledge[0].loss.temperature")
    return tuple(place)


def value_at(data: Json, place: Place) -> Json:
    """The value at `place` of plain data; None if there is none."""
    for step in place:
        if isinstance(data, Mapping) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data
