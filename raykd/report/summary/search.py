"""Figures of a search: Pareto front, finalists, their differences, teachers, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raykd.report.commands import can_resume, search_commands
from raykd.report.data import EXTENDED, WARNING, remarks
from raykd.report.run_state import TRAININGS, measured_costs
from raykd.report.summary.base import (
    RunSummary,
    TeacherFigures,
    TrainingFigures,
    summarize_run,
    teacher_figures,
)
from raykd.tracking.events import Event, Note
from raykd.tuning.estimates import Estimate
from raykd.tuning.number_format import points
from raykd.tuning.result import Finalist, StudyResult
from raykd.tuning.verdicts import gain_verdict, inconclusive_reason


@dataclass(frozen=True)
class Difference:
    """Difference in the test metric of two finalists, paired by seed.

    Attributes:
        first, second: ids of their trials.
        estimate: improvement of the first over the second; positive if the first is better.
    """

    first: str
    second: str
    estimate: Estimate

    @property
    def verdict(self) -> str:
        """The difference and whether it is significant, as a sentence."""
        text = f"{self.first} and {self.second} differ by {points(self.estimate)}"
        reason = inconclusive_reason(self.estimate)
        if reason:
            return f"{text}, paired by seed: {reason}."
        better = self.first if self.estimate.mean > 0 else self.second
        return f"{text}: {better} is better on test data."


@dataclass(frozen=True)
class SearchSummary(RunSummary[StudyResult]):
    """Summary of a search, finished or not; see `RunSummary` for the other attributes.

    Attributes:
        front: trials of the Pareto front, the best in the first objective first.
        costs: names of the measured costs of the front other than parameters and MACs.
        latency_device: device on which latencies were measured; "" if unknown.
        differences: difference of each two finalists.
        assistants: assistants and earlier generations.
        excluded: candidates that were excluded before sampling, with reasons.
        warnings, notes: remarks about data and weights.
        unfinished: True if `--resume` has work to do and no process is doing it.
    """

    front: tuple[TrainingFigures, ...]
    costs: tuple[str, ...]
    latency_device: str
    differences: tuple[Difference, ...]
    assistants: tuple[TeacherFigures, ...]
    excluded: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    unfinished: bool

    @property
    def tested_finalists(self) -> list[Finalist]:
        """Finalists with a test metric over new seeds, best first."""
        return [finalist for finalist in self.result.finalists if finalist.distilled is not None]

    def plain(self) -> dict[str, Any]:
        result = self.result
        stronger = result.teacher_falls_short
        return {
            **super().plain(),
            "objectives": dict(result.objectives),
            "best": result.best.id if result.best is not None else None,
            "front": [asdict(training) for training in self.front],
            "chosen": [_plain_finalist(finalist) for finalist in result.finalists],
            "differences": [_plain_difference(difference) for difference in self.differences],
            "teachers": [asdict(teacher.training) for teacher in self.teachers],
            "assistants": [asdict(assistant.training) for assistant in self.assistants],
            "teacher_falls_short": stronger.trial.id if stronger is not None else None,
            "left_out": list(self.excluded),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "unfinished": self.unfinished,
        }


def summarize_search(result: StudyResult, history: Sequence[Event]) -> SearchSummary:
    """Compute the summary of a search, finished or not.

    Args:
        result: result of the search.
        history: events of its journal.
    """
    failed = [record for record in result.records.of(*TRAININGS) if record.status == "failed"]
    run = summarize_run(result, history, failed, search_commands(result, history))
    devices = (record.job.tags.get("latency_on") for record in result.pareto)
    lines = list(dict.fromkeys(line for event in history for line, _ in remarks(event)))
    return SearchSummary(
        **vars(run),
        front=tuple(map(TrainingFigures.from_record, result.pareto)),
        costs=tuple(measured_costs(result.pareto)),
        latency_device=next(filter(None, devices), ""),
        differences=tuple(
            Difference(first.trial.id, second.trial.id, estimate)
            for first, second, estimate in result.differences
        ),
        assistants=teacher_figures(result, result.records.assistants),
        excluded=tuple(excluded_candidates(history)),
        warnings=tuple(line for line in lines if line.startswith(WARNING)),
        notes=tuple(line for line in lines if not line.startswith((WARNING, EXTENDED, "data: "))),
        unfinished=can_resume(result, history),
    )


def excluded_candidates(history: Sequence[Event]) -> list[str]:
    """Return the candidates that were excluded before sampling, with reasons.

    These are pairs that no loss can compare, and start points from other studies that do not fit.
    """
    notes = [event.tags for event in history if isinstance(event, Note)]
    keys = ("pairs_left_out", "start_left_out")
    return [line for tags in notes for key in keys if key in tags for line in tags[key].split("\n")]


def _plain_finalist(finalist: Finalist) -> dict[str, Any]:
    estimates = {
        "distilled": finalist.distilled,
        "alone": finalist.alone,
        "gain": finalist.gain,
    }
    return {
        "id": finalist.trial.id,
        **{name: value.plain() if value else None for name, value in estimates.items()},
        "gain_is_clear": finalist.gain is not None and finalist.gain.clear_of_zero,
        "verdict": gain_verdict(finalist.gain),
        "missing": finalist.missing,
    }


def _plain_difference(difference: Difference) -> dict[str, Any]:
    return {
        "first": difference.first,
        "second": difference.second,
        **difference.estimate.plain(),
        "is_clear": difference.estimate.clear_of_zero,
    }
