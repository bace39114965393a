"""Single trainings, epoch by epoch: what `raykd distill` and `raykd teacher` show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from raykd.report.data import data_line, remarks
from raykd.report.display import Display
from raykd.report.failures import Announcer
from raykd.report.outputs import outputs_line
from raykd.report.plain import described, ended_line
from raykd.report.view import REPLICATES, View
from raykd.search.figures import clock, percent
from raykd.search.records import Record

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
            f"{event['epoch']}/{record.assignment.epochs}".rjust(9),
            f"{metrics.get('train_loss', float('nan')):10.4f}",
            percent(metrics.get("train_accuracy")).rjust(9),
            percent(metrics.get("val_accuracy")).rjust(8),
            f"{metrics.get('lr', float('nan')):8.2g}",
            _seconds(metrics.get("epoch_seconds", 0.0)).rjust(6),
        )
        self._write("  ".join(cells))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else clock(seconds)
