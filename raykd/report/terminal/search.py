"""Summary of a search as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from raykd.report.data import WARNING_STYLE
from raykd.report.summary.search import SearchSummary
from raykd.report.terminal.sections import (
    Section,
    commands_section,
    failures_section,
    headline,
    paragraphs,
    teacher_lines,
    title,
)
from raykd.study.objectives import COSTS
from raykd.terminal_tables import Column, Grid
from raykd.tuning.number_format import (
    compact,
    duration,
    interval,
    metric,
    points,
    whole,
    words,
)
from raykd.tuning.result import Finalist, gain_heading
from raykd.tuning.teacher_warnings import BELOW_STUDENT
from raykd.tuning.verdicts import gain_verdict

MAX_ASSISTANTS = 6
"""Maximum number of assistants listed one by one."""


def search_sections(summary: SearchSummary) -> Iterator[Section]:
    """Yield the sections of a search's summary."""
    yield headline(summary, _counts(summary))
    yield [Text(line, style=WARNING_STYLE) for line in summary.warnings]
    yield _front(summary)
    yield _finalists(summary)
    yield _teachers(summary)
    yield failures_section(summary)
    yield [Text(line, style="dim") for line in summary.notes]
    yield [title("Excluded"), *paragraphs(summary.excluded)] if summary.excluded else []
    yield commands_section(summary)


# Headline


def _counts(summary: SearchSummary) -> str:
    counts = summary.trial_counts
    running = "running" if summary.status == "running" else "interrupted"
    outcomes = {
        "finished": "completed",
        "paused": "paused",
        "stopped": "stopped early",
        "failed": "failed",
        "running": running,
    }
    parts = [
        f"{counts[status]} {outcome}" for status, outcome in outcomes.items() if counts[status]
    ]
    trials = counts.total()
    number = _number(trials, "trial") if trials else _number(len(summary.teachers), "teacher")
    return f"{number} in {duration(summary.seconds)}" + (f"; {', '.join(parts)}" if parts else "")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# Pareto front


def _front(summary: SearchSummary) -> Section:
    trials, objectives = summary.trial_counts.total(), summary.result.objectives
    if not trials:
        return []
    if not summary.front:
        return [Text("No trial completed, so there is no Pareto front.", style="yellow")]
    directions = ", ".join(f"{way} {words(name)}" for name, way in objectives.items())
    name = "Pareto front" if len(objectives) > 1 else "Best trial"
    name = name if trials > 1 else "Trial"
    metrics = [name for name in objectives if name not in COSTS]
    metrics += [] if summary.result.val_metric in metrics else [summary.result.val_metric]
    headings = [words(name).replace("accuracy", "acc") for name in (*metrics, *COSTS[:2])]
    table = Grid(
        [
            *map(Column, ("trial", "student", "scheme", "learns from")),
            *(Column(heading, right=True, whole=True) for heading in headings),
        ],
        indent=1,
    )
    for training in summary.front:
        value = training.metrics.get
        figures = [metric(name, value(name)) for name in metrics]
        costs = whole(value("params")), compact(value("macs"))
        knowledge = " ".join(filter(None, [training.learns_from, training.pairs]))
        description = training.id, training.student, training.scheme, knowledge
        table.add(*description, *figures, *costs)
    return [title(name, f"({directions}; validation split)"), table, *_costs(summary)]


def _costs(summary: SearchSummary) -> Section:
    """Return a table of the front's measured costs other than parameters and MACs."""
    if not summary.costs:
        return []
    columns = [Column(words(name), right=True) for name in summary.costs]
    table = Grid([Column("trial"), *columns], indent=1)
    for training in summary.front:
        values = training.metrics
        table.add(training.id, *(metric(name, values.get(name)) for name in summary.costs))
    device = summary.latency_device
    return [Text(), title("Costs", f"(measured on {device})" if device else ""), table]


# Finalists


def _finalists(summary: SearchSummary) -> Section:
    finalists = summary.tested_finalists
    if not finalists:
        return []
    columns = ("trial", "distilled", "without teacher", gain_heading(summary.result.lead))
    table = Grid([*map(Column, columns)], indent=1)
    for finalist in finalists:
        estimates = interval(finalist.distilled), interval(finalist.alone), points(finalist.gain)
        table.add(finalist.trial.id, *estimates)
    verdicts = [
        f"{finalist.trial.id}: {gain_verdict(finalist.gain)}{_missing(finalist)}"
        for finalist in finalists
    ]
    name = words(summary.result.test_metric)
    return [
        title("Finalists", f"({name} over new seeds, mean ± 95% CI half-width)"),
        table,
        *paragraphs([*verdicts, *(each.verdict for each in summary.differences)]),
    ]


def _missing(finalist: Finalist) -> str:
    return f" ({_number(finalist.missing, 'failed training')} excluded)" if finalist.missing else ""


# Teachers


def _teachers(summary: SearchSummary) -> Section:
    lines: list[RenderableType] = []
    for teacher in summary.teachers:
        lines += teacher_lines(teacher)
    lines += _assistants(summary)
    stronger = summary.result.teacher_falls_short
    is_reported = any(BELOW_STUDENT in warning for warning in summary.warnings)
    if stronger is not None and not is_reported:
        teacher = metric(summary.result.test_metric, summary.result.best_teacher_value)
        text = (
            f"The teacher is worse than the student of {stronger.trial.id} trained without it "
            f"({teacher} vs. {interval(stronger.alone)} on test "
            "data). Use a stronger teacher, or train it longer."
        )
        lines.append(Text(text, style="yellow"))
    return lines


def _assistants(summary: SearchSummary) -> Iterator[Text]:
    """Yield lines about networks trained as teachers: assistants and earlier generations."""
    validation = summary.result.val_metric
    for assistant in summary.assistants[:MAX_ASSISTANTS]:
        teachers = " and ".join(assistant.taught_by)
        name = f"{assistant.name}, taught by {teachers}" if teachers else assistant.name
        outcome = (
            f"failed: {assistant.reason}"
            if assistant.has_failed
            else f"{words(validation)} {metric(validation, assistant.val_value)}"
        )
        yield Text(f"Intermediate teacher {name}: {outcome}")
    if len(summary.assistants) > MAX_ASSISTANTS:
        yield Text(f"  and {len(summary.assistants) - MAX_ASSISTANTS} more")
