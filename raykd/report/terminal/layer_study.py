"""Summary of a layer study as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from raykd.layer_study.plan import format_pairs
from raykd.layer_study.result import BestPairs, LayerStudyResult, unit_text
from raykd.layer_study.significance import Contrast
from raykd.report.summary.layer_study import LayerStudySummary
from raykd.report.terminal.sections import (
    Section,
    commands_section,
    failures_section,
    headline,
    paragraphs,
    teacher_lines,
    title,
)
from raykd.terminal_tables import Column, Grid
from raykd.tuning.estimates import MIN_SEEDS
from raykd.tuning.number_format import duration, interval, metric, points, scaled, words
from raykd.tuning.verdicts import inconclusive_reason

MAX_SKIPPED = 6
"""Maximum number of untrained arms listed one by one."""


def layer_study_sections(summary: LayerStudySummary) -> Iterator[Section]:
    """Yield the sections of a layer study's summary."""
    yield headline(summary, _counts(summary))
    yield _heatmap(summary)
    yield _other_arms(summary)
    yield _best_pairs(summary.result)
    yield _predictors(summary)
    yield [line for teacher in summary.teachers for line in teacher_lines(teacher)]
    yield [*_skipped(summary), *failures_section(summary)]
    yield commands_section(summary)


def _counts(summary: LayerStudySummary) -> str:
    plan = summary.result.plan
    return (
        f"loss {plan.loss['name']}, weight {plan.weight:g}; {len(plan.trained_arms)} arms x "
        f"{len(plan.seeds)} seeds, {summary.trial_counts['finished']} trainings in "
        f"{duration(summary.seconds)}"
    )


# Gains


def _heatmap(summary: LayerStudySummary) -> Section:
    result, layers = summary.result, summary.result.plan.layers
    if not result.contrasts:
        return [Text("No results to compare yet.", style="yellow")]
    headings = [f"{layer.name}\n{layer.shape_text}" for layer in layers.guided]
    columns = [Column(heading, right=True, whole=True) for heading in headings]
    table = Grid([Column("hint \\ guided"), *columns], indent=1)
    for hint in reversed(layers.hints):
        cells = [result.cell(hint.name, guided.name) for guided in layers.guided]
        table.add(f"{hint.name} {hint.shape_text}", *(_gain(cell.contrast) for cell in cells))
    baseline = metric(result.val_metric, summary.baseline_accuracy)
    note = f"({words(result.val_metric)}{unit_text(result)}; no hint: {baseline})"
    return [title("Gain over no hint", note), table, *paragraphs([_legend(result)], "dim")]


def _legend(result: LayerStudyResult) -> str:
    noise, seeds = result.noise, len(result.plan.seeds)
    if math.isnan(noise.deviation):
        return "No significance marks: one seed gives no estimate of the noise."
    if seeds < MIN_SEEDS:
        return f"No significance marks: {seeds} seeds are too few."
    return (
        f"* significant at 5% (Holm correction over {len(result.contrasts)} arms); (*) significant "
        "only without the correction; ± half-width of the uncorrected 95% CI. Standard deviation "
        f"of one training: {_deviation(result)} (pooled over all arms, "
        f"{noise.freedom} degrees of freedom)."
    )


def _deviation(result: LayerStudyResult) -> str:
    """Return the noise of one training in the unit of gains."""
    deviation = result.noise.deviation
    return f"{100 * deviation:.2f} points" if unit_text(result) else f"{deviation:.3g}"


def _gain(contrast: Contrast | None) -> Text:
    if contrast is None:
        return Text("-", style="dim")
    gain = contrast.gain
    spread = "" if math.isnan(gain.half_width) else f" ± {scaled(gain, gain.half_width)}"
    color = "blue" if gain.mean >= 0 else "dark_orange"
    mark, style = "", f"dim {color}"
    if contrast.is_significant:
        mark, style = "*", f"bold {color}"
    elif contrast.is_significant_uncorrected:
        mark, style = "(*)", color
    return Text(f"{scaled(gain, gain.mean, '+')}{spread} {mark:3}", style=style)


def _other_arms(summary: LayerStudySummary) -> Section:
    if all(arm.contrast is None for arm in summary.other_arms):
        return []
    name = summary.result.val_metric
    heading = "val acc" if name == "val_accuracy" else words(name)
    figures = [Column(each, right=True, whole=True) for each in (heading, "gain")]
    table = Grid([Column("pairing"), Column("pairs"), *figures], indent=1)
    for arm in summary.other_arms:
        table.add(arm.name, Text(arm.pairs), metric(name, arm.accuracy), _gain(arm.contrast))
    return [title("Other pairings"), table]


# Best pairs


def _best_pairs(result: LayerStudyResult) -> Section:
    best = result.best
    if best is None:
        return []
    note = f"{format_pairs(best.arm.pairs[0])} (chosen on validation data)"
    lines: list[RenderableType] = [title("Best set of pairs", note)]
    if best.contrast is not None:
        gain = points(best.contrast.gain)
        lines.append(Text(f"  validation gain {gain} (biased upward: the best of many arms)"))
    if best.test_accuracy is not None:
        accuracy, baseline = interval(best.test_accuracy), interval(best.baseline_accuracy)
        name = words(result.test_metric)
        lines.append(Text(f"  {name} over new seeds: {accuracy}, without hint {baseline}"))
        lines.append(_test_gain(best))
    return lines


def _test_gain(best: BestPairs) -> Text:
    reason = "no baseline to compare with"
    if best.gain is not None:
        reason = inconclusive_reason(best.gain)
    verdict = f": {reason}" if reason else ""
    return Text(f"  gain on test data {points(best.gain)}{verdict}", "yellow" if reason else "")


# Predictors


def _predictors(summary: LayerStudySummary) -> Section:
    if not summary.predictors:
        return []
    figures = [Column(heading, right=True) for heading in ("Kendall's tau", "95% interval")]
    table = Grid([Column("predictor"), *figures], indent=1)
    for predictor in summary.predictors:
        correlation = predictor.correlation
        span = f"{correlation.low:+.2f} to {correlation.high:+.2f}"
        span = "-" if math.isnan(correlation.low) else span
        style = "" if predictor.is_significant else "dim"
        table.add(predictor.description, f"{correlation.tau:+.2f}", span, style=style)
    cells = max(predictor.correlation.cells for predictor in summary.predictors)
    note = f"(rank correlation with the gains of {cells} single pairs)"
    return [title("Cheap predictors", note), table]


# Arms without a result


def _skipped(summary: LayerStudySummary) -> Section:
    if not summary.skipped:
        return []
    lines = [f"{arm}: {reason}" for arm, reason in summary.skipped.items()]
    more = len(lines) - MAX_SKIPPED
    listed = [*lines[:MAX_SKIPPED], *([f"and {more} more"] if more > 0 else [])]
    return [title("Not trained"), *paragraphs(listed)]
