"""Sections of a summary that searches and layer studies share, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.text import Text

from raykd.report.failures import failure_lines
from raykd.report.summary.base import RunSummary, TeacherFigures
from raykd.terminal_tables import Paragraph, unbroken
from raykd.tuning.number_format import metric, words

Section = Sequence[RenderableType]
"""Blocks of text under one title; an empty section is not printed."""


def join_sections(sections: Iterable[Section]) -> RenderableType:
    """Return sections with an empty line between them."""
    blocks: list[RenderableType] = []
    for section in filter(None, sections):
        blocks += [*section, Text()]
    return unbroken(blocks[:-1])


def headline(summary: RunSummary, text: str) -> list[Text]:
    """Return the name and status of a run, followed by a text, and a line for each extension."""
    status = "" if summary.status == "finished" else f" ({summary.status})"
    head = Text.assemble((summary.result.name, "bold"), f"{status}: {text}")
    return [head, *(Text(f"  extended: {growth}", "dim") for growth in summary.extensions)]


def title(text: str, note: str = "") -> Text:
    """Return the title of a section, with a note in plain style."""
    return Text.assemble((text, "bold"), f" {note}" if note else "")


def paragraphs(lines: Iterable[str], style: str = "") -> list[RenderableType]:
    """Return indented paragraphs, one for each line."""
    return [Paragraph(Text(line, style=style), 2) for line in lines]


def unwrapped(text: str, style: str) -> Text:
    """Return a line without line breaks, so that it can be copied."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def teacher_lines(teacher: TeacherFigures) -> list[Text]:
    """Return the metrics of a teacher and the file of its weights, or its error."""
    if teacher.has_failed:
        return [Text(f"Teacher {teacher.name} failed: {teacher.reason}", "red")]
    values = {f"val_{teacher.lead}": teacher.val_value, f"test_{teacher.lead}": teacher.test_value}
    figures = ", ".join(f"{words(name)} {metric(name, each)}" for name, each in values.items())
    lines = [Text(f"Teacher {teacher.name}: {figures}")]
    if teacher.weights and teacher.training.status == "finished":
        lines.append(unwrapped(f"  weights: {teacher.weights}", "dim"))
    return lines


def failures_section(summary: RunSummary) -> Section:
    """Return the failed trainings, grouped by cause."""
    lines = failure_lines(summary.causes, summary.result.folder)
    return [title("Failed"), *paragraphs(lines)] if lines else []


def commands_section(summary: RunSummary) -> Section:
    """Return the commands that open the results, each on its own line."""
    lines: list[RenderableType] = [title("Next steps")]
    for command in summary.commands:
        lines += [
            unwrapped(f"  {command.purpose}:", "dim"),
            unwrapped(f"    {command.text}", "cyan"),
        ]
    return lines
