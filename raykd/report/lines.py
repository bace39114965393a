"""Plain-text progress of a running search, for logs and pipes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from raykd.report.data import data_line, remarks
from raykd.report.failures import Announcer
from raykd.report.format import outputs_line
from raykd.report.progress import REPLICATES, View, asked_costs
from raykd.tracking.events import (
    ArchitecturesRanked,
    DataLoaded,
    EpochFinished,
    Event,
    GpuSharingMeasured,
    PhaseStarted,
    RunEnded,
    RunStarted,
    SlotsPlanned,
    StudyStarted,
    TeacherCacheChanged,
    WarmStarted,
    WarningIssued,
    to_json,
)
from raykd.tuning.number_format import clock, compact, metric, percent, time_left, words
from raykd.tuning.records import Record, cost, learns_from, pairs_name, scheme_name, student_name


class Display:
    """Listener that shows the events of a run; used in a `with` statement around the run."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing; displays that hold resources release them here."""


EVERY = 10.0
"""Seconds between two progress lines."""


class PlainLines(Display):
    """Prints one line for each phase and each finished training, and regular progress lines.

    Args:
        write: prints one line.
        now: returns monotonic time in seconds.
    """

    def __init__(
        self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._now = now
        self._view = View(now)
        self._lock = threading.Lock()
        self._last = now()
        self._begun: set[str] = set()
        self._failures = Announcer()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._view.apply(event)
            for line in self._lines(event):
                self._say(line)
            for line, _ in remarks(event):
                self._say(line)

    def _say(self, line: str) -> None:
        self._last = self._now()
        self._write(f"[{clock(self._view.elapsed)}] {line}")

    def _lines(self, event: Event) -> Iterable[str]:
        view = self._view
        match event:
            case StudyStarted():
                ways = ", ".join(f"{way} {words(name)}" for name, way in view.objectives.items())
                yield f"study {event.name}, seed {event.seed}, {ways}"
            case DataLoaded():
                yield data_line(event)
            case PhaseStarted():
                yield view.phase
            case SlotsPlanned():
                slots = f"{event.slots}; " if event.slots is not None else ""
                yield f"{slots}folder {event.folder}"
            case TeacherCacheChanged():
                yield outputs_line(event)
            case RunStarted():
                yield from self._phase_begins(view.records[event.id])
            case RunEnded():
                yield ended_line(view.records[event.id], view.watched, self._failures)
            case EpochFinished() if self._now() - self._last >= EVERY:
                yield self._progress()
            case _:
                yield from first_lines(event)

    def _phase_begins(self, record: Record) -> Iterable[str]:
        role = "replicate" if record.role == "alone" else record.role
        if role in self._begun:
            return
        self._begun.add(role)
        epochs, budget = record.job.epochs, self._view.budget
        if role == "teacher":
            doing = f"{epochs} epochs" if epochs else "evaluation"
            yield f"teacher {student_name(record)}: {doing}"
        elif role == "trial" and budget is not None:
            yield f"up to {budget.trials} trials of {epochs} epochs"
        elif role == "replicate":
            chosen = ", ".join(sorted(self._view.finalists))
            yield f"{self._view.replicates_due} replicates of the chosen students ({chosen})"

    def _progress(self) -> str:
        view = self._view
        best = ""
        if view.front:
            value = metric(view.watched, view.front[0].metrics.get(view.watched))
            best = f"; best so far {view.front[0].id} with {value}"
        return f"{view.progress:.0%}, {view.phase}{best}; {time_left(view.time_left)}"


def first_lines(event: Event) -> Iterable[str]:
    """Yield the lines of an event that comes before the first trial; none for other events.

    These are warnings, trials per GPU, ranked architectures and start points.
    """
    match event:
        case WarningIssued():
            yield f"warning: {event.text}"
        case GpuSharingMeasured():
            rates = ", ".join(f"{n}: {rate:,.0f}" for n, rate in event.images_per_second.items())
            yield f"trials per GPU: {event.chosen} (images/s by trials per GPU: {rates})"
        case ArchitecturesRanked():
            ranked = f"{event.candidates} architectures ranked in {event.seconds:.1f} s"
            yield f"{event.name}: {ranked}; the best {len(event.kept)} are tried first"
        case WarmStarted():
            for start in event.starts:
                if start.params:
                    yield f"starting from {start.name} ({len(start.params)} values)"
                yield from start.left_out
        case _:
            pass


def ended_line(record: Record, watched: str, failures: Announcer) -> str:
    """Format the outcome of a training in one line."""
    if record.status == "failed":
        return failures.line(record)
    how = {"stopped": "stopped early"}.get(record.status, record.status)
    if record.role == "probe":
        return f"{record.id} {how}: measured CKA and gradients of every pair"
    told = [f"{words(watched)} {metric(watched, record.metrics.get(watched))}"]
    if "test_accuracy" in record.metrics:
        told += [f"test accuracy {percent(record.metrics['test_accuracy'])}"]
    if cost(record, "params") is not None:
        told += [f"{compact(cost(record, 'params'))} params"]
    told += [f"{words(name)} {metric(name, cost(record, name))}" for name in asked_costs([record])]
    ran = f"{len(record.epochs)}/{record.job.epochs} epochs"
    return f"{record.id} {how} ({ran}): {', '.join(told)}; {described(record)}"


def described(record: Record) -> str:
    """Describe the model of a training and the teachers it learns from."""
    if record.role == "teacher":
        return student_name(record)
    if record.role == "alone":
        return f"{student_name(record)}, alone"
    scheme = scheme_name(record)
    told = [student_name(record), "" if scheme == "offline" else scheme]
    return ", ".join(filter(None, [*told, learns_from(record), pairs_name(record)]))


HEADINGS = (
    f"{'epoch':>9}  {'train loss':>10}  {'train acc':>9}  {'val acc':>8}  {'lr':>8}  {'time':>6}"
)


class EpochLines(Display):
    """Prints one line per epoch of the teacher and the student, and one line per replicate.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._view = View()
        self._lock = threading.Lock()
        self._shown = ""
        self._failures = Announcer()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._view.apply(event)
            match event:
                case EpochFinished():
                    self._epoch(self._view.records[event.id], event)
                case RunEnded():
                    record = self._view.records[event.id]
                    self._write(ended_line(record, self._view.watched, self._failures))
                case DataLoaded():
                    self._write(data_line(event))
                case WarningIssued():
                    self._write(f"warning: {event.text}")
                case PhaseStarted():
                    self._write(self._view.phase)
                case TeacherCacheChanged():
                    self._write(outputs_line(event))
                case _:
                    pass
            for line, _ in remarks(event):
                self._write(line)

    def _epoch(self, record: Record, event: EpochFinished) -> None:
        if record.role in REPLICATES:
            return  # replicates only print their outcome
        if self._shown != record.id:
            self._shown = record.id
            self._write(f"{record.id}: {described(record)}")
            self._write(HEADINGS)
        metrics = event.metrics
        cells = (
            f"{event.epoch}/{record.job.epochs}".rjust(9),
            f"{metrics.get('train_loss', float('nan')):10.4f}",
            percent(metrics.get("train_accuracy")).rjust(9),
            percent(metrics.get("val_accuracy")).rjust(8),
            f"{metrics.get('lr', float('nan')):8.2g}",
            _seconds(metrics.get("epoch_seconds", 0.0)).rjust(6),
        )
        self._write("  ".join(cells))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else clock(seconds)


class JsonLines(Display):
    """Prints every event as one line of strict JSON.

    NaN and the infinities are the strings "nan", "inf" and "-inf", as in the journal.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        record = event.record()
        record["at"] = event.at or time.time_ns() // 1_000_000
        line = json.dumps(to_json(record))
        with self._lock:
            self._write(line)
