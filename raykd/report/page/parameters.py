"""Figures of the drawn values: importances, slices, parallel coordinates (Optuna's)."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raykd.report.format import short_parameter
from raykd.report.page.content import GRAY, PALETTE, Block, Picture, color_bar
from raykd.report.page.gain_slices import gain_slices
from raykd.report.page.parameter_grid import TRIAL_ID, ParameterGrid
from raykd.report.page.search_figures import axis_format, tick_format
from raykd.report.summary.search import SearchSummary
from raykd.tuning.number_format import words

T = TypeVar("T")

MIN_TRIALS = 8
"""Minimum number of trials for an importance."""

MAX_BRANCHES = 5
NONE = -1.0
"""Place of trials without a value on an axis of texts."""

MAX_PARAMETERS = 9
AXIS_WIDTH = 90
"""Smallest number of pixels between two parallel axes, which leaves room for their numbers."""
OPTION_ENDS = (".loss", "scheme", ".model", ".block")
"""Ends of parameters that choose an option with its own parameters."""

MAX_TRIALS = 300
"""Maximum number of trials for importances: the time of fANOVA grows with their square."""

EARLY_TO_LATE = [[0, "#a6cdf0"], [1, "#1f6fd0"]]
"""Colors of trials by their number; all of them stand out on white and on the dark theme."""

MAX_DRAWN = 400
"""Maximum number of trials in a figure of parameters: more hide one another, and draw slowly."""

Names = Sequence[str]


def parameter_blocks(summary: SearchSummary) -> list[Block]:
    """Return the figures of the parameters; empty if nothing was drawn or Optuna's log is gone."""
    trials = _trials(summary)
    if len(trials) < 2:
        return []
    objective = _metric_of(summary)
    names = _by_use(trials)
    drawn = thinned(trials, MAX_DRAWN)
    note = f" {len(drawn)} of {len(trials)} trials are drawn, chosen at random."
    blocks: list[Block] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for picture in (
            _importances(trials, objective),
            _slices(drawn, names, objective),
            gain_slices(trials, names, summary),
            _coordinates(drawn, names, objective),
        ):
            blocks += list(picture)
    if len(drawn) < len(trials):
        blocks = [
            replace(block, text=block.text + note)
            if isinstance(block, Picture) and block.id in ("slices", "coordinates")
            else block
            for block in blocks
        ]
    return blocks


def _metric_of(summary: SearchSummary) -> str:
    """Return the metric on the vertical axis: the first objective that training changes."""
    names = [name for name in summary.result.objectives if name.startswith("val_")]
    return names[0] if names else summary.result.val_metric


def _trials(summary: SearchSummary) -> list[FrozenTrial]:
    """Return Optuna's trials, each with the last value of the objective."""
    file = summary.result.folder / "optuna.log"
    if not file.is_file():
        return []
    optuna.logging.disable_default_handler()
    try:
        backend = JournalFileBackend(str(file))
        storage = optuna.storages.JournalStorage(backend)
        [stored, *_] = optuna.get_all_study_summaries(storage)
        study = optuna.load_study(study_name=stored.study_name, storage=storage)
    except (ValueError, KeyError, OSError):
        return []
    name = _metric_of(summary)
    records = {record.id: record for record in summary.result.records.of("trial")}
    trials = []
    for trial in study.trials:
        record = records.get(str(trial.user_attrs.get(TRIAL_ID)))
        value = record.metrics.get(name) if record is not None else None
        if record is not None and value is not None and trial.params:
            trials.append(
                optuna.create_trial(
                    state=TrialState.COMPLETE,
                    value=value,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={TRIAL_ID: record.id},
                )
            )
    return trials


def _by_use(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the parameters with more than one value, the most used first."""
    counts = Counter(name for trial in trials for name in trial.params)
    values = {name: {str(t.params[name]) for t in trials if name in t.params} for name in counts}
    return [name for name, _ in counts.most_common() if len(values[name]) > 1]


# Importances


def _importances(trials: Sequence[FrozenTrial], objective: str) -> Iterator[Picture]:
    branches = [("all trials", list(trials)), *_branches(trials)]
    computed = {name: importance(members) for name, members in branches}
    computed = {name: values for name, values in computed.items() if values}
    if not computed:
        return
    names = list(dict.fromkeys(name for values in computed.values() for name in values))
    figure = importance_bars(computed, names, objective)
    text = (
        "Share of the variance of the metric that each parameter explains (fANOVA, by Optuna). "
        "Parameters that only some trials have are compared within the branch that has them."
    )
    if len(trials) > MAX_TRIALS:
        text += f" At most {MAX_TRIALS} trials of each group are used, drawn at random."
    height = 160 + 26 * len(names) * max(1, len(computed)) // 2
    yield Picture("importances", "Importances", text, figure, min(900, max(300, height)))


def importance_bars(
    computed: Mapping[str, Mapping[str, float]], names: Names, metric: str
) -> go.Figure:
    """Draw importances as horizontal bars, a color for each group of trials.

    Args:
        computed: importances by parameter, by the name of the group.
        names: parameters to show, from the top.
        metric: that the importances explain.
    """
    figure = go.Figure()
    for number, (group, values) in enumerate(computed.items()):
        figure.add_bar(
            y=[short_parameter(name) for name in names],
            x=[values.get(name) for name in names],
            name=group,
            orientation="h",
            marker={"color": PALETTE[number % len(PALETTE)]},
            hovertemplate="%{y}, " + group + ": %{x:.0%}<extra></extra>",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title=f"importance for {words(metric)}", tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return figure


def _branches(trials: Sequence[FrozenTrial]) -> Iterator[tuple[str, list[FrozenTrial]]]:
    """Yield the largest branches of the space: trials with the same value of a choice."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if isinstance(distribution, CategoricalDistribution) and name.endswith(OPTION_ENDS):
                label = f"{short_parameter(name)} = {trial.params[name]}"
                groups.setdefault(label, []).append(trial)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    yield from ((name, members) for name, members in largest[:MAX_BRANCHES])


def thinned(trials: Sequence[T], limit: int = MAX_TRIALS) -> Sequence[T]:
    """Return at most `limit` of the trials in their order, drawn at random and always the same."""
    if len(trials) <= limit:
        return trials
    return [trials[i] for i in sorted(random.Random(0).sample(range(len(trials)), limit))]


def importance(trials: Sequence[FrozenTrial]) -> Mapping[str, float]:
    """Return the importance of the parameters that all these trials have."""
    trials = thinned(trials)
    if len(trials) < MIN_TRIALS:
        return {}
    common = set.intersection(*(set(trial.params) for trial in trials))
    varied = [
        name
        for name in trials[0].params
        if name in common and len({str(trial.params[name]) for trial in trials}) > 1
    ]
    values = {trial.value for trial in trials}
    if not varied or len(values) < 2:
        return {}
    study = optuna.create_study()
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)


