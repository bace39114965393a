"""Figures of a summary that searches and layer studies share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, TypeVar

from raykd.report.commands import Command, run_status
from raykd.report.failures import Cause, group_failures
from raykd.tracking.events import Event, StudyExtended, StudyStarted
from raykd.tuning.records import (
    Record,
    has_stored_outputs,
    learns_from,
    pairs_name,
    scheme_name,
    student_name,
    teacher_name,
)
from raykd.tuning.result import RunResult
from raykd.tuning.stored_study import is_fetched
from raykd.tuning.study_dir import open_folder

ResultT = TypeVar("ResultT", bound=RunResult)


@dataclass(frozen=True)
class TrainingFigures:
    """Figures of one training.

    Attributes:
        id, status: as in its record.
        student: short name of the trained network; of a teacher, its own.
        scheme: name of the scheme.
        learns_from: losses in short; "labels" or "targets" without any.
        pairs: layer pairs in short; "" without pairs.
        metrics: last metrics and costs, by name.
        params: drawn values, by parameter.
    """

    id: str
    status: str
    student: str
    scheme: str
    learns_from: str
    pairs: str
    metrics: Mapping[str, float]
    params: Mapping[str, Any]

    @classmethod
    def from_record(cls, record: Record) -> TrainingFigures:
        return cls(
            id=record.id,
            status=record.status,
            student=student_name(record),
            scheme=scheme_name(record),
            learns_from=learns_from(record),
            pairs=pairs_name(record),
            metrics={**record.job.metrics, **record.metrics},
            params=dict(record.job.params),
        )


@dataclass(frozen=True)
class TeacherFigures:
    """Figures of a teacher, an assistant or an earlier generation of the student.

    Attributes:
        training: its training, or its evaluation if it has weights.
        reason: reason of its failure; "" if it has not failed.
        weights: path of its weights, usable as `teacher.weights` in a study; "" if it has none.
        taught_by: names of its own teachers.
        lead: metric by which networks are compared, without a split.
    """

    training: TrainingFigures
    reason: str
    weights: str
    taught_by: tuple[str, ...]
    lead: str

    @property
    def name(self) -> str:
        return self.training.student

    @property
    def has_failed(self) -> bool:
        return self.training.status == "failed"

    @property
    def val_value(self) -> float | None:
        """The metric on the validation split."""
        return self.training.metrics.get(f"val_{self.lead}")

    @property
    def test_value(self) -> float | None:
        """The metric on the test split; None if it was not tested."""
        return self.training.metrics.get(f"test_{self.lead}")


@dataclass(frozen=True)
class RunSummary(Generic[ResultT]):
    """Summary of a run, finished or not.

    Attributes:
        result: result of the run.
        status: "running", "finished", "failed" or "interrupted".
        seconds: running time, without pauses before the run was resumed.
        teachers: the study's own teachers.
        failed: records of failed trainings.
        commands: commands that open the results or continue the run.
        extensions: growth of the study after its start, one text for each extension.
    """

    result: ResultT
    status: str
    seconds: float
    teachers: tuple[TeacherFigures, ...]
    failed: tuple[Record, ...]
    commands: tuple[Command, ...]
    extensions: tuple[str, ...]

    @property
    def extension_text(self) -> str:
        """All extensions as the end of a sentence; empty if there are none."""
        return f"; extended: {'; '.join(self.extensions)}" if self.extensions else ""

    @cached_property
    def trial_counts(self) -> Counter[str]:
        """Number of trials by status."""
        return Counter(record.status for record in self.result.records.of("trial"))

    @cached_property
    def causes(self) -> list[Cause]:
        """Failed trainings, grouped by cause."""
        return group_failures(self.failed)

    def plain(self) -> dict[str, Any]:
        """Return the figures as plain data, with the keys of the event `result`."""
        return {
            "study": self.result.name,
            "id": self.result.study_id,
            "folder": str(self.result.folder),
            "status": self.status,
            "seconds": self.seconds,
            "trials": dict(self.trial_counts),
            "extended": list(self.extensions),
            "failed": {record.id: record.reason for record in self.failed},
            "failures": [cause.plain() for cause in self.causes],
            "commands": {command.name: command.text for command in self.commands},
        }


def summarize_run(
    result: ResultT,
    history: Sequence[Event],
    failed: Sequence[Record],
    commands: Sequence[Command],
) -> RunSummary[ResultT]:
    """Compute the figures that all kinds of runs share.

    Args:
        result: result of the run.
        history: events of its journal.
        failed: records of the failed trainings to report.
        commands: commands that apply to the result.
    """
    return RunSummary(
        result=result,
        status=run_status(result, history),
        seconds=running_seconds(history),
        teachers=teacher_figures(result, result.teachers),
        failed=tuple(failed),
        commands=tuple(commands),
        extensions=tuple(str(event) for event in history if isinstance(event, StudyExtended)),
    )


def running_seconds(history: Sequence[Event]) -> float:
    """Return the running time of a run in seconds, without pauses before it was resumed."""
    steps = pairwise(history)
    return sum(b.at - a.at for a, b in steps if not isinstance(b, StudyStarted)) / 1000


def teacher_figures(result: RunResult, records: Sequence[Record]) -> tuple[TeacherFigures, ...]:
    """Return the figures of networks that were trained or evaluated as teachers."""
    if not records:
        return ()
    storage = open_folder(result.folder)[0].storage.rstrip("/")
    names = {each.job.network_file: teacher_name(each) for each in result.records.of("teacher")}

    def has_weights(record: Record) -> bool:
        stored = bool(record.job.network_file) and not has_stored_outputs(record)
        return stored and not is_fetched(result.folder)

    return tuple(
        TeacherFigures(
            training=TrainingFigures.from_record(record),
            reason=record.reason,
            weights=f"{storage}/{record.job.network_file}" if has_weights(record) else "",
            taught_by=tuple(names[file] for file in record.job.teachers if file in names),
            lead=result.lead,
        )
        for record in records
    )
