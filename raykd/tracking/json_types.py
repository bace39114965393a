"""Values in JSON's own types, and checks of types that are read from JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def to_json(value: Any) -> Any:
    """Return `value` in JSON's own types; NaN and infinities become "nan", "inf" and "-inf"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value):
        parts = dataclasses.fields(value)
        return {part.name: to_json(getattr(value, part.name)) for part in parts}
    return str(value)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a record as numbers: JSON has NaN and infinities as text."""
    return {name: float(value) for name, value in (record.get("metrics") or {}).items()}


@cache
def type_checks(cls: type) -> tuple[tuple[str, Callable[[object], bool]], ...]:
    """Return, for each field, a function that checks the type of its value, not of its items."""
    hints = get_type_hints(cls)
    names = (part.name for part in dataclasses.fields(cls))
    return tuple((name, _type_check(hints[name])) for name in names)


def _type_check(hint: Any) -> Callable[[object], bool]:
    origin = get_origin(hint)
    if origin is Literal:
        return get_args(hint).__contains__
    if origin in (Union, UnionType):
        checks = [_type_check(part) for part in get_args(hint)]
        return lambda value: any(accepts(value) for accepts in checks)
    if hint is Any:
        return lambda value: True
    classes = {Mapping: dict, Sequence: (list, tuple), float: (float, int)}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, (hint, dict))
    allowed = classes.get(origin or hint, hint)
    return lambda value: isinstance(value, allowed)
