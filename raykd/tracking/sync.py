"""Upload of a journal to MLflow.

`Tracker` follows a journal in its own thread, so training is not delayed; `upload_journal` uploads
in the foreground.  A cursor next to the journal (`<journal>.sent`) has the upload position of each
store.  It is written after the upload.  Events uploaded before a crash but not recorded in the
cursor are uploaded again, which changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from raykd.tracking.cursor import Cursor, Sent
from raykd.tracking.events import ArtifactSaved, ModelSaved, RunStarted, StudyStarted
from raykd.tracking.journal import Line, read
from raykd.tracking.journal_state import JournalState, Upload, run_of
from raykd.tracking.mlflow_client import connect
from raykd.tracking.mlflow_writer import MlflowWriter, is_refusal, is_unreachable
from raykd.tracking.store_uri import absolute, masked

CHUNK = 200  # events uploaded per update of the cursor
HEAVY = (ModelSaved, ArtifactSaved)  # a chunk ends after such an event
REFUSALS_ALLOWED = 2  # tries of a rejected event: the second one on a new connection
FAILURES_ALLOWED = 4  # tries of an event that fails for an unknown reason
MAX_PAUSE = 10.0  # seconds between two tries
QUIET_S = 0.2  # without an event, after which those before are delivered
PATIENCE_S = 3.0  # how long such a pause is waited for
FAREWELL_PAUSE = 1.0  # the same while `close` waits


@dataclass(frozen=True)
class Status:
    """Progress of the upload to a store.

    Attributes:
        pending: number of events that are not in MLflow yet.
        delivered: number of events uploaded or skipped since the start.
        refused: number of them that the store rejected.
        error: last error; empty if there is none.  Errors of rejected events are kept.
    """

    pending: int = 0
    delivered: int = 0
    refused: int = 0
    error: str = ""

    def __str__(self) -> str:
        if self.refused:
            waiting = f"{self.pending} events wait, " if self.pending else ""
            return f"{waiting}{self.refused} refused by MLflow ({self.error})"
        summary = f"{self.pending} events wait" if self.pending else "all events are in MLflow"
        return summary + (f" ({self.error})" if self.error else "")


class Tracker:
    """Follow a journal and upload it to MLflow, without blocking the caller or raising errors.

    Args:
        journal_path: path of the journal, which may not exist yet.
        uri: MLflow's tracking URI.
        verbose: allow MLflow to print.
        allow_code: networks of the study may run code of their files, see `read_network`.
        poll: seconds between two reads of the journal.
        start_after: seconds before MLflow is imported, so that the import does not slow down the
            start of the study.  `close` does not wait for them.
    """

    def __init__(
        self,
        journal_path: str | Path,
        uri: str,
        *,
        verbose: bool = False,
        allow_code: bool = False,
        poll: float = 0.5,
        start_after: float = 2.0,
    ) -> None:
        self._uploader = Uploader(journal_path, uri, verbose=verbose, allow_code=allow_code)
        self._poll = poll
        self._start_after = start_after
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._flushed = False
        self._last_took = 0.0
        self._thread = threading.Thread(target=self._run, name="raykd-tracker", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Status:
        """Return the progress of the upload and the last error."""
        return self._uploader.status

    def close(self, timeout: float = 30.0) -> bool:
        """Upload the remaining events for at most `timeout` seconds; return True if all were.

        The rest, and models and files that the store rejected, can be uploaded later from the
        journal with `raykd sync`.
        """
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return self._flushed and not self._uploader.refused

    def abandon(self) -> None:
        """Stop uploading because another process does it."""
        self._abandoned.set()
        self._closing.set()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        self._closing.wait(self._start_after)
        pause = self._poll
        with contextlib.closing(self._uploader) as uploader:
            while not self._abandoned.is_set():
                self._wait_for_calm()
                last_look = self._closing.is_set()
                began = time.monotonic()
                try:
                    busy = uploader.step()
                except Exception as error:  # noqa: BLE001 - no error may stop the study
                    uploader.trouble(error)
                    pause = min(2 * pause, MAX_PAUSE)
                    self._rest(pause)
                    continue
                pause = self._poll
                self._last_took = time.monotonic() - began
                if not busy and last_look:
                    self._flushed = True
                    return
                if not busy:
                    self._closing.wait(pause)

    def _wait_for_calm(self) -> None:
        """Wait while events are written in quick succession, as between two trials.

        The upload and the driver share the interpreter.  Without this wait, a slot waits 43 ms
        instead of 28 ms for its next trial (benchmarks/turnaround.py).  If there is no pause and
        events accumulate, half of the time is left to the driver.
        """
        began = time.monotonic()
        while not self._closing.is_set() and time.monotonic() < began + PATIENCE_S:
            quiet, waited = self._uploader.silence(), time.monotonic() - began
            piled_up = self._uploader.status.pending >= CHUNK
            if quiet >= QUIET_S or (piled_up and waited >= self._last_took):
                return
            self._closing.wait(QUIET_S - quiet)

    def _rest(self, pause: float) -> None:
        """Wait before the next try; return early once `close` is called."""
        if not self._closing.is_set():
            self._closing.wait(pause)
        else:
            self._abandoned.wait(min(pause, FAREWELL_PAUSE))


def upload_journal(
    journal_path: str | Path,
    uri: str,
    *,
    from_start: bool = False,
    patience: float = 60.0,
    allow_code: bool = False,
    verbose: bool = False,
    report: Callable[[Status], None] | None = None,
) -> Status:
    """Upload the journal to MLflow.

    Args:
        allow_code: networks may run code of their files: those that consist of layers of your own.
        from_start: upload everything again; existing data in MLflow are not changed.
        patience: seconds to keep trying while the store is unreachable.
        report: called with the progress after each chunk.

    Raises:
        ValueError: there is no journal, it contains no study, another process uploads it, or the
            store remains unreachable.
    """
    if not Path(journal_path).is_file():
        raise ValueError(f"{journal_path}: no such journal; name the folder of a study that ran")
    if not any(isinstance(line.event, StudyStarted) for line in read(journal_path)):
        raise ValueError(f"{journal_path}: no study in it; is it a study's journal?")
    with contextlib.closing(
        Uploader(journal_path, uri, verbose=verbose, allow_code=allow_code)
    ) as uploader:
        if from_start:
            uploader.forget()
        while _patiently(uploader, patience):
            if report is not None:
                report(uploader.status)
        return uploader.status


def _patiently(uploader: Uploader, patience: float) -> bool:
    """Upload the next chunk; retry for `patience` seconds."""
    until, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            return uploader.step()
        except Exception as error:
            uploader.trouble(error)
            if time.monotonic() + pause > until:
                raise ValueError(
                    f"MLflow at {uploader.place}: {uploader.status.error}; "
                    f"{uploader.status.pending} events wait in {uploader.path}"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)


class Uploader:
    """Read and upload a journal chunk by chunk; the caller controls the timing."""

    def __init__(
        self, path: str | Path, uri: str, *, verbose: bool, allow_code: bool = False
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self.place = masked(absolute(uri))
        self._uri = absolute(uri)
        self._verbose = verbose
        self._allow_code = allow_code
        self._cursor = Cursor(self.path, self.place)
        self._lock: int | None = None
        self._status = Status()
        self.refused: dict[int, str] = {}
        """Models and files that the store rejected, by the byte at which their event ends."""
        self._begin(None)

    def _begin(self, sent: int | None) -> None:
        """Restart at the first byte; `sent`: bytes already uploaded; None: see the cursor."""
        self._sent = sent
        self._read_to = 0
        self._state = JournalState()
        self._chunk: list[tuple[int, Upload]] = []  # each with the byte at which its line ends
        self._writer: MlflowWriter | None = None
        self._tries: dict[int, int] = {}
        self._again: set[int] = set()  # rejected before, to be tried once more

    @property
    def status(self) -> Status:
        return replace(self._status, pending=len(self._chunk) + self._unread())

    def silence(self) -> float:
        """Return the seconds since the last write to the journal, at least 0."""
        try:
            return max(0.0, time.time() - os.stat(self.path).st_mtime)
        except OSError:
            return math.inf

    def trouble(self, error: Exception) -> None:
        self._writer = None
        self._status = replace(self._status, error=self._say(error))

    def forget(self) -> None:
        """Start again with the first event."""
        self._begin(0)
        self.refused = {}

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def step(self) -> bool:
        """Upload the next chunk; return True if there was one.

        Raises:
            Exception: the store is unreachable; the chunk is kept.
        """
        if self._lock is None:
            self._lock = _locked(self.path)
        if self._sent is None:
            stored = self._cursor.load()
            self._sent, self.refused = stored.end, dict(stored.refused)
            self._again = set(self.refused)
        if not self._chunk and not self._fill():
            return False
        if self._state.study is None:
            raise ValueError(f"{self.path}: its first event is no study")
        writer = self._connected()
        if writer is None:
            return True
        self._upload(writer)
        self._sent = max(self._sent, self._chunk[-1][0])
        self._cursor.save(Sent(self._sent, writer.experiment, writer.pages, self.refused))
        # other threads read the status: an event must not be both delivered and pending
        delivered = self._status.delivered + len(self._chunk)
        self._chunk, self._tries = [], {}
        self._status = replace(self._status, delivered=delivered)
        return True

    def _fill(self) -> bool:
        """Read the next chunk of events that are not uploaded yet."""
        assert self._sent is not None
        for line in read(self.path, self._read_to):
            self._read_to = line.end
            upload = self._next(line)
            if upload is not None and (line.end > self._sent or line.end in self._again):
                self._chunk.append((line.end, upload))
            if self._chunk and (len(self._chunk) >= CHUNK or isinstance(line.event, HEAVY)):
                break
        return bool(self._chunk)

    def _next(self, line: Line) -> Upload | None:
        if line.event is None:
            return None
        try:
            return self._state.update(line.event)
        except KeyError as error:
            self._refuse(str(error.args[0]))
            return None

    def _connected(self) -> MlflowWriter | None:
        """Return the writer, or None if the store was replaced and the upload restarts."""
        if self._writer is None:
            client = connect(self._uri, verbose=self._verbose)
            writer = MlflowWriter(
                client,
                self._state,
                self.path.parent,
                self._uri,
                partial(start_times, self.path),
                allow_code=self._allow_code,
            )
            if self._sent and not writer.complete:
                self.forget()
                return None
            self._writer = writer
        return self._writer

    def _upload(self, writer: MlflowWriter) -> None:
        for end, upload in self._chunk:
            try:
                writer.write(upload)
                self.refused.pop(end, None)
            except Exception as error:  # noqa: BLE001 - raised again if it may be temporary
                self._judge(error, end)
                event = upload.event
                reason = f"{event.kind} of {run_of(event) or 'study'}: {self._say(error)}"
                self._refuse(reason)
                if isinstance(event, HEAVY):
                    self.refused[end] = reason
                with contextlib.suppress(Exception):
                    writer.complain(event, self._say(error))
        try:
            refusals = writer.flush(tolerant=self._tries.get(-1, 0) > 0)
        except Exception as error:
            self._judge(error, -1)
            raise
        for error in refusals:
            self._refuse(self._say(error))
        if not self._status.refused:
            self._status = replace(self._status, error="")

    def _judge(self, error: Exception, place: int) -> None:
        """Raise `error` again if another try is allowed."""
        if is_unreachable(error):
            raise error
        self._tries[place] = self._tries.get(place, 0) + 1
        allowed = REFUSALS_ALLOWED if is_refusal(error) else FAILURES_ALLOWED
        if self._tries[place] < allowed:
            raise error

    def _refuse(self, problem: str) -> None:
        self._status = replace(self._status, refused=self._status.refused + 1, error=problem)

    def _say(self, error: Exception) -> str:
        message = masked(str(error)) or type(error).__name__
        return message if len(message) <= 500 else message[:500] + " ..."

    def _unread(self) -> int:
        """Return the number of lines of the journal that are not read yet."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read_to)
                return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        except OSError:
            return 0


def start_times(journal: Path) -> dict[str, set[int]]:
    """Return the times at which the study and its runs started, by the tag `raykd.id`."""
    times: dict[str, set[int]] = {}
    study = ""
    for line in read(journal):
        match line.event:
            case StudyStarted() as event:
                study = event.id
                times.setdefault(study, set()).add(event.at)
            case RunStarted() as event:
                times.setdefault(f"{study}/{event.id}", set()).add(event.at)
            case _:
                pass
    return times


def _locked(journal: Path) -> int:
    """Return an open file that holds the journal's upload lock until it is closed.

    Two concurrent uploads would create runs twice.

    Raises:
        ValueError: another process holds the lock.
    """
    file = os.open(journal.with_name(journal.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise ValueError(f"{journal}: another process is sending it; wait for it") from error
    except (ImportError, OSError):  # no locks on Windows and some network file systems
        pass
    return file
