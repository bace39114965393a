"""Gains over the same student without a teacher, by the values of losses, weights and schemes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from optuna.trial import FrozenTrial

from raykd.metrics import facts_of
from raykd.report.page.content import BLUE, ORANGE, Picture
from raykd.report.page.parameter_grid import TRIAL_ID, ParameterGrid
from raykd.report.summary.search import SearchSummary
from raykd.tuning.number_format import words
from raykd.tuning.records import Record, scheme_name
from raykd.tuning.result import StudyResult

TEACHING = ("knowledge", "scheme")
"""Starts of the parameters that decide on how the student is taught."""

MAX_PARAMETERS = 9


@dataclass(frozen=True)
class Gain:
    """Improvement over the same student without a teacher; positive is better.

    Attributes:
        mean: the improvement.
        low, high: its 95% interval; NaN if there is none.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan


def gain_slices(
    trials: Sequence[FrozenTrial], names: Sequence[str], summary: SearchSummary
) -> Iterator[Picture]:
    """Yield the gains against each parameter of losses and schemes, in a grid.

    Args:
        trials: Optuna's trials.
        names: parameters with several values.
        summary: figures of the search.
    """
    chosen = [name for name in names if name.startswith(TEACHING)][:MAX_PARAMETERS]
    by_group = {
        "trial, validation data": trial_gains(summary.result),
        "finalist, test data over new seeds": finalist_gains(summary),
    }
    if not chosen or not any(by_group.values()):
        return
    grid = ParameterGrid(trials, chosen)
    form = ".2%" if facts_of(summary.result.lead).is_share else ".3g"
    for (group, gains), color, symbol in zip(
        by_group.items(), (BLUE, ORANGE), ("circle", "diamond"), strict=True
    ):
        is_listed = False
        for name in chosen:
            row, column = grid.place(name)
            members = [t for t in trials if name in t.params and t.user_attrs[TRIAL_ID] in gains]
            values = [gains[trial.user_attrs[TRIAL_ID]] for trial in members]
            if not members:
                continue
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [_length(gain.high - gain.mean) for gain in values],
                "arrayminus": [_length(gain.mean - gain.low) for gain in values],
                "thickness": 1.5,
            }
            grid.figure.add_scatter(
                x=grid.coordinates(name, members),
                y=[gain.mean for gain in values],
                error_y=bars if any(bars["array"]) else None,
                mode="markers",
                name=group,
                legendgroup=group,
                showlegend=not is_listed,
                text=[trial.user_attrs[TRIAL_ID] for trial in members],
                hovertemplate=f"%{{text}}, %{{x}}: %{{y:+{form}}}<extra></extra>",
                marker={"color": color, "symbol": symbol, "size": 8},
                row=row,
                col=column,
            )
            is_listed = True
    grid.figure.update_yaxes(tickformat=f"+{form.replace('2', '1')}", zeroline=True)
    grid.figure.update_layout(margin={"t": 70}, legend={"y": 1 + 50 / grid.height})
    text = (
        f"Gain of each trial in {words(summary.result.val_metric)} over the mean of the trainings "
        "of the same network without a teacher, where there are any, and gain of each finalist in "
        f"{words(summary.result.test_metric)} with its 95% interval, against the parameters of "
        "losses and schemes. Values above zero are better than no teacher."
    )
    height = grid.height + 40
    yield Picture("gains", "Gain over no teacher", text, grid.figure, height, grid.min_width)


def trial_gains(result: StudyResult) -> dict[str, Gain]:
    """Return the gains of trials on validation data, by ID.

    The reference is the mean of the finished trainings of the same network without a teacher: the
    baselines of finalists, and trials whose scheme is `alone`.  Trials of other networks have no
    gain.
    """
    name = result.val_metric
    sign = 1.0 if facts_of(result.lead).direction == "max" else -1.0
    finished = [
        record
        for record in result.records.of("trial", "alone")
        if record.status == "finished" and math.isfinite(record.metrics.get(name, math.nan))
    ]
    alone: defaultdict[str, list[float]] = defaultdict(list)
    for record in finished:
        if _is_alone(record):
            alone[_network(record)].append(record.metrics[name])
    return {
        record.id: Gain(sign * (record.metrics[name] - fmean(alone[_network(record)])))
        for record in finished
        if not _is_alone(record) and _network(record) in alone
    }


def finalist_gains(summary: SearchSummary) -> Mapping[str, Gain]:
    """Return the gains of finalists on test data, paired by seed, by the ID of their trial."""
    return {
        finalist.trial.id: Gain(finalist.gain.mean, finalist.gain.low, finalist.gain.high)
        for finalist in summary.tested_finalists
        if finalist.gain is not None
    }


def _is_alone(record: Record) -> bool:
    return record.role == "alone" or scheme_name(record) == "alone"


def _network(record: Record) -> str:
    return json.dumps(record.job.study["student"], sort_keys=True, default=str)


def _length(value: float) -> float:
    return value if math.isfinite(value) else 0.0
