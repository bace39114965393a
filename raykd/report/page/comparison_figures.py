"""Figures of a comparison: arms, fronts, choices, importances, costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from raykd.report.comparison.arms import Arm, Metric
from raykd.report.comparison.choices import Association
from raykd.report.comparison.comparison import ArmGroup, Comparison
from raykd.report.comparison.differences import short_value
from raykd.report.comparison.fronts import Fronts
from raykd.report.comparison.importances import member_importances
from raykd.report.comparison.members import Member
from raykd.report.comparison.texts import mean_text
from raykd.report.format import short_parameter
from raykd.report.page.content import GRAY, PALETTE, Picture
from raykd.report.page.search_figures import ROLE_WORDS, axes_of, label_axes
from raykd.tuning.number_format import duration, words

MAX_BARS = 30
"""Maximum number of arms in a figure."""

MAX_CHOICES = 24
"""Maximum number of choices in a figure."""

NAMED = 620
"""Smallest width in pixels of a figure with long names at its left."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")


def arms_figure(group: ArmGroup, metric: Metric, number: int) -> Iterator[Picture]:
    """Yield the means of the best arms over several seeds, with their intervals."""
    arms = [arm for arm in group.arms if arm.mean.count > 1][:MAX_BARS]
    if not arms:
        return
    figure = go.Figure()
    names = [f"{arm.label} · {arm.member}" for arm in arms]
    members = list(dict.fromkeys(arm.member for arm in arms))
    for order, member in enumerate(members):
        rows = [(n, arm) for n, arm in zip(names, arms, strict=True) if arm.member == member]
        figure.add_scatter(
            x=[arm.mean.mean for _, arm in rows],
            y=[name for name, _ in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_distance(arm.mean.high, arm.mean.mean) for _, arm in rows],
                "arrayminus": [_distance(arm.mean.mean, arm.mean.low) for _, arm in rows],
                "thickness": 1.5,
                "color": PALETTE[order % len(PALETTE)],
            },
            mode="markers",
            name=member,
            text=[_arm_hover(arm, metric) for _, arm in rows],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "size": 10,
                "color": PALETTE[order % len(PALETTE)],
                "symbol": SYMBOLS[order % len(SYMBOLS)],
            },
        )
    if group.reference is not None:
        line = {"color": GRAY, "dash": "dot", "width": 1}
        figure.add_vline(x=group.reference.mean.mean, line=line)
    figure.update_xaxes(title=words(metric.name), tickformat=".1%" if metric.is_accuracy else None)
    figure.update_yaxes(
        type="category", autorange="reversed", categoryorder="array", categoryarray=names
    )
    text = "Mean over seeds with its 95% interval; the dotted line is the reference."
    id = f"arms-figure-{number}" if number else "arms-figure"
    yield Picture(id, "Arms over several seeds", text, figure, 150 + 30 * len(arms), NAMED)


def _arm_hover(arm: Arm, metric: Metric) -> str:
    lines = [f"<b>{arm.label}</b>", arm.member, arm.kind, mean_text(metric, arm.mean)]
    return "<br>".join(lines)


def _distance(high: float, low: float) -> float:
    return 0.0 if math.isnan(high - low) else high - low


def fronts_figure(fronts: Fronts, number: int) -> Iterator[Picture]:
    """Yield the trials and fronts of all members in the plane of two objectives."""
    y, x = axes_of(fronts.objectives)
    figure = go.Figure()
    for order, front in enumerate(fronts.members):
        color, symbol = PALETTE[order % len(PALETTE)], SYMBOLS[order % len(SYMBOLS)]
        trials = [trial for trial in front.trials if x in trial.metrics and y in trial.metrics]
        figure.add_scatter(
            x=[trial.metrics[x] for trial in trials],
            y=[trial.metrics[y] for trial in trials],
            mode="markers",
            name=front.member,
            legendgroup=front.member,
            text=[f"<b>{trial.name}</b><br>{front.member}" for trial in trials],
            hovertemplate="%{text}<br>%{y:.4g}, %{x:.4g}<extra></extra>",
            marker={"color": color, "symbol": symbol, "size": 6, "opacity": 0.55},
        )
        best = sorted(front.front, key=lambda trial: trial.metrics.get(x, 0.0))
        if len(fronts.objectives) > 1 and best:
            figure.add_scatter(
                x=[trial.metrics[x] for trial in best],
                y=[trial.metrics[y] for trial in best],
                mode="lines+markers",
                name=f"front of {front.member}",
                legendgroup=front.member,
                hoverinfo="skip",
                line={"color": color, "shape": "hv", "width": 2},
                marker={"color": color, "symbol": symbol, "size": 10},
            )
    label_axes(figure, x, y)
    text = f"{words(y).capitalize()} against {words(x)} of the complete trials; lines are fronts."
    yield Picture(f"fronts-{number}" if number else "fronts", "Fronts overlaid", text, figure, 460)


