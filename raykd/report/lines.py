"""Plain-text progress of a running search, for logs and pipes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from raykd.metrics import lead_metric
from raykd.report.data import data_line, remarks
from raykd.report.failures import FailureAnnouncer
from raykd.report.format import outputs_line
from raykd.report.run_state import REPLICATES, RunState, measured_costs
from raykd.tracking.events import (
    ArchitecturesRanked,
    DataLoaded,
    EpochFinished,
    Event,
    GpuSharingMeasured,
    PhaseStarted,
    RunEnded,
    RunPaused,
    RunPromoted,
    RunStarted,
    SlotsPlanned,
    StudyStarted,
    TeacherCacheChanged,
    WarmStarted,
    WarningIssued,
)
from raykd.tracking.json_types import to_json
from raykd.tuning.number_format import clock, compact, metric, time_left, words
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


PROGRESS_INTERVAL_S = 10.0
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
        self._state = RunState(now)
        self._lock = threading.Lock()
        self._last_print = now()
        self._started_roles: set[str] = set()
        self._paused: set[str] = set()
        self._failures = FailureAnnouncer()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._state.apply(event)
            for line in self._lines(event):
                self._print(line)
            for line, _ in remarks(event):
                self._print(line)

    def _print(self, line: str) -> None:
        self._last_print = self._now()
        self._write(f"[{clock(self._state.estimate.elapsed)}] {line}")

    def _lines(self, event: Event) -> Iterable[str]:
        state = self._state
        match event:
            case StudyStarted():
                ways = ", ".join(f"{way} {words(name)}" for name, way in state.objectives.items())
                yield f"study {event.name}, seed {event.seed}, {ways}"
            case DataLoaded():
                yield data_line(event)
            case PhaseStarted():
                yield state.phase
            case SlotsPlanned():
                slots = f"{event.slots}; " if event.slots is not None else ""
                yield f"{slots}folder {event.folder}"
            case TeacherCacheChanged():
                yield outputs_line(event)
            case RunStarted():
                yield from self._first_of_role(state.records[event.id])
            case RunEnded() | RunPaused() | RunPromoted():
                yield from self._change_of_status(event)
            case EpochFinished() if self._now() - self._last_print >= PROGRESS_INTERVAL_S:
                yield self._progress()
            case _:
                yield from setup_lines(event)

    def _change_of_status(self, event: RunEnded | RunPaused | RunPromoted) -> Iterable[str]:
        """Yield the line of a training that ended, paused or continues."""
        if isinstance(event, RunPromoted):
            self._paused.discard(event.id)
            purpose = "to complete the front" if event.finishing else "among the best"
            yield f"{event.id} continues after epoch {event.epoch}, {purpose}"
            return
        if event.id not in self._paused:  # else its last line says where it paused
            state = self._state
            yield outcome_line(state.records[event.id], state.main_metric, self._failures)
        if isinstance(event, RunPaused):
            self._paused.add(event.id)

    def _first_of_role(self, record: Record) -> Iterable[str]:
        role = "replicate" if record.role == "alone" else record.role
        if role in self._started_roles:
            return
        self._started_roles.add(role)
        epochs, budget = record.job.epochs, self._state.budget
        if role == "teacher":
            doing = f"{epochs} epochs" if epochs else "loaded, not trained; it is evaluated"
            yield f"teacher {student_name(record)}: {doing}"
        elif role == "trial" and budget is not None:
            yield f"up to {budget.trials} trials of {epochs} epochs"
        elif role == "replicate":
            finalists = ", ".join(sorted(self._state.finalists))
            yield f"{self._state.replicates_due} replicates of the finalists ({finalists})"

    def _progress(self) -> str:
        state, estimate = self._state, self._state.estimate
        best = ""
        if state.front:
            value = metric(state.main_metric, state.front[0].metrics.get(state.main_metric))
            best = f"; best so far {state.front[0].id} with {value}"
        return f"{estimate.progress:.0%}, {state.phase}{best}; {time_left(estimate.time_left)}"


def setup_lines(event: Event) -> Iterable[str]:
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
            unranked = f", {event.unranked} of them without a score" if event.unranked else ""
            yield f"{event.name}: {ranked}{unranked}; the best {len(event.ranking)} are tried first"
        case WarmStarted():
            for start in event.starts:
                if start.params:
                    yield f"starting from {start.name} ({len(start.params)} values)"
                yield from start.left_out
        case _:
            pass


def outcome_line(record: Record, metric_name: str, failures: FailureAnnouncer) -> str:
    """Format the outcome of a training in one line."""
    if record.status == "failed":
        return failures.line(record)
    outcome = {"stopped": "stopped early"}.get(record.status, record.status)
    if record.role == "probe":
        return f"{record.id} {outcome}: measured CKA and gradients of every pair"
    parts = [f"{words(metric_name)} {metric(metric_name, record.metrics.get(metric_name))}"]
    test = f"test_{lead_metric(record.job.study)}"
    if test in record.metrics:
        parts += [f"{words(test)} {metric(test, record.metrics[test])}"]
    if cost(record, "params") is not None:
        parts += [f"{compact(cost(record, 'params'))} params"]
    parts += [
        f"{words(name)} {metric(name, cost(record, name))}" for name in measured_costs([record])
    ]
    ran = f"{outcome} ({len(record.epochs)}/{record.job.epochs} epochs)"
    if record.role == "teacher" and not record.job.epochs:
        ran = "loaded"
    return f"{record.id} {ran}: {', '.join(parts)}; {describe_training(record)}"


def describe_training(record: Record) -> str:
    """Describe the model of a training and the teachers it learns from."""
    if record.role == "teacher":
        return student_name(record)
    if record.role == "alone":
        return f"{student_name(record)}, alone"
    scheme = scheme_name(record)
    parts = [student_name(record), "" if scheme == "offline" else scheme]
    return ", ".join(filter(None, [*parts, learns_from(record), pairs_name(record)]))


def _headings(train: str, val: str) -> str:
    """Return the headings of the lines of epochs, with the names of two metrics."""
    metrics = [words(name).replace("accuracy", "acc") for name in (train, val)]
    names = ("epoch", "train loss", *metrics, "lr", "time")
    return "  ".join(name.rjust(width) for name, width in zip(names, WIDTHS, strict=True))


WIDTHS = (9, 10, 9, 8, 8, 6)
"""Widths of the columns of lines of epochs."""


class EpochLines(Display):
    """Prints one line per epoch of the teacher and the student, and one line per replicate.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._state = RunState()
        self._lock = threading.Lock()
        self._printed_id = ""
        self._failures = FailureAnnouncer()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._state.apply(event)
            match event:
                case EpochFinished():
                    self._epoch(self._state.records[event.id], event)
                case RunEnded():
                    record = self._state.records[event.id]
                    self._write(outcome_line(record, self._state.main_metric, self._failures))
                case DataLoaded():
                    self._write(data_line(event))
                case WarningIssued():
                    self._write(f"warning: {event.text}")
                case PhaseStarted():
                    self._write(self._state.phase)
                case TeacherCacheChanged():
                    self._write(outputs_line(event))
                case _:
                    pass
            for line, _ in remarks(event):
                self._write(line)

    def _epoch(self, record: Record, event: EpochFinished) -> None:
        if record.role in REPLICATES:
            return  # replicates only print their outcome
        metrics, val = event.metrics, f"val_{lead_metric(record.job.study)}"
        names = (name for name in metrics if name.startswith("train_") and name != "train_loss")
        train = next(names, "train_accuracy")
        if self._printed_id != record.id:
            self._printed_id = record.id
            self._write(f"{record.id}: {describe_training(record)}")
            self._write(_headings(train, val))
        cells = (
            f"{event.epoch}/{record.job.epochs}".rjust(9),
            f"{metrics.get('train_loss', float('nan')):10.4f}",
            metric(train, metrics.get(train)).rjust(9),
            metric(val, metrics.get(val)).rjust(8),
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
