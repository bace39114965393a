"""Figures of a layer study, drawn with matplotlib: gains, CKA, predictors."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from raykd.layer_study.plan import NONE, Arm, LayerInfo
from raykd.layer_study.predictors import PREDICTORS, CkaTime
from raykd.layer_study.result import Cell, LayerStudyResult, gain_heading, unit_text
from raykd.layer_study.significance import Contrast
from raykd.tuning.number_format import scale_of, words

GAINS = "RdBu"
"""Color map of gains: blue is better than no hint, red is worse; colorblind-safe."""

ALIKE = "cividis"
DPI = 150
HATCH = "///"


def draw_figures(result: LayerStudyResult) -> list[Path]:
    """Draw every figure that has data and save it in the study's folder."""
    pictures: dict[str, Callable[[LayerStudyResult], Figure | None]] = {
        "heatmap.png": heatmap,
        "cka.png": cka,
        "predictors.png": predictors,
    }
    drawn = []
    for name, make in pictures.items():
        figure = make(result)
        if figure is not None:
            path = result.folder / name
            figure.savefig(path, dpi=DPI, facecolor="white")
            drawn.append(path)
    return drawn


# Gains


def heatmap(result: LayerStudyResult) -> Figure | None:
    """Draw the gain over no hint of each pair and of the other arms, in percentage points.

    Return None if there are no results yet.
    """
    if not result.contrasts:
        return None
    hints, guided = result.plan.layers.hints, result.plan.layers.guided
    arms = _compared_arms(result)
    width = 2.6 + 1.25 * len(guided)
    figure = _figure(width + (4.6 if arms else 0), max(3.6, 1.9 + 0.8 * len(hints)))
    grid = figure.add_gridspec(1, 2 if arms else 1, width_ratios=[width, 4.2][: 1 + bool(arms)])
    axes = figure.add_subplot(grid[0])
    strongest = max((abs(_scaled(contrast)) for contrast in result.contrasts.values()), default=1.0)
    scale = max(strongest, 0.1 if unit_text(result) else 1e-3)
    _cells(axes, result, scale)
    _layer_axes(axes, hints, guided)
    title = f"Gain over no hint ({words(result.val_metric)}{unit_text(result)})"
    axes.set_title(title, fontsize=10)
    shade = Patch(facecolor="white", edgecolor="0.55", hatch=HATCH)
    text = "not significant at 5% (Holm correction); ± half-width of the uncorrected 95% CI"
    figure.legend([shade], [text], loc="outside lower left", frameon=False, fontsize=8)
    if arms:
        _arms(figure.add_subplot(grid[1]), arms, unit_text(result))
    return figure


def _cells(axes: Axes, result: LayerStudyResult, scale: float) -> None:
    layers = result.plan.layers
    cells = {
        (row, column): result.cell(hint.name, guided.name)
        for row, hint in enumerate(layers.hints)
        for column, guided in enumerate(layers.guided)
    }
    table = np.full((len(layers.hints), len(layers.guided)), np.nan)
    for place, cell in cells.items():
        if cell.contrast is not None:
            table[place] = _scaled(cell.contrast)
    colors = colormaps[GAINS].with_extremes(bad="0.88")
    axes.imshow(table, cmap=colors, vmin=-scale, vmax=scale, origin="lower", aspect="auto")
    for (row, column), cell in cells.items():
        _cell(axes, cell, column, row, scale)


def _cell(axes: Axes, cell: Cell, column: int, row: int, scale: float) -> None:
    contrast = cell.contrast
    if contrast is None:
        label = "not\ncomparable" if cell.skip_reason else "not trained"
        axes.text(column, row, label, ha="center", va="center", fontsize=7, color="0.4")
        return
    if not contrast.is_significant:
        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, hatch=HATCH, edgecolor="0.6", lw=0
            )
        )
    dark = abs(_scaled(contrast)) > 0.65 * scale
    axes.text(
        column,
        row,
        _gain_text(contrast),
        ha="center",
        va="center",
        fontsize=9,
        color="white" if dark else "black",
        fontweight="bold" if contrast.is_significant else "normal",
        bbox={"facecolor": _face(contrast, scale), "edgecolor": "none", "pad": 1.5},
    )


def _face(contrast: Contrast, scale: float) -> Any:
    """Return the color of the cell, so that hatching does not run through its text."""
    return colormaps[GAINS]((_scaled(contrast) / scale + 1) / 2)


def _gain_text(contrast: Contrast) -> str:
    gain, half = contrast.gain, contrast.gain.half_width
    if not gain.is_share:
        spread = "" if math.isnan(half) else f"\n± {half:.2g}"
        return f"{gain.mean:+.2g}{spread}"
    spread = "" if math.isnan(half) else f"\n± {100 * half:.1f}"
    return f"{100 * gain.mean:+.1f}{spread}"


def _scaled(contrast: Contrast) -> float:
    """Return the gain as it is drawn: in percentage points, if the metric is a share."""
    return scale_of(contrast.gain) * contrast.gain.mean


def _layer_axes(axes: Axes, hints: Sequence[LayerInfo], guided: Sequence[LayerInfo]) -> None:
    axes.set_xticks(range(len(guided)), [_layer_label(layer) for layer in guided], fontsize=8)
    axes.set_yticks(range(len(hints)), [_layer_label(layer) for layer in hints], fontsize=8)
    axes.set_xlabel("guided layer (student)", fontsize=9)
    axes.set_ylabel("hint layer (teacher)", fontsize=9)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _layer_label(layer: LayerInfo) -> str:
    return f"{layer.name}\n{layer.shape_text}"