def choices_figure(associations: Sequence[Association], metric: Metric) -> Iterator[Picture]:
    """Yield the difference of each choice to the mean of its study."""
    rows = [
        (f"{short_parameter(each.name)} = {short_value(choice.value)}", choice.difference)
        for each in associations
        for choice in each.choices
        if len(each.choices) > 1
    ][:MAX_CHOICES]
    if not rows:
        return
    scale = 100 if metric.is_accuracy else 1
    figure = go.Figure(
        go.Scatter(
            x=[scale * each.mean for _, each in rows],
            y=[name for name, _ in rows],
            error_x={
                "array": [scale * _distance(each.high, each.mean) for _, each in rows],
                "thickness": 1.5,
                "color": GRAY,
            },
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            text=[f"n={each.count}" for _, each in rows],
            hovertemplate="%{y}: %{x:+.3g} (%{text})<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": GRAY, "dash": "dot", "width": 1})
    unit = " (points)" if metric.is_accuracy else ""
    figure.update_xaxes(title=f"{words(metric.name)} minus the mean of the study{unit}")
    figure.update_yaxes(type="category", autorange="reversed")
    text = "Mean difference of the trials with each choice, with its 95% interval."
    yield Picture("choices-figure", "Choices", text, figure, 150 + 26 * len(rows), NAMED)


def importances_figure(comparison: Comparison) -> Iterator[Picture]:
    """Yield the importances of the parameters in each member, side by side."""
    from raykd.report.page.parameters import importance_bars  # imports Optuna

    metric = comparison.search_metric
    computed = {m.name: member_importances(m, metric.name) for m in comparison.members}
    computed = {name: values for name, values in computed.items() if values}
    if not computed:
        return
    names = list(dict.fromkeys(name for values in computed.values() for name in values))
    names.sort(key=lambda name: -max(values.get(name, 0.0) for values in computed.values()))
    names = names[:15]
    figure = importance_bars(computed, names, metric.name)
    text = (
        "Share of the variance that each value explains among the trials of a study (fANOVA, by "
        "Optuna). Values that only some trials have are left out."
    )
    height = min(900, 160 + 18 * len(names) * (1 + len(computed)))
    yield Picture("importances", "Importances side by side", text, figure, height)


def costs_figure(comparison: Comparison) -> Iterator[Picture]:
    """Yield the training time of each member by role."""
    members: list[Member] = [member for member in comparison.members if member.seconds]
    if not members:
        return
    figure = go.Figure()
    roles = dict.fromkeys(role for member in members for role in member.seconds)
    for order, role in enumerate(roles):
        seconds = [member.seconds.get(role, 0.0) for member in members]
        figure.add_bar(
            x=[each / 60 for each in seconds],
            y=[member.name for member in members],
            name=ROLE_WORDS.get(role, f"{role}s"),
            orientation="h",
            marker={"color": PALETTE[order % len(PALETTE)]},
            text=[duration(each) for each in seconds],
            hovertemplate="%{y}, %{fullData.name}: %{text}<extra></extra>",
            textposition="none",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="training time (minutes)")
    figure.update_yaxes(autorange="reversed", type="category")
    text = "Training time of teachers, trials, finalists and baselines, all slots together."
    yield Picture("time", "Training time", text, figure, 150 + 44 * len(members), NAMED)
