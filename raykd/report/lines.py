"""A running search in plain lines, for logs and pipes."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from raykd.report.data import data_line, remarks
from raykd.report.failures import Announcer
from raykd.report.format import outputs_line
from raykd.report.progress import REPLICATES, Budget, View, asked_costs
from raykd.tuning.number_format import clock, compact, metric, percent, time_left, words
from raykd.tuning.records import Record, cost, learns_from, pairs_name, scheme_name, student_name


class Display:
    """Hears every event of a study while it runs; used in a `with` statement around the run."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put away, unless a display has something."""


EVERY = 10.0
"""Seconds between two lines of progress."""


class PlainLines(Display):
    """One line for each phase and each training that ends, and now and then one of progress.

    Args:
        write: prints one line.
        now: seconds that only grow.
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

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._view.apply(event)
            for line in self._lines(event):
                self._say(line)
            for line, _ in remarks(event):
                self._say(line)

    def _say(self, line: str) -> None:
        self._last = self._now()
        self._write(f"[{clock(self._view.elapsed)}] {line}")

    def _lines(self, event: Mapping[str, Any]) -> Iterable[str]:
        view, kind = self._view, event["event"]
        if kind == "study":
            ways = ", ".join(f"{way} {words(name)}" for name, way in view.objectives.items())
            yield f"study {event['name']}, seed {event['seed']}, {ways}"
        elif kind == "dataset":
            yield data_line(event)
        elif kind == "phase":
            yield view.phase
        elif kind in ("warning", "start", "screen", "packing"):
            yield from first_lines(event)
        elif kind == "plan":
            slots = f"{event['plan']}; " if event["plan"] is not None else ""
            yield f"{slots}folder {event['folder'].path}"
        elif kind == "outputs":
            yield outputs_line(event)
        elif kind == "run":
            yield from self._phase_begins(view.records[event["id"]])
        elif kind == "end":
            yield ended_line(view.records[event["id"]], view.watched, self._failures)
        elif kind == "epoch" and self._now() - self._last >= EVERY:
            yield self._progress()

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


def first_lines(event: Mapping[str, Any]) -> Iterable[str]:
    """What goes before the sampler's own draws: how many trials share a GPU, architectures ranked
    best, or what other studies found, and what of that is left out."""
    if event["event"] == "warning":
        yield f"warning: {event['text']}"
        return
    if event["event"] == "packing":
        rates = ", ".join(f"{n}: {rate:,.0f}" for n, rate in event["images_per_second"].items())
        yield f"trials per GPU: {event['chosen']} (images/s by trials per GPU: {rates})"
        return
    if event["event"] == "screen":
        ranked = f"{event['candidates']} architectures ranked in {event['seconds']:.1f} s"
        yield f"{event['name']}: {ranked}; the best {len(event['kept'])} are tried first"
        return
    for start in event["starts"]:
        if start["params"]:
            yield f"starting from {start['name']} ({len(start['params'])} values)"
        yield from start["left_out"]


def ended_line(record: Record, watched: str, failures: Announcer) -> str:
    """The outcome of a training, in one line."""
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
    """What a training trains, and from what it learns."""
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
    """One line an epoch of the teacher and of the student; of the replicates their ends alone.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._view = View()
        self._lock = threading.Lock()
        self._shown = ""
        self._failures = Announcer()

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._view.apply(event)
            if event["event"] == "epoch":
                self._epoch(self._view.records[event["id"]], event)
            elif event["event"] == "end":
                record = self._view.records[event["id"]]
                self._write(ended_line(record, self._view.watched, self._failures))
            elif event["event"] == "dataset":
                self._write(data_line(event))
                for line, _ in remarks(event):
                    self._write(line)
            elif event["event"] == "note":
                for line, _ in remarks(event):
                    self._write(line)
            elif event["event"] == "warning":
                self._write(f"warning: {event['text']}")
            elif event["event"] == "phase":
                self._write(self._view.phase)
            elif event["event"] == "outputs":
                self._write(outputs_line(event))

    def _epoch(self, record: Record, event: Mapping[str, Any]) -> None:
        if record.role in REPLICATES:
            return  # their ends say enough
        if self._shown != record.id:
            self._shown = record.id
            self._write(f"{record.id}: {described(record)}")
            self._write(HEADINGS)
        metrics = event["metrics"]
        cells = (
            f"{event['epoch']}/{record.job.epochs}".rjust(9),
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
    """Every event as one line of strict JSON; NaN and the infinities are the strings "nan",
    "inf" and "-inf", as in the journal.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(jsonable({"at": time.time_ns() // 1_000_000, **_plain(event)}))
        with self._lock:
            self._write(line)


def _plain(event: Mapping[str, Any]) -> Mapping[str, Any]:
    if event["event"] != "plan":
        return event
    return {
        "event": "plan",
        "slots": asdict(event["plan"]) if event["plan"] is not None else None,
        "budget": asdict(Budget.of(event["study"], event.get("trials"))),
        "folder": event["folder"].path,
    }


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
