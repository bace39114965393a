"""Figures of a search: front, accuracy against cost, learning curves, loss terms, time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raykd.metrics import facts_of, lead_metric
from raykd.report.page.content import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PALETTE,
    RED,
    SKY,
    Picture,
    color_bar,
)
from raykd.report.summary.search import SearchSummary
from raykd.study.objectives import COSTS
from raykd.tracking.events import Event, RunEnded, RunStarted
from raykd.tuning.number_format import compact, duration, metric, titled, words
from raykd.tuning.records import Record, cost, learns_from, pairs_name, scheme_name, student_name

STATUS_COLORS = {"finished": BLUE, "stopped": GRAY, "failed": RED, "running": SKY, "paused": GRAY}
STATUS_SYMBOLS = {
    "finished": "circle",
    "stopped": "x-thin-open",
    "failed": "triangle-down",
    "paused": "circle-open",
}
EARLY = ("stopped", "paused")
"""Statuses of trials that the scheduler ended early, or that wait for their promotion."""
STATUS_WORDS = {"finished": "completed", "stopped": "stopped early"}
ROLE_WORDS = {
    "teacher": "teachers",
    "trial": "trials",
    "replicate": "finalists, new seeds",
    "alone": "baselines without teacher",
}

MAX_MARKERS = 2000
"""Maximum number of markers on learning curves; a browser needs seconds for more."""


def front_figure(summary: SearchSummary) -> Picture:
    """Return all trials in the plane of two objectives, with the front."""
    result = summary.result
    y, x = axes_of(result.objectives, result.val_metric)
    figure = go.Figure()
    by_status: defaultdict[str, list[Record]] = defaultdict(list)
    for record in result.records.of("trial"):
        if _is_finite(cost(record, x)) and _is_finite(cost(record, y)):
            by_status[record.status].append(record)
    for status, records in by_status.items():
        figure.add_scatter(
            x=[cost(record, x) for record in records],
            y=[cost(record, y) for record in records],
            mode="markers",
            name=STATUS_WORDS.get(status, status),
            text=[hover_text(record) for record in records],
            hovertemplate="%{text}<extra></extra>",
            marker={
                "color": STATUS_COLORS.get(status, GRAY),
                "symbol": STATUS_SYMBOLS.get(status, "circle"),
                "size": 8,
                "line": {"width": 1.5, "color": STATUS_COLORS.get(status, GRAY)},
            },
        )
    front = sorted(result.pareto, key=lambda record: cost(record, x) or 0)
    if len(result.objectives) > 1 and front:
        figure.add_scatter(
            x=[cost(record, x) for record in front],
            y=[cost(record, y) for record in front],
            mode="lines+markers",
            name="front",
            text=[hover_text(record) for record in front],
            hovertemplate="%{text}<extra></extra>",
            line={"color": ORANGE, "shape": "hv", "width": 1.5},
            marker={"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": ORANGE, "width": 2}},
        )
    _add_null_arms(figure, result.records.of("alone"), x, y)
    label_axes(figure, x, y)
    text = (
        f"{words(y).capitalize()} against {words(x)}; hover over a point to see its trial. "
        "Triangles are the finalists' students trained without a teacher."
    )
    return Picture("front", "Trials and Pareto front", text, figure, 460)


def _add_null_arms(figure: go.Figure, baselines: Sequence[Record], x: str, y: str) -> None:
    points = [r for r in baselines if _is_finite(cost(r, x)) and _is_finite(cost(r, y))]
    if points:
        figure.add_scatter(
            x=[cost(record, x) for record in points],
            y=[cost(record, y) for record in points],
            mode="markers",
            name="without teacher",
            text=[f"{record.id}<br>{student_name(record)}" for record in points],
            hovertemplate="%{text}<extra></extra>",
            marker={"color": GREEN, "symbol": "triangle-up-open", "size": 9},
        )


def accuracy_against_cost(summary: SearchSummary) -> Picture:
    """Return teachers, assistants and finalists in the plane of test metric and parameters."""
    name_of, form = summary.result.test_metric, tick_format(summary.result.lead)
    figure = go.Figure()
    for name, color, key in (("distilled", BLUE, 0), ("without teacher", GREEN, 1)):
        rows = [
            (finalist.trial, (finalist.distilled, finalist.alone)[key])
            for finalist in summary.tested_finalists
        ]
        rows = [(trial, estimate) for trial, estimate in rows if estimate is not None]
        if rows:
            figure.add_scatter(
                x=[cost(trial, "params") for trial, _ in rows],
                y=[estimate.mean for _, estimate in rows if estimate],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [_above(estimate) for _, estimate in rows],
                    "arrayminus": [_below(estimate) for _, estimate in rows],
                    "thickness": 1.5,
                },
                mode="markers",
                name=name,
                text=[f"{trial.id}<br>{student_name(trial)}" for trial, _ in rows],
                hovertemplate=f"%{{text}}<br>%{{y:{form}}}<extra></extra>",
                marker={"color": color, "size": 10, "symbol": ("circle", "triangle-up")[key]},
            )
    for name, color, teachers in (
        ("teacher", ORANGE, summary.teachers),
        ("assistant", PALETTE[3], summary.assistants),
    ):
        tested = [each for each in teachers if each.test_value is not None]
        params = [each.training.metrics.get("params") for each in tested]
        if tested and any(params):
            figure.add_scatter(
                x=params,
                y=[each.test_value for each in tested],
                mode="markers",
                name=name,
                text=[each.name for each in tested],
                hovertemplate=f"%{{text}}<br>%{{y:{form}}}<extra></extra>",
                marker={"color": color, "size": 12, "symbol": "diamond"},
            )
        elif tested:
            for each in tested:
                figure.add_hline(
                    y=each.test_value,
                    line={"color": color, "dash": "dot"},
                    annotation={"text": f"{name} {each.name}", "font": {"color": color}},
                )
    label_axes(figure, "params", name_of)
    text = (
        f"{titled(name_of)} against parameters: the finalists with and without their teacher, mean "
        "over seeds with 95% intervals, and the teacher."
    )
    return Picture("accuracy-cost", f"{titled(summary.result.lead)} and size", text, figure, 380)


def learning_curves(summary: SearchSummary) -> Iterator[Picture]:
    """Yield the validation metric of every trial by epoch."""
    name_of, form = summary.result.val_metric, tick_format(summary.result.lead)
    trials = [r for r in summary.result.records.of("trial") if r.epochs]
    if not trials:
        return
    figure = go.Figure()
    best = {record.id for record in summary.result.pareto}
    groups = {
        "stopped early": (GRAY, [r for r in trials if r.status in EARLY]),
        "other": (SKY, [r for r in trials if r.status not in EARLY and r.id not in best]),
        "front": (ORANGE, [r for r in trials if r.id in best]),
    }
    mode = "lines+markers" if sum(len(r.epochs) for r in trials) <= MAX_MARKERS else "lines"
    for name, (color, records) in groups.items():
        xs: list[float | None] = []
        ys: list[float | None] = []
        labels: list[str] = []
        for record in records:
            values = [epoch.get(name_of) for epoch in record.epochs]
            xs += [*range(1, len(values) + 1), None]
            ys += [*values, None]
            labels += [record.id] * (len(values) + 1)
        if xs:
            figure.add_scatter(
                x=xs,
                y=ys,
                mode=mode,
                name=name,
                text=labels,
                hovertemplate=f"%{{text}}, epoch %{{x}}: %{{y:{form}}}<extra></extra>",
                line={"color": color, "width": 1.2},
                marker={"size": 3.5, "color": color},
            )
    label_axes(figure, "", name_of)
    figure.update_xaxes(title="epoch")
    text = (
        f"{titled(name_of)} after each epoch. Gray curves were stopped early or paused by the "
        "scheduler."
    )
    yield Picture("curves", "Learning curves", text, figure)


def loss_terms(summary: SearchSummary) -> Iterator[Picture]:
    """Yield the terms of the loss by epoch, for the trials of the front."""
    figure = go.Figure()
    for number, record in enumerate(summary.result.pareto[:4]):
        names = [name for name in record.epochs[-1] if name.startswith("term_")]
        for order, name in enumerate(sorted(names)):
            figure.add_scatter(
                x=list(range(1, len(record.epochs) + 1)),
                y=[epoch.get(name) for epoch in record.epochs],
                mode="lines",
                name=f"{record.id} {name.removeprefix('term_')}",
                line={
                    "color": PALETTE[number % len(PALETTE)],
                    "dash": ("solid", "dash", "dot", "dashdot")[order % 4],
                },
                hovertemplate="%{fullData.name}, epoch %{x}: %{y:.3g}<extra></extra>",
            )
    if not figure.data:
        return
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="loss term", type="log")
    text = (
        'Unweighted terms of the training loss, for the best trials of the front: "task" is '
        "the loss on the labels."
    )
    yield Picture("terms", "Loss terms", text, figure)


def pairs_heatmap(summary: SearchSummary) -> Iterator[Picture]:
    """Yield the mean validation metric of the trials with each pair of layers."""
    name_of, form = summary.result.val_metric, tick_format(summary.result.lead)
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for record in summary.result.records.of("trial"):
        value = record.metrics.get(name_of)
        if not _is_finite(value):
            continue
        for term in record.job.study.get("knowledge") or ():
            for pair in term.get("pairs") or ():
                values[str(pair["hint"]), str(pair["guided"])].append(float(value or 0))
    if len(values) < 2:
        return
    hints = sorted({hint for hint, _ in values})
    guided = sorted({layer for _, layer in values})
    means = [[_mean(values.get((hint, layer), ())) for layer in guided] for hint in hints]
    counts = [[len(values.get((hint, layer), ())) for layer in guided] for hint in hints]
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=guided,
            y=hints,
            text=[[f"n={count}" if count else "" for count in row] for row in counts],
            texttemplate="%{text}",
            hovertemplate=f"hint %{{y}}, guided %{{x}}: %{{z:{form}}}, %{{text}}<extra></extra>",
            colorscale="Viridis",
            colorbar=color_bar(words(name_of), form),
        )
    )
    figure.update_xaxes(title="guided layer (student)", type="category")
    figure.update_yaxes(title="hint layer (teacher)", type="category")
    text = (
        f"Mean {words(name_of)} of the trials with each pair; n trials. The sampler prefers good "
        "pairs, so the cells are not comparable like those of a layer study (raykd pairs)."
    )
    yield Picture("pairs", "Pairs that were drawn", text, figure, 360, 140 + 60 * len(guided))


def time_by_role(history: Sequence[Event], total_seconds: float) -> Iterator[Picture]:
    """Yield the training time of teachers, trials, replicates and baselines.

    Args:
        history: events of the journal.
        total_seconds: running time of the study.
    """
    seconds = training_seconds(history)
    if not seconds:
        return
    roles = [role for role in ROLE_WORDS if role in seconds]
    figure = go.Figure(
        go.Bar(
            x=[seconds[role] / 60 for role in roles],
            y=[ROLE_WORDS[role] for role in roles],
            orientation="h",
            marker={"color": [PALETTE[i] for i in range(len(roles))]},
            text=[duration(seconds[role]) for role in roles],
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title="minutes, all slots together")
    figure.update_yaxes(autorange="reversed")
    total = sum(seconds.values())
    text = (
        f"Trainings took {duration(total)} in all; the study lasted "
        f"{duration(total_seconds)}. The rest is starting, teacher outputs and waiting."
    )
    yield Picture("time", "Training time", text, figure, 260)


def training_seconds(history: Iterable[Event]) -> Mapping[str, float]:
    """Return the seconds of all trainings by role; a training that is cut off counts to its end."""
    started: dict[str, tuple[str, int]] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in history:
        if isinstance(event, RunStarted):
            started[event.id] = event.role, event.at
        elif isinstance(event, RunEnded) and event.id in started:
            role, at = started.pop(event.id)
            seconds[role] += (event.at - at) / 1000
    return dict(seconds)


def hover_text(record: Record) -> str:
    """Return the description of a trial for a hover box."""
    lines = [
        f"<b>{record.id}</b> ({STATUS_WORDS.get(record.status, record.status)})",
        student_name(record),
        f"{scheme_name(record)}: {learns_from(record)}",
        pairs_name(record),
    ]
    for name in (f"val_{lead_metric(record.job.study)}", "params", "macs"):
        value = cost(record, name)
        if value is not None:
            lines.append(f"{words(name)} {metric(name, value)}")
    return "<br>".join(filter(None, lines))


def axes_of(objectives: Mapping[str, str], val_metric: str = "val_accuracy") -> tuple[str, str]:
    """Return the objectives of the vertical and the horizontal axis."""
    names = list(objectives)
    first = names[0]
    second = names[1] if len(names) > 1 else ("params" if first != "params" else val_metric)
    if first in ("params", "macs", "memory") and second not in COSTS:
        return second, first
    return first, second


def tick_format(metric: str) -> str:
    """Return the format of the values of a metric on axes."""
    return ".2%" if facts_of(metric).is_share else ".4g"


def axis_format(metric: str) -> str:
    """Return the format of the numbers of a metric along an axis."""
    return ".1%" if facts_of(metric).is_share else ".4g"


def label_axes(figure: go.Figure, x: str, y: str) -> None:
    """Set titles, units and scales of the axes of two metrics."""
    for update, name in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        options: dict[str, Any] = {"title": words(name)}
        if facts_of(name).is_share:
            options["tickformat"] = axis_format(name)
        elif name in ("params", "macs", "memory"):
            options |= log_axis(_coordinates(figure, update == figure.update_xaxes))
        update(**options)


def log_axis(values: Iterable[float | None]) -> dict[str, Any]:
    """Return the options of a logarithmic axis with readable ticks: 1, 2, 5, 10, 20, ..."""
    positive = [value for value in values if value is not None and value > 0]
    if not positive:
        return {}
    low, high = math.log10(min(positive)), math.log10(max(positive))
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for step in steps
    ]
    margin = max(0.1, 0.05 * (high - low))
    visible = [tick for tick in ticks if low - margin <= math.log10(tick) <= high + margin]
    return {
        "type": "log",
        "range": [low - margin, high + margin],
        "tickvals": visible,
        "ticktext": [compact(tick) if tick >= 1 else f"{tick:g}" for tick in visible],
    }


def _coordinates(figure: go.Figure, horizontal: bool) -> list[float | None]:
    traces: Any = figure.data
    return [value for trace in traces for value in (trace.x if horizontal else trace.y) or ()]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _above(estimate: Any) -> float:
    return 0.0 if math.isnan(estimate.half_width) else estimate.high - estimate.mean


def _below(estimate: Any) -> float:
    return 0.0 if math.isnan(estimate.half_width) else estimate.mean - estimate.low
