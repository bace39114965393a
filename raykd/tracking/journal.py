"""Journal of a study: its events as JSON lines, in chronological order.

A run records its events only in this file.  They are uploaded to MLflow during the run or later
(`raykd.tracking.sync`).  Each line contains the time and kind of the event, so reading a journal
again gives the same runs, metrics and timestamps.

Paths of files inside the journal's folder are relative to it, so the folder can be moved.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raykd.tracking.events import Event, parse, to_json

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Line:
    """Line of a journal.

    Attributes:
        end: byte at which the next line begins.
        event: event of the line; None if this version of raykd cannot read it.
    """

    end: int
    event: Event | None


class Journal:
    """Append events to a journal with one writer and any number of readers.

    Each event is written by a single `write` of a whole line.  A reader sees either the whole line
    or an incomplete last line, which `read` does not return.  An incomplete line left by a process
    that died is terminated when the journal is opened again, and is skipped from then on.  Threads
    may share a journal.

    Args:
        path: path of the file; its folder is created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open until close()
        if _is_torn(self.path):
            self._file.write(b"\n")

    def append(self, event: Event) -> Event:
        """Append an event and return it with its time."""
        event = replace(event, at=time.time_ns() // 1_000_000)
        line = json.dumps(to_json(event.record()), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self._file.write(line.encode())
        return event

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventBus:
    """Publish the events of a run to its journal and to listeners.

    Args:
        journal: journal of the study.
        listeners: called with each event.
        check: called before an event is appended; raises if the journal may not be written.
    """

    def __init__(
        self,
        journal: Journal,
        listeners: Sequence[Listener] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._listeners = listeners
        self._check = check

    def publish(self, event: Event) -> None:
        """Append the event to the journal (unless its class is not `journaled`), and call the
        listeners with it."""
        if event.journaled:
            self._check()
            event = self._journal.append(event)
        for listener in self._listeners:
            listener(event)


def read(path: str | Path, start: int = 0) -> Iterator[Line]:
    """Read the whole lines of a journal from byte `start` on; none if there is no journal.

    An incomplete last line is not read.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        file.seek(start)
        end = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield Line(end, _parse(line))


def events(path: str | Path) -> list[Event]:
    """Read every event of a journal that this version of raykd knows."""
    return [line.event for line in read(path) if line.event is not None]


def _parse(line: bytes) -> Event | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return parse(record) if isinstance(record, dict) else None


def _is_torn(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
