"""Journal of a study: its events as JSON lines, in chronological order.

A run records its events only in this file.  They are uploaded to MLflow during the run or later
(`raykd.tracking.sync`).  Each line contains the time and kind of the event, so reading a journal
again gives the same runs, metrics and timestamps.

Paths of files inside the journal's folder are relative to it, so the folder can be moved.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raykd.tracking.events import (
    EVENTS,
    Event,
    parse,
)
from raykd.tracking.json_types import to_json

Listener = Callable[[Event], object]

WAIT_S = 60.0
"""Seconds for which a write waits for a disk that is full or away."""

PAUSE_S = 0.5
"""Seconds between two attempts."""


@dataclass(frozen=True)
class Line:
    """Line of a journal.

    Attributes:
        end: byte at which the next line begins.
        event: event of the line; None if this version of raykd cannot read it.
        fault: reason why raykd cannot have written the line; empty for a line that was cut off when
            its process was killed, and for an event of another version.
    """

    end: int
    event: Event | None
    fault: str = ""


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
        """Append an event and return it with its time.

        Raises:
            OSError: as `append_whole`.
        """
        event = replace(event, at=time.time_ns() // 1_000_000)
        line = json.dumps(to_json(event.record()), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            append_whole(self._file, line.encode())
        return event

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def append_whole(file: io.FileIO, content: bytes) -> None:
    """Append lines to a file; all of them or nothing.

    Waits up to `WAIT_S` seconds while the disk is full or away, and says so.

    Args:
        file: opened for appending, without a buffer.
        content: whole lines.

    Raises:
        OSError: the disk is still full or away.
    """
    deadline = None
    while True:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) == len(content):
                return
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        except OSError as raised:
            error = raised
        with contextlib.suppress(OSError):
            file.truncate(size)
        if deadline is None:
            deadline = time.monotonic() + WAIT_S
            text = f"{file.name} cannot be written: {error.strerror}; waiting up to {WAIT_S:.0f} s"
            with contextlib.suppress(OSError):  # it may be a file on the same disk
                print(text, file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            raise OSError(error.errno, error.strerror, file.name)
        time.sleep(PAUSE_S)


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

    def publish(self, event: Event) -> Event:
        """Append the event to the journal (unless its class is not `journaled`), and call the
        listeners with it.  Return it as it was written, with its time."""
        if event.journaled:
            self._check()
            event = self._journal.append(event)
        for listener in self._listeners:
            listener(event)
        return event


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
            yield _parse(line, end)


def events(path: str | Path) -> list[Event]:
    """Read every event of a journal that this version of raykd knows."""
    return [line.event for line in read(path) if line.event is not None]


def _parse(line: bytes, end: int) -> Line:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        is_cut = not line.strip() or (line.startswith(b"{") and not line.endswith(b"}\n"))
        return Line(end, None, "" if is_cut else "not an event: it is not JSON")
    kind = record.get("event") if isinstance(record, dict) else None
    if not isinstance(kind, str):
        return Line(end, None, "not an event")
    event = parse(record)
    return Line(end, event, f"not a valid `{kind}` event" if not event and kind in EVENTS else "")


def _is_torn(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
