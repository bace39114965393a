"""Page of a layer study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from raykd.layer_study.plan import format_pairs
from raykd.layer_study.predictors import CKA_TIMES
from raykd.layer_study.result import Cell, LayerStudyResult, gain_heading, unit_text
from raykd.layer_study.significance import Contrast
from raykd.report.page.content import (
    BLUE,
    GRAY,
    Block,
    Cells,
    Commands,
    Page,
    Picture,
    Section,
    color_bar,
)
from raykd.report.page.search_figures import time_by_role
from raykd.report.summary.layer_study import LayerStudySummary
from raykd.tracking.events import Event
from raykd.tuning.number_format import (
    duration,
    interval,
    metric,
    points,
    scale_of,
    scaled,
    titled,
    words,
)
from raykd.tuning.verdicts import inconclusive_reason

CKA_WORDS = {
    "start": "before training",
    "steps": "after a few steps without hint",
    "trained": "student trained without hint",
}


def layer_study_page(summary: LayerStudySummary, history: Sequence[Event]) -> Page:
    """Return the page of a layer study.

    Args:
        summary: figures of the study.
        history: events of its journal.
    """
    result = summary.result
    arms = len(result.plan.trained_arms)
    seeds = len(result.plan.seeds)
    subtitle = (
        f"Layer study, {summary.status}: {arms} arms with {seeds} seeds each in "
        f"{duration(summary.seconds)}; loss {result.plan.loss['name']}, weight "
        f"{result.plan.weight:g}{summary.extension_text}"
    )
    sections = [
        Section(
            "gains",
            "Gain of each pair",
            f"{titled(result.val_metric)} with the pair minus without hint, same seeds"
            f"{unit_text(result)}. Faded cells are not significant at 5% (Holm correction over all "
            "arms).",
            [*_heatmap(result), *_arms_figure(summary)],
        ),
        Section("arms", "All arms", "", [_table(result)]),
        Section(
            "predictors",
            "Cheap predictors",
            "Kendall's rank correlation of each predictor with the gains: would it have found the "
            "good pairs without training them?",
            [*_predictors(summary), *_cka(result)],
        ),
        Section("cost", "Time", "", list(time_by_role(history, summary.seconds))),
        Section(
            "commands",
            "Reproduce and continue",
            "",
            [Commands([(command.purpose, command.text) for command in summary.commands])],
        ),
    ]
    return Page(
        title=result.name,
        subtitle=subtitle,
        answer=list(_answer(summary)),
        warnings=[f"Failed: {cause.reason}" for cause in summary.causes],
        facts=list(_facts(summary)),
        sections=[section for section in sections if section.blocks],
    )


def _answer(summary: LayerStudySummary) -> Iterator[str]:
    best = summary.result.best
    if best is None:
        yield "Not every set of pairs has been trained with every seed yet."
        return
    names = _pairs(best.arm.pairs)
    if best.contrast is not None and best.contrast.gain.mean <= 0:
        yield f"No pairs are better than no hint; the best of them are {names}."
    else:
        yield f"The best pairs are {names}."
    if best.gain is not None:
        unit = " points" if best.gain.is_share else ""
        yield (
            f"On test data, with new seeds, they reach {interval(best.test_accuracy)} against "
            f"{interval(best.baseline_accuracy)} without hint: {points(best.gain)}{unit}, "
            f"{inconclusive_reason(best.gain) or _direction(best.gain.mean)}."
        )
    if best.contrast is not None:
        yield (
            f"On validation data they gain {points(best.contrast.gain)}"
            f"{' points' if best.contrast.gain.is_share else ''}; as the best of many arms, this "
            "figure is biased upward."
        )
    significant = [c for c in summary.result.cells if c.contrast and c.contrast.is_significant]
    better = sum(1 for c in significant if c.contrast and c.contrast.gain.mean > 0)
    trained = sum(1 for c in summary.result.cells if c.contrast)
    yield (
        f"Of {trained} single pairs, {better} are better than no hint and "
        f"{len(significant) - better} are worse; the others do not differ significantly from it."
    )


def _facts(summary: LayerStudySummary) -> Iterator[tuple[str, str, str]]:
    best = summary.result.best
    if best is not None and best.gain is not None:
        unit = "percentage points, " if best.gain.is_share else ""
        yield "gain on test data", points(best.gain), f"{unit}new seeds"
    name = summary.result.val_metric
    yield "without hint", metric(name, summary.baseline_accuracy), words(name)
    for teacher in summary.teachers[:1]:
        yield (
            "teacher",
            metric(f"val_{teacher.lead}", teacher.val_value),
            f"{teacher.name}, validation",
        )
    noise = summary.result.noise.deviation
    if not math.isnan(noise):
        is_share = bool(unit_text(summary.result))
        value = f"{100 * noise:.2f}" if is_share else f"{noise:.3g}"
        unit = "points, " if is_share else ""
        yield "noise", value, f"{unit}standard deviation of one training"


def _heatmap(result: LayerStudyResult) -> Iterator[Picture]:
    cells = [cell for cell in result.cells if cell.contrast is not None]
    if not cells:
        return
    hints = [layer.name for layer in result.plan.layers.hints]
    guided = [layer.name for layer in result.plan.layers.guided]
    by_place = {(cell.hint, cell.guided): cell for cell in result.cells}
    rows = [[by_place.get((hint, layer)) for layer in guided] for hint in hints]
    strongest = max(
        scale_of(cell.contrast.gain) * abs(cell.contrast.gain.mean)
        for cell in cells
        if cell.contrast
    )
    figure = go.Figure(
        go.Heatmap(
            z=[[_gain(cell) for cell in row] for row in rows],
            x=guided,
            y=hints,
            text=[[_cell_text(cell) for cell in row] for row in rows],
            customdata=[[_cell_hover(cell) for cell in row] for row in rows],
            texttemplate="%{text}",
            hovertemplate="hint %{y}, guided %{x}<br>%{customdata}<extra></extra>",
            colorscale="RdBu",
            zmin=-strongest,
            zmax=strongest,
            colorbar=color_bar(gain_heading(result)),
        )
    )
    for row, hint in enumerate(hints):
        for column, layer in enumerate(guided):
            cell = by_place.get((hint, layer))
            if cell is None or cell.contrast is None or not cell.contrast.is_significant:
                figure.add_shape(
                    type="rect",
                    x0=column - 0.5,
                    x1=column + 0.5,
                    y0=row - 0.5,
                    y1=row + 0.5,
                    line={"width": 0},
                    fillcolor="rgba(128,128,128,0.35)",
                )
    figure.update_xaxes(title="guided layer (student)", type="category")
    figure.update_yaxes(title="hint layer (teacher)", type="category", autorange="reversed")
    text = "Blue is better than no hint, red is worse; gray cells are not significant."
    height, width = 140 + 64 * len(hints), 140 + 60 * len(guided)
    yield Picture("gains-map", "Gain over no hint", text, figure, height, width)


def _gain(cell: Cell | None) -> float | None:
    if cell is None or cell.contrast is None:
        return None
    return scale_of(cell.contrast.gain) * cell.contrast.gain.mean


def _cell_text(cell: Cell | None) -> str:
    if cell is None or cell.contrast is None:
        return ""
    mark = "*" if cell.contrast.is_significant else ""
    return scaled(cell.contrast.gain, cell.contrast.gain.mean, "+") + mark


def _cell_hover(cell: Cell | None) -> str:
    if cell is None or cell.contrast is None:
        return "" if cell is None else cell.skip_reason
    return f"{points(cell.contrast.gain)}, p = {_p(cell.contrast.p_holm)} (Holm)"


def _arms_figure(summary: LayerStudySummary) -> Iterator[Picture]:
    arms = [(arm.name, arm.contrast) for arm in summary.other_arms if arm.contrast is not None]
    if not arms:
        return
    arms.sort(key=lambda arm: arm[1].gain.mean)
    figure = go.Figure(
        go.Scatter(
            x=[scale_of(contrast.gain) * contrast.gain.mean for _, contrast in arms],
            y=[name for name, _ in arms],
            error_x={
                "array": [_half_width(contrast) for _, contrast in arms],
                "thickness": 1.5,
                "color": GRAY,
            },
            mode="markers",
            marker={
                "size": 10,
                "color": [BLUE if contrast.is_significant else GRAY for _, contrast in arms],
            },
            text=[points(contrast.gain) for _, contrast in arms],
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": GRAY, "dash": "dot"})
    figure.update_xaxes(title=f"gain over no hint{unit_text(summary.result)}")
    figure.update_yaxes(type="category")
    text = (
        "Sets of pairs and reference arms, with the uncorrected 95% interval; gray points are not "
        "significant."
    )
    yield Picture("arms-gain", "Other arms", text, figure, 140 + 34 * len(arms))


def _half_width(contrast: Contrast) -> float:
    width = contrast.gain.half_width
    return 0.0 if math.isnan(width) else scale_of(contrast.gain) * width


def _table(result: LayerStudyResult) -> Cells:
    rows, numbers, name = [], [], result.val_metric
    for arm in result.plan.arms:
        accuracies = result.accuracies.get(arm.id)
        mean = math.fsum(accuracies.values()) / len(accuracies) if accuracies else None
        contrast = result.contrasts.get(arm.id)
        gain = points(contrast.gain) if contrast is not None else ""
        p = _p(contrast.p_holm) if contrast is not None else ""
        verdict = "" if contrast is None else _verdict(contrast)
        if arm.skip_reason:
            verdict = arm.skip_reason
        rows.append((arm.id, arm.kind, _pairs(arm.pairs), metric(name, mean), gain, p, verdict))
        gain_key = contrast.gain.mean if contrast is not None else -math.inf
        p_key = contrast.p_holm if contrast is not None else math.inf
        numbers.append(
            (*rows[-1][:3], -math.inf if mean is None else mean, gain_key, p_key, verdict)
        )
    gain_column = gain_heading(result)
    headings = ("arm", "kind", "pairs", words(name), gain_column, "p (Holm)", "verdict")
    title = f"{len(rows)} arms"
    return Cells("arms-table", title, headings, rows, numbers, searchable=True)


def _verdict(contrast: Contrast) -> str:
    if not contrast.is_significant:
        return "not significant"
    return _direction(contrast.gain.mean)


def _direction(gain: float) -> str:
    return "better than no hint" if gain > 0 else "worse than no hint"


def _pairs(pairs: Sequence[Sequence[object]]) -> str:
    """Return the pairs of an arm; those of the first seed if they differ by seed."""
    if not pairs:
        return ""
    text = format_pairs(pairs[0])  # type: ignore[arg-type]
    return f"{text} (differ by seed)" if len(pairs) > 1 else text


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _predictors(summary: LayerStudySummary) -> Iterator[Block]:
    if not summary.predictors:
        return
    predictors = list(reversed(summary.predictors))
    figure = go.Figure(
        go.Scatter(
            x=[predictor.correlation.tau for predictor in predictors],
            y=[predictor.description for predictor in predictors],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_distance(p.correlation.high, p.correlation.tau) for p in predictors],
                "arrayminus": [_distance(p.correlation.tau, p.correlation.low) for p in predictors],
                "thickness": 1.5,
                "color": GRAY,
            },
            mode="markers",
            marker={"size": 10, "color": [BLUE if p.is_significant else GRAY for p in predictors]},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": GRAY, "dash": "dot"})
    figure.update_xaxes(title="rank correlation with the gain (Kendall's tau)", range=[-1.05, 1.05])
    figure.update_yaxes(type="category")
    text = "Rank correlation with its 95% interval; gray points do not differ significantly from 0."
    yield Picture("predictors-tau", "Predictors", text, figure, 140 + 40 * len(predictors))


def _distance(high: float, low: float) -> float:
    return 0.0 if math.isnan(high) or math.isnan(low) else high - low


def _cka(result: LayerStudyResult) -> Iterator[Picture]:
    layers = result.plan.layers
    for time in CKA_TIMES:
        matrix = result.predictors.cka_map(time)
        if matrix is None:
            continue
        hints = [layer.name for layer in layers.cka_hints]
        guided = [layer.name for layer in layers.cka_guided]
        figure = go.Figure(
            go.Heatmap(
                z=matrix.tolist(),
                x=guided,
                y=hints,
                zmin=0,
                zmax=1,
                colorscale="Cividis",
                texttemplate="%{z:.2f}" if matrix.size <= 200 else None,
                hovertemplate="hint %{y}, guided %{x}: %{z:.3f}<extra></extra>",
                colorbar=color_bar("CKA"),
            )
        )
        figure.update_xaxes(title="layer of the student", type="category")
        figure.update_yaxes(title="layer of the teacher", type="category", autorange="reversed")
        text = f"Linear CKA of teacher and student layers, {CKA_WORDS[time]}; mean over seeds."
        height = 160 + max(28 * len(hints), 160)
        yield Picture(f"cka-{time}", f"CKA, {CKA_WORDS[time]}", text, figure, height)
