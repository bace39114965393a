"""Watch of Ray while a run waits for it.

Without its control service (GCS) every call of Ray blocks for a minute; then Ray's C++ part ends
the process.  So Ray Tune runs in a thread of its own.  The thread of the run only waits: it notices
within a second that a process of Ray has ended, and still writes its journal.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from raykd.errors import Problem, RayLost

CONNECT_S = 3.0
"""Seconds between two connections to a control service, and the limit of each."""

POLL_S = 0.5
"""Seconds between two checks of Ray's processes."""

SILENCE_S = 45.0
"""Seconds in which the control service of a cluster may be away; Ray ends this process after 60."""

STOPPED_POLL_S = 5.0
"""Seconds between two looks for stopped processes."""

STOP_S = 60.0
"""Seconds in which work must end after it was asked to stop."""


class StoppedWorkers:
    """Ends slots and workers of a raylet that were stopped (SIGSTOP) and do not continue.

    A stopped process gives no answer and no error, so its job would wait for good.  Only processes
    of this machine are seen; without `/proc` none.

    Args:
        raylet: process ID of the raylet, the parent of its workers.
        limit: seconds for which a process may be stopped.
    """

    def __init__(self, raylet: int, limit: float) -> None:
        self._raylet, self._limit = raylet, limit
        self._seconds: dict[int, float] = {}
        self._checked = time.monotonic()

    def end(self) -> None:
        """Kill the processes that were stopped for too long; looks at most every few seconds."""
        now = time.monotonic()
        passed = now - self._checked
        if passed < STOPPED_POLL_S:
            return
        self._checked = now
        # after Ctrl-Z this process was stopped as long as they were
        seconds = min(passed, 2 * STOPPED_POLL_S)
        stopped = _stopped_children(self._raylet)
        self._seconds = {pid: self._seconds.get(pid, 0.0) + seconds for pid in stopped}
        for pid, time_stopped in self._seconds.items():
            if time_stopped > self._limit:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _stopped_children(parent: int) -> Iterator[int]:
    """Yield the children of a process that a signal has stopped."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, its_parent = file.read_text().rpartition(")")[2].split()[:2]
            if state == "T" and int(its_parent) == parent:
                yield int(file.parent.name)


@dataclass(frozen=True)
class RayProcesses:
    """Processes that a run cannot continue without.

    Attributes:
        processes: by name; empty if Ray was started elsewhere.
        logs: folder of their logs.
        stopped: ends workers that were stopped.
    """

    processes: Mapping[str, Popen[bytes]]
    logs: str
    stopped: StoppedWorkers | None = None

    def check(self) -> None:
        """Check that all of them are alive.

        Raises:
            RayLost: one has ended.
        """
        if self.stopped is not None:
            self.stopped.end()
        for name, process in self.processes.items():
            code = process.poll()
            if code is not None:
                cause = f"signal {-code}" if code < 0 else f"exit code {code}"
                message = f"Ray ended unexpectedly: {name} is gone ({cause})"
                raise RayLost(Problem(message, fix=f"its logs are in {self.logs}"))


class ControlService:
    """Control service of a cluster that was started elsewhere, and may be started again.

    Args:
        address: "HOST:PORT".
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._answered = self._tried = time.monotonic()

    def check(self) -> None:
        """Check that it accepts connections, at most every few seconds.

        Raises:
            RayLost: it has not done so for too long.
        """
        now = time.monotonic()
        if now - self._tried < CONNECT_S:
            return
        self._tried = now
        try:
            socket.create_connection(self._address, timeout=CONNECT_S).close()
            self._answered = time.monotonic()
        except OSError as error:
            silence = time.monotonic() - self._answered
            if silence > SILENCE_S:
                host, port = self._address
                message = f"Ray's control service at {host}:{port} was away for {silence:.0f} s"
                raise RayLost(Problem(f"{message} ({error})", fix="restart the cluster")) from None


def run_watched(
    work: Callable[[], None], stop: Callable[[], None], ray: RayProcesses | ControlService
) -> None:
    """Run `work` in a thread, and wait for its end.

    Args:
        work: uses Ray.
        stop: asks `work` to end soon; called if the wait is interrupted.
        ray: that `work` needs.

    Raises:
        RayLost: it is gone; `work` may then hang in Ray for good.
        BaseException: what `work` has raised, or what interrupted the wait.
    """
    errors: list[BaseException] = []
    ended = threading.Event()  # an interrupted `Thread.join` takes the thread for ended

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="raykd-tune", daemon=True)
    try:
        thread.start()
        _wait(ended, ray, float("inf"))
    except RayLost:
        raise
    except BaseException:
        stop()
        _wait(ended, ray, STOP_S)
        raise
    finally:
        if ended.is_set():
            thread.join()
    if errors:
        ray.check()  # it explains whatever else went wrong
        raise errors[0]


def _wait(ended: threading.Event, ray: RayProcesses | ControlService, seconds: float) -> None:
    """Wait for an event at most `seconds`, and check Ray meanwhile."""
    while not ended.wait(POLL_S) and seconds > 0:
        ray.check()
        seconds -= POLL_S
