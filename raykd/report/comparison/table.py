"""Arms of a comparison as a table of figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from raykd.report.comparison.arms import Arm
from raykd.report.comparison.contrasts import ArmContrast
from raykd.report.comparison.differences import is_irrelevant
from raykd.study.objectives import COSTS

if TYPE_CHECKING:
    import pandas as pd

    from raykd.report.comparison.comparison import Comparison

Row = dict[str, str | float | int | bool | None]


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each arm.

    Columns: `study`, `arm` (its ID), `kind`, `label`, `n`, `seeds`, the metric's `mean`, `low` and
    `high`, the same of `gain` and `difference` (to the arm whose `is_reference` is true), `test`,
    `p`, `p_holm`, `significant`, costs, `seconds`, and `param.NAME` for each value that is not the
    same in all arms.
    """
    import pandas as pd

    arms = comparison.arms
    names = dict.fromkeys(name for arm in arms for name in arm.params)
    varied = [
        name
        for name in names
        if not is_irrelevant(name) and len({arm.params.get(name) for arm in arms}) > 1
    ]
    costs = [name for name in COSTS if any(arm.cost(name) is not None for arm in arms)]
    rows = []
    for group in comparison.groups:
        for index, arm in enumerate(group.arms):
            row = _figures(arm, comparison.metric.name)
            row |= _contrast(group.contrasts.get(index), arm is group.reference)
            row |= {name: arm.cost(name) for name in costs}
            row["seconds"] = arm.seconds
            row |= {f"param.{name}": arm.params.get(name) for name in varied}
            rows.append(row)
    return pd.DataFrame(rows)


def _figures(arm: Arm, metric: str) -> Row:
    gain = arm.gain
    return {
        "study": arm.member,
        "arm": arm.id,
        "kind": arm.kind,
        "label": arm.label,
        "n": arm.mean.count,
        "seeds": " ".join(map(str, arm.values)) if arm.is_seeded else "",
        f"{metric}_mean": arm.mean.mean,
        f"{metric}_low": _finite(arm.mean.low),
        f"{metric}_high": _finite(arm.mean.high),
        "gain_mean": None if gain is None else gain.mean,
        "gain_low": None if gain is None else _finite(gain.low),
        "gain_high": None if gain is None else _finite(gain.high),
    }


def _contrast(contrast: ArmContrast | None, is_reference: bool) -> Row:
    row: Row = {"is_reference": is_reference}
    if contrast is None:
        return row
    difference = contrast.difference
    return {
        **row,
        "difference_mean": difference.mean,
        "difference_low": _finite(difference.low),
        "difference_high": _finite(difference.high),
        "test": contrast.test,
        "p": _finite(contrast.p),
        "p_holm": _finite(contrast.p_holm),
        "significant": contrast.is_significant,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
