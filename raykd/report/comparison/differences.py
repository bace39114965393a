"""Differences between members: settings of the studies, values of the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raykd.report.comparison.arms import Arm
from raykd.report.comparison.members import Member

IRRELEVANT = ("name", "seed", "tracking", "cluster.storage", "cache.folder", "cache.limit_gb")
"""Settings that name and place a study, or whose prefix does."""

MAX_LISTED = 4
"""Values of a param that are listed one by one; more are shown as a range or a number."""


@dataclass(frozen=True)
class DifferenceRow:
    """A value that differs.

    Attributes:
        name: name of the setting or param.
        values: text of each member or arm; "" if it has no such value.
    """

    name: str
    values: tuple[str, ...]


def settings_that_differ(members: Sequence[Member]) -> list[DifferenceRow]:
    """Return the settings of studies that are not the same in all members."""
    return _differing([member.settings for member in members])


def params_that_differ(members: Sequence[Member]) -> list[DifferenceRow]:
    """Return the params of trials whose values are not the same set in all members."""
    return _differing([_value_sets(member) for member in members])


def arm_params_that_differ(arms: Sequence[Arm]) -> list[DifferenceRow]:
    """Return the params that are not the same in all arms."""
    return _differing([arm.params for arm in arms])


def _differing(columns: Sequence[Mapping[str, str]]) -> list[DifferenceRow]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        values = tuple(column.get(name, "") for column in columns)
        if len(set(values)) > 1 and not is_irrelevant(name):
            rows.append(DifferenceRow(name, values))
    return rows


def is_irrelevant(name: str) -> bool:
    """Return True for a setting that cannot change a result."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in IRRELEVANT)


def _value_sets(member: Member) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for training in member.trials:
        for name, value in training.params.items():
            values.setdefault(name, {})[value] = None
    return {name: _text(list(each)) for name, each in values.items()}


def _text(values: Sequence[str]) -> str:
    """Return a set of values in short: listed, as a range, or as their number."""
    numbers = [as_number(value) for value in values]
    present = sorted(number for number in numbers if number is not None)
    if len(values) <= MAX_LISTED and len(present) == len(values):
        return ", ".join(f"{n:.0f}" if n.is_integer() else f"{n:.4g}" for n in present)
    if len(values) <= MAX_LISTED:
        return ", ".join(sorted(values))
    if len(present) == len(values):
        return f"{min(present):.3g} to {max(present):.3g}"
    return f"{len(values)} values"


def as_number(value: str) -> float | None:
    """Return a text as a finite number, or None."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def short_value(value: str) -> str:
    """Return a value with at most four significant digits; "-" for a missing one."""
    number = as_number(value)
    if number is None or len(value) <= 7:
        return value or "-"
    return f"{number:.4g}"
