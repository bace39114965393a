"""State of a study seen from another process: read from its journal and its lock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raykd.errors import StudyError
from raykd.metrics import lead_metric
from raykd.report.failures import group_failures
from raykd.tracking.events import (
    EpochFinished,
    Event,
    RunEnded,
    RunStarted,
    StudyExtended,
    StudyStarted,
)
from raykd.tracking.journal import events
from raykd.tuning.number_format import metric
from raykd.tuning.records import (
    Record,
    Records,
    cost,
    last_status,
    learns_from,
    pairs_name,
    student_name,
)
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_lock import active_driver

JOURNAL = "journal.jsonl"
RECENT = 20
"""Number of recent trials that determine the estimated time left."""


@dataclass(frozen=True)
class RunningTraining:
    """A training that is in progress.

    Attributes:
        id: ID of the training.
        role: "teacher", "trial", "replicate" or "alone".
        student: short name of the network.
        learns_from: its losses and layer pairs in short.
        epochs: number of finished epochs, and of all epochs.
        metric: name of the metric by which networks are compared.
        value: of that metric after the last epoch; None before the first.
    """

    id: str
    role: str
    student: str
    learns_from: str
    epochs: tuple[int, int]
    metric: str
    value: float | None


@dataclass(frozen=True)
class StudyStatus:
    """State of a study.

    Attributes:
        name: name of the study.
        folder: its folder; None: it is on another machine, and MLflow was read.
        verb: command that created it: "search", "pairs", "distill" or "teacher".
        status: "running", "finished", "failed" or "interrupted".
        driver: process that runs it, with host and start; "" if none does.
        started: time of the first start, in seconds since 1970.
        quiet_seconds: seconds since the last event.
        trials: number of trials by status.
        planned_trials: number of trials of the whole search; None for other studies.
        running: trainings in progress; those that an interrupted study left are not listed.
        best: description of the best finished trial so far; "" if there is none.
        front: IDs of the trials of the front.
        tested: number of finished replicates and baselines.
        seconds_left: estimated seconds until the last trial ends; None if unknown.
        failures: causes of failed trainings, the last one first.
        extensions: growth of the study after its start, one text for each extension.
        run_id: ID of its run in MLflow; "" if the folder was read.
        page: address of this run in MLflow's UI.
    """

    name: str
    folder: Path | None
    status: str
    started: float
    verb: str = ""
    driver: str = ""
    quiet_seconds: float = 0.0
    trials: Mapping[str, int] = field(default_factory=dict)
    planned_trials: int | None = None
    running: Sequence[RunningTraining] = ()
    best: str = ""
    front: Sequence[str] = ()
    tested: int = 0
    seconds_left: float | None = None
    failures: Sequence[str] = ()
    extensions: Sequence[str] = ()
    run_id: str = ""
    page: str = ""

    @property
    def ended_trials(self) -> int:
        """Number of trials that are over."""
        return sum(count for status, count in self.trials.items() if status != "running")

    @property
    def is_resumable(self) -> bool:
        """True if `--resume` continues it on this machine."""
        ended = self.status in ("interrupted", "failed")
        return ended and self.folder is not None and self.verb in ("search", "pairs")

    def plain(self) -> dict[str, Any]:
        """Return the state as plain data."""
        folder = None if self.folder is None else str(self.folder)
        return {**asdict(self), "folder": folder}


def read_status(path: str | Path) -> StudyStatus:
    """Read the state of the study in a folder, which another process may be running.

    Raises:
        StudyError: this is not a study's folder, or its journal is damaged or has no events yet.
    """
    folder, _ = open_folder(path)
    history = events(folder.path / JOURNAL)
    starts = [event for event in history if isinstance(event, StudyStarted)]
    if not starts:
        raise StudyError(f"{folder.path}: the study has not started yet; try again in a moment")
    records = Records.from_events(history)
    driver = active_driver(folder.path)
    search = starts[-1].resolved["search"]
    planned = search["trials"] if folder.verb == "search" else None
    trials = records.of("trial")
    objectives: Mapping[str, str] = search["objectives"]
    front = records.front(objectives) if folder.verb == "search" else []
    failed = [
        r for r in records.of("teacher", "trial", "replicate", "alone") if r.status == "failed"
    ]
    return StudyStatus(
        name=starts[-1].name,
        folder=folder.path,
        verb=folder.verb,
        status="running" if driver is not None else last_status(history),
        driver=str(driver) if driver is not None else "",
        started=starts[0].at / 1000,
        quiet_seconds=max(0.0, time.time() - history[-1].at / 1000),
        trials=dict(Counter(record.status for record in trials)),
        planned_trials=planned,
        running=list(_running(records)) if driver is not None else [],
        best=_description(front[0], objectives) if front else "",
        front=[record.id for record in front],
        tested=sum(1 for r in records.of("replicate", "alone") if "test_loss" in r.metrics),
        seconds_left=_seconds_left(history, planned, trials) if driver is not None else None,
        failures=[cause.reason for cause in reversed(group_failures(failed))],
        extensions=[str(event) for event in history if isinstance(event, StudyExtended)],
    )


def list_studies(roots: Iterable[str | Path]) -> Iterator[StudyStatus]:
    """Yield the state of every study below the given folders, the latest first.

    Folders that hold no readable study are skipped.
    """
    folders = {
        file.parent
        for root in roots
        for pattern in (JOURNAL, f"*/{JOURNAL}", f"*/*/{JOURNAL}")
        for file in Path(root).expanduser().glob(pattern)
    }
    states = []
    for folder in folders:
        try:
            states.append(read_status(folder))
        except (StudyError, KeyError):
            continue
    yield from sorted(states, key=lambda state: -state.started)


def _running(records: Records) -> Iterator[RunningTraining]:
    for record in records.of("teacher", "trial", "replicate", "alone"):
        if record.status == "running":
            last = record.epochs[-1] if record.epochs else {}
            name = f"val_{lead_metric(record.job.study)}"
            taught = " ".join(filter(None, [learns_from(record), pairs_name(record)]))
            yield RunningTraining(
                id=record.id,
                role=record.role,
                student=student_name(record),
                learns_from=taught,
                epochs=(len(record.epochs), record.job.epochs),
                metric=name,
                value=last.get(name),
            )


def _description(record: Record, objectives: Mapping[str, str]) -> str:
    figures = [f"{name} {metric(name, cost(record, name))}" for name in objectives]
    return f"{record.id} ({student_name(record)}): {', '.join(figures)}"


def _seconds_left(
    history: Sequence[Event], planned: int | None, trials: Sequence[Record]
) -> float | None:
    """Estimate the time until the last trial ends, from the pace of the last trials."""
    if planned is None:
        return None
    names = {record.id for record in trials}
    ends = [e.at for e in history if isinstance(e, RunEnded) and e.id in names]
    begins = [e.at for e in history if isinstance(e, RunStarted | EpochFinished) and e.id in names]
    left = planned - len(ends)
    if left <= 0:
        return 0.0
    if len(ends) < 2 or not begins:
        return None
    recent = [min(begins), *ends][-RECENT:]
    return left * (recent[-1] - recent[0]) / (len(recent) - 1) / 1000