def _compared_arms(result: LayerStudyResult) -> list[tuple[str, Contrast]]:
    """Return the arms that are not single pairs, and the best single pair, sorted by gain."""
    contrasts = result.contrasts
    arms = [arm for arm in result.plan.arms if arm.kind not in (NONE, "pair")]
    compared = [(_arm_name(arm), contrasts[arm.id]) for arm in arms if arm.id in contrasts]
    pairs = [(cell, cell.contrast) for cell in result.cells if cell.contrast is not None]
    if pairs:
        cell, contrast = max(pairs, key=lambda pair: pair[1].gain.mean)
        compared.append((f"{cell.hint}>{cell.guided}", contrast))
    return sorted(compared, key=lambda arm: arm[1].gain.mean)


def _arm_name(arm: Arm) -> str:
    if arm.kind != "set":
        return arm.id.replace("_", " ")
    return "\n".join(f"{pair.hint}>{pair.guided}" for pair in arm.pairs[0])


def _arms(axes: Axes, arms: Sequence[tuple[str, Contrast]], unit: str) -> None:
    for place, (_, contrast) in enumerate(arms):
        half = contrast.gain.half_width
        axes.errorbar(
            _scaled(contrast),
            place,
            xerr=None if math.isnan(half) else scale_of(contrast.gain) * half,
            fmt="o" if contrast.is_significant else "D",
            color=colormaps[GAINS](0.95 if contrast.gain.mean >= 0 else 0.05),
            markerfacecolor=None if contrast.is_significant else "white",
            capsize=3,
        )
    axes.axvline(0, color="0.4", lw=1)
    axes.set_yticks(range(len(arms)), [name for name, _ in arms], fontsize=8)
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlabel(f"gain over no hint{unit}", fontsize=9)
    axes.set_title("Other pairings, and the best pair", fontsize=10)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


# CKA


def cka(result: LayerStudyResult) -> Figure | None:
    """Draw the CKA between teacher and student without hint; None if it was not computed."""
    titles: dict[CkaTime, str] = {
        "start": "untrained student",
        "steps": f"after {result.predictors.steps} steps without hint",
        "trained": "trained without hint",
    }
    maps = [
        (title, table)
        for when, title in titles.items()
        if (table := result.predictors.cka_map(when)) is not None
    ]
    if not maps:
        return None
    hints, guided = result.plan.layers.cka_hints, result.plan.layers.cka_guided
    width, height = len(maps) * (1.0 + 0.85 * len(guided)) + 1.6, 1.6 + 0.65 * len(hints)
    figure = _figure(width, max(3.2, height))
    drawn = figure.subplots(1, len(maps), squeeze=False)[0]
    for place, (axes, (title, table)) in enumerate(zip(drawn, maps, strict=True)):
        image = axes.imshow(table, cmap=ALIKE, vmin=0, vmax=1, origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            color = "white" if value < 0.5 else "black"
            label = "-" if math.isnan(value) else f"{value:.2f}"
            axes.text(column, row, label, ha="center", va="center", fontsize=8, color=color)
        _layer_axes(axes, hints, guided)
        axes.set_title(title, fontsize=10)
        if place:
            axes.set_ylabel("")
            axes.set_yticklabels([])
        if place == len(maps) - 1:
            figure.colorbar(image, ax=drawn.tolist(), label="linear CKA, unbiased", pad=0.02)
    return figure


# Predictors


def predictors(result: LayerStudyResult) -> Figure | None:
    """Plot each predictor against the gains of the cells, with Kendall's tau.

    Return None if there are too few results.
    """
    names = [name for name in PREDICTORS if not math.isnan(result.rank_correlations[name].tau)]
    if not names:
        return None
    rows = math.ceil(len(names) / 3)
    figure = _figure(10.5, 3.2 * rows + 0.3)
    drawn = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes in drawn[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(drawn, names, strict=False):
        _predictor(axes, result, name)
    return figure


def _predictor(axes: Axes, result: LayerStudyResult, name: str) -> None:
    for cell in result.cells:
        if cell.contrast is None or math.isnan(cell.predictors[name]):
            continue
        clear = cell.contrast.is_significant
        at = cell.predictors[name], _scaled(cell.contrast)
        axes.plot(*at, "o", color="#0b559f", markerfacecolor=None if clear else "white")
        short = f"{_short_name(cell.hint)}>{_short_name(cell.guided)}"
        axes.annotate(
            short, at, xytext=(4, 3), textcoords="offset points", fontsize=6, color="0.35"
        )
    correlation = result.rank_correlations[name]
    span = (
        "" if math.isnan(correlation.low) else f" [{correlation.low:+.2f}, {correlation.high:+.2f}]"
    )
    axes.set_title(f"tau {correlation.tau:+.2f}{span}", fontsize=10)
    axes.set_xlabel("\n".join(textwrap.wrap(PREDICTORS[name], 38)), fontsize=8)
    axes.set_ylabel(gain_heading(result), fontsize=8)
    axes.axhline(0, color="0.6", lw=1)
    axes.margins(0.2)


def _short_name(name: str) -> str:
    number = name.removeprefix("stage")
    return f"s{number}" if number.isdigit() else name


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
