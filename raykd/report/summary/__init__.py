"""Computed figures of a run, for its summary in a terminal, as JSON or on a page.

Nothing in this package prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from raykd.report.summary.search import SearchSummary, summarize_search
from raykd.tracking.events import Event
from raykd.tracking.journal import events
from raykd.tuning.result import StudyResult

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.report.summary.layer_study import LayerStudySummary


@overload
def summarize(result: StudyResult, history: Sequence[Event] | None = None) -> SearchSummary: ...


@overload
def summarize(
    result: LayerStudyResult, history: Sequence[Event] | None = None
) -> LayerStudySummary: ...


def summarize(
    result: StudyResult | LayerStudyResult, history: Sequence[Event] | None = None
) -> SearchSummary | LayerStudySummary:
    """Compute the figures of a run's summary, finished or not.

    Args:
        result: result of a search or a layer study.
        history: events of its journal; None: they are read from its folder.
    """
    history = events(result.folder / "journal.jsonl") if history is None else history
    if isinstance(result, StudyResult):
        return summarize_search(result, history)
    from raykd.report.summary.layer_study import summarize_layer_study

    return summarize_layer_study(result, history)
