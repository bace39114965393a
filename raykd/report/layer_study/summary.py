"""Results of a layer study, as text for a terminal and as plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from raykd.layer_study.arm_record import NONE
from raykd.layer_study.files import facts_of
from raykd.layer_study.result import (
    PREDICTORS,
    TEST_METRIC,
    Best,
    Cell,
    LayerInfo,
    LayerStudyResult,
)
from raykd.layer_study.statistics import Contrast
from raykd.report.commands import pairs_commands, state
from raykd.report.failures import causes, failure_lines
from raykd.report.summary import no_verdict, seconds_at_work
from raykd.terminal_tables import Column, Grid, Paragraph, unbroken
from raykd.tracking.events import Event
from raykd.tracking.journal import events
from raykd.tuning.number_format import duration, interval, percent, points
from raykd.tuning.records import teacher_name
from raykd.tuning.statistics import MIN_SEEDS

MOST_REASONS = 6


def summary(result: LayerStudyResult, told: Sequence[Event] | None = None) -> RenderableType:
    """Return a summary of a layer study, finished or not, for a `rich` console.

    Args:
        result: the result of the study.
        told: events of its journal, if already read.
    """
    told = events(result.folder / "journal.jsonl") if told is None else told
    parts = [
        [_headline(result, told)],
        _heatmap(result),
        _others(result),
        _best(result),
        _predictors(result),
        _teachers(result),
        _reasons(result),
        _commands(result, told),
    ]
    blocks: list[RenderableType] = []
    for part in filter(None, parts):
        blocks += [*part, Text()]
    return unbroken(blocks[:-1])


def facts(result: LayerStudyResult, told: Sequence[Event] | None = None) -> dict[str, Any]:
    """Return the contents of `pairing.json` and the final state of the study as plain data."""
    told = events(result.folder / "journal.jsonl") if told is None else told
    return {
        **facts_of(result),
        "folder": str(result.folder),
        "status": state(result, told),
        "seconds": seconds_at_work(told),
        "trials": dict(Counter(record.status for record in result.records.of("trial"))),
        "failed": {record.id: record.reason for record in result.failed},
        "failures": [cause.plain() for cause in causes(result.failed)],
        "commands": {one.name: one.text for one in pairs_commands(result, told)},
    }


def _headline(result: LayerStudyResult, told: Sequence[Event]) -> Text:
    status = state(result, told)
    trials = result.records.of("trial")
    done = sum(record.status == "finished" for record in trials)
    trained = sum(not arm.why_not for arm in result.arms)
    said = (
        f": loss {result.loss['name']}, weight {result.weight:g}; {trained} arms x "
        f"{len(result.seeds)} seeds, {done} trainings in {duration(seconds_at_work(told))}"
    )
    how = "" if status == "finished" else f" ({status})"
    return Text.assemble((result.name, "bold"), how, said)


def _heatmap(result: LayerStudyResult) -> list[RenderableType]:
    if not result.contrasts:
        return [Text("No results to compare yet.", style="yellow")]
    guided = [f"{layer.name}\n{_shape(layer)}" for layer in result.guided]
    columns = [Column(heading, right=True, whole=True) for heading in guided]
    table = Grid([Column("hint \\ guided"), *columns], indent=1)
    for hint in reversed(result.hints):
        cells = [_cell(result.cell(hint.name, guided.name)) for guided in result.guided]
        table.add(f"{hint.name} {_shape(hint)}", *cells)
    base = _mean(result, NONE)
    title = f"(validation accuracy in points, no hint: {percent(base)})"
    return [Text.assemble(("Gain over no hint", "bold"), f" {title}"), table, *_legend(result)]


def _legend(result: LayerStudyResult) -> list[RenderableType]:
    noise = result.noise
    if math.isnan(noise.deviation):
        text = "No significance marks: one seed gives no estimate of the noise."
    elif len(result.seeds) < MIN_SEEDS:
        text = f"No significance marks: {len(result.seeds)} seeds are too few."
    else:
        compared = len(result.contrasts)
        text = (
            f"* significant at 5% (Holm correction over {compared} arms); (*) significant only "
            f"without the correction; ± half-width of the uncorrected 95% CI. Standard deviation "
            f"of one training: {100 * noise.deviation:.2f} points (pooled over all arms, "
            f"{noise.freedom} degrees of freedom)."
        )
    return [Paragraph(Text(text, style="dim"), 2)]


def _cell(cell: Cell) -> Text:
    if cell.contrast is None:
        return Text("-", style="dim")
    return _gain(cell.contrast)


def _gain(contrast: Contrast) -> Text:
    half = contrast.gain.half_width
    spread = "" if math.isnan(half) else f" ± {100 * half:.2f}"
    mark = "*" if contrast.is_clear else "(*)" if contrast.leaves_zero_out else ""
    colour = "blue" if contrast.gain.mean >= 0 else "dark_orange"
    style = f"bold {colour}" if contrast.is_clear else colour if mark else f"dim {colour}"
    return Text(f"{100 * contrast.gain.mean:+.2f}{spread} {mark:3}", style=style)


def _others(result: LayerStudyResult) -> list[RenderableType]:
    arms = [arm for arm in result.arms if arm.kind not in (NONE, "pair")]
    if not any(arm.id in result.contrasts for arm in arms):
        return []
    figures = [Column(heading, right=True, whole=True) for heading in ("val acc", "gain")]
    table = Grid([Column("pairing"), Column("pairs"), *figures], indent=1)
    for arm in arms:
        contrast = result.contrasts.get(arm.id)
        pairs = " ".join(f"{pair.hint}>{pair.guided}" for pair in arm.pairs[0])
        said = {"random": "differ by seed", "semckd": "learned attention over all pairs"}
        figures = Text("-", style="dim") if contrast is None else _gain(contrast)
        pairs = said.get(arm.kind, pairs)
        table.add(arm.id.replace("_", " "), Text(pairs), percent(_mean(result, arm.id)), figures)
    return [Text("Other pairings", style="bold"), table]


def _best(result: LayerStudyResult) -> list[RenderableType]:
    best = result.best
    if best is None:
        return []
    pairs = " ".join(f"{pair.hint}>{pair.guided}" for pair in best.arm.pairs[0])
    lines = [Text.assemble(("Best set of pairs", "bold"), f" {pairs} (chosen on validation data)")]
    if best.contrast is not None:
        said = f"  validation gain {points(best.contrast.gain)} (optimistic: the best of many arms)"
        lines.append(Text(said))
    lines += _tested(best)
    return list(lines)


def _tested(best: Best) -> Iterable[Text]:
    if best.tested is None:
        return
    yield Text(
        f"  test accuracy over new seeds: {interval(best.tested)}, without hint "
        f"{interval(best.untaught)}"
    )
    reason = "no baseline to compare with" if best.gain is None else no_verdict(best.gain)
    verdict = f": {reason}" if reason else ""
    yield Text(f"  gain on test data {points(best.gain)}{verdict}", "yellow" if reason else "")


def _predictors(result: LayerStudyResult) -> list[RenderableType]:
    known = {name: one for name, one in result.rankings.items() if not math.isnan(one.tau)}
    if not known:
        return []
    figures = [Column(heading, right=True) for heading in ("Kendall's tau", "95% interval")]
    table = Grid([Column("predictor"), *figures], indent=1)
    for name, found in sorted(known.items(), key=lambda one: -one[1].tau):
        span = "-" if math.isnan(found.low) else f"{found.low:+.2f} to {found.high:+.2f}"
        useful = not math.isnan(found.low) and not found.low <= 0 <= found.high
        style = "" if useful else "dim"
        table.add(_described(result, name), f"{found.tau:+.2f}", span, style=style)
    cells = max(one.cells for one in known.values())
    title = f"(rank correlation with the gains of {cells} single pairs)"
    return [Text.assemble(("Cheap predictors", "bold"), f" {title}"), table]


def _described(result: LayerStudyResult, name: str) -> str:
    said = PREDICTORS[name].replace("a few steps", f"{result.steps} steps")
    return said.replace("these steps", f"{result.steps} steps")


def _teachers(result: LayerStudyResult) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for record in result.teachers:
        val, test = record.metrics.get("val_accuracy"), record.metrics.get(TEST_METRIC)
        figures = f"val accuracy {percent(val)}, test accuracy {percent(test)}"
        lines.append(Text(f"Teacher {teacher_name(record)}: {figures}"))
    return lines


def _reasons(result: LayerStudyResult) -> list[RenderableType]:
    said = [f"{arm.id}: {arm.why_not}" for arm in result.arms if arm.why_not]
    more = [f"and {len(said) - MOST_REASONS} more"] if len(said) > MOST_REASONS else []
    parts = {"Not trained": [*said[:MOST_REASONS], *more]}
    parts["Failed"] = failure_lines(result.failed, result.folder)
    blocks: list[RenderableType] = []
    for title, told in parts.items():
        if told:
            blocks += [
                Text(title, style="bold"),
                *(Paragraph(Text(one), 2) for one in told),
            ]
    return blocks


def _commands(result: LayerStudyResult, told: Sequence[Event]) -> list[RenderableType]:
    lines: list[RenderableType] = [Text("Next steps", style="bold")]
    for command in pairs_commands(result, told):
        for text, style in ((f"  {command.what}:", "dim"), (f"    {command.text}", "cyan")):
            lines.append(Text(text, no_wrap=True, overflow="ignore", style=style))
    return lines


def _shape(layer: LayerInfo) -> str:
    return "x".join(map(str, layer.shape))


def _mean(result: LayerStudyResult, arm: str) -> float | None:
    of = result.values.get(arm, {})
    return math.fsum(of.values()) / len(of) if of else None
