"""Text of summaries and tables for a terminal."""

from __future__ import annotations

from rich.console import RenderableType

from raykd.report.summary.base import RunSummary
from raykd.report.summary.search import SearchSummary
from raykd.report.terminal.sections import join_sections


def render_summary(summary: RunSummary) -> RenderableType:
    """Return a summary as text for a `rich` console."""
    if isinstance(summary, SearchSummary):
        from raykd.report.terminal.search import search_sections

        return join_sections(search_sections(summary))
    from raykd.report.summary.layer_study import LayerStudySummary
    from raykd.report.terminal.layer_study import layer_study_sections

    assert isinstance(summary, LayerStudySummary)
    return join_sections(layer_study_sections(summary))
