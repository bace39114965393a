"""Figures of a reproduction as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from raykd.report.terminal.sections import Section, join_sections, paragraphs, title
from raykd.terminal_tables import Column, Grid
from raykd.tuning.reproduced_figures import Figure, Reproduction, Retraining


def reproduction_text(result: Reproduction) -> RenderableType:
    """Return the verdict, the figures side by side, and what differs between the two runs."""
    return join_sections(_sections(result))


def verdict(result: Reproduction) -> str:
    """Return whether the figures of a reproduction agree, as a sentence."""
    epochs = result.student.epochs
    count = f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"
    if result.is_exact:
        return f"every figure is equal bit for bit, after each of {count}"
    largest = result.student.largest
    assert largest is not None, "a difference is one of a figure"
    text = f"the largest difference is {largest.deviation:.2g} ({largest.name})"
    if result.student.first_epoch is not None:
        text += f"; figures differ from epoch {result.student.first_epoch} on"
    if result.agrees:
        return f"the figures agree within {result.tolerance:g}: {text}"
    return f"the figures do not agree within {result.tolerance:g}: {text}"


def _sections(result: Reproduction) -> Iterator[Section]:
    style = "green" if result.agrees else "red"
    yield [Text.assemble((result.source, "bold"), ": ", (verdict(result), style))]
    yield [title("Figures"), _table(result.student)]
    for teacher in result.teachers:
        yield [title(f"Teacher {teacher.id}", "(trained again)"), _table(teacher)]
    if result.differences:
        yield [title("Other than in the recorded run"), *paragraphs(result.differences)]
    yield [Text(f"folder {result.folder}", "dim")]


def _table(training: Retraining) -> Grid:
    columns = (Column(name, right=True) for name in ("recorded", "reproduced", "difference"))
    table = Grid([Column("metric"), *columns], indent=1)
    for figure in training.figures:
        table.add(
            figure.name,
            f"{figure.recorded:.6g}",
            f"{figure.reproduced:.6g}",
            _difference(figure),
        )
    return table


def _difference(figure: Figure) -> str:
    return "0" if figure.is_equal else f"{figure.difference:+.2g}"