# Slices and parallel coordinates


def _slices(trials: Sequence[FrozenTrial], names: Names, objective: str) -> Iterator[Picture]:
    """Yield the objective against each parameter, in a grid."""
    chosen = list(names[:MAX_PARAMETERS])
    if not chosen:
        return
    grid = ParameterGrid(trials, chosen)
    figure = grid.figure
    for name in chosen:
        members = [(number, trial) for number, trial in enumerate(trials) if name in trial.params]
        row, column = grid.place(name)
        figure.add_scatter(
            x=grid.coordinates(name, [trial for _, trial in members]),
            y=[trial.value for _, trial in members],
            mode="markers",
            showlegend=False,
            marker={
                "color": [number for number, _ in members],
                "colorscale": EARLY_TO_LATE,
                "cmin": 0,
                "cmax": len(trials),
                "line": {"width": 0.7, "color": GRAY},
                "size": 7,
            },
            hovertemplate=f"%{{x}}: %{{y:{tick_format(objective)}}}<extra></extra>",
            row=row,
            col=column,
        )
    figure.update_yaxes(tickformat=axis_format(objective))
    text = (
        f"{words(objective).capitalize()} against each parameter; darker points are later trials."
    )
    yield Picture("slices", "Slices", text, figure, grid.height, grid.min_width)


def _coordinates(trials: Sequence[FrozenTrial], names: Names, objective: str) -> Iterator[Picture]:
    """Yield parallel coordinates; a missing value is shown at the bottom of its axis."""
    chosen = list(names[:MAX_PARAMETERS])
    if len(chosen) < 2:
        return
    values, form = [trial.value or 0.0 for trial in trials], axis_format(objective)
    dimensions = [_axis(trials, name) for name in chosen]
    dimensions.append({"label": words(objective), "values": values, "tickformat": form})
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={
                "color": values,
                "colorscale": "Viridis",
                "showscale": True,
                "colorbar": color_bar(words(objective), form),
            },
            labelangle=-20,
            labelfont={"size": 11},
        )
    )
    figure.update_layout(margin={"t": 110, "l": 60, "r": 40, "b": 30})
    text = "Each line is a trial. Drag along an axis to keep only the trials that pass there."
    width = AXIS_WIDTH * len(dimensions) + 100
    yield Picture("coordinates", "Parallel coordinates", text, figure, 460, width)


def _axis(trials: Sequence[FrozenTrial], name: str) -> dict[str, object]:
    """Return an axis of the parallel coordinates: numbers, or texts as numbered ticks.

    Trials without the parameter pass below the smallest value.
    """
    label = short_parameter(name)
    drawn = [trial.params.get(name) for trial in trials]
    present = [value for value in drawn if value is not None]
    distribution = next(t.distributions[name] for t in trials if name in t.distributions)
    if isinstance(distribution, CategoricalDistribution):
        texts = sorted({str(value) for value in present}, reverse=True)
        values = [NONE if value is None else texts.index(str(value)) for value in drawn]
        ticks: dict[float, str] = dict(enumerate(texts))
    else:
        is_log = getattr(distribution, "log", False)
        scaled = [None if v is None else math.log10(v) if is_log else float(v) for v in drawn]
        numbers = [value for value in scaled if value is not None]
        low, high = min(numbers), max(numbers)
        step = (high - low) / 4 or 1.0
        bottom = low - step
        values = [bottom if value is None else value for value in scaled]
        points = [low + step * number for number in range(5)] if high > low else [low]
        if isinstance(distribution, IntDistribution) and not is_log:
            points = [p for p in points if p == round(p)]
        ticks = {point: f"{10**point if is_log else point:.3g}" for point in points}
        if None in drawn:
            ticks[bottom] = "(none)"
        return {"label": label, "values": values, **_ticks(ticks)}
    if None in drawn:
        ticks[NONE] = "(none)"
    return {"label": label, "values": values, **_ticks(ticks)}


def _ticks(ticks: Mapping[float, str]) -> dict[str, list[float] | list[str]]:
    return {"tickvals": list(ticks), "ticktext": list(ticks.values())}
