"""Channel between a slot and rank 0 of its worker group: numbered requests and responses.

A worker group that starts again announces itself by a new connection, so the slot knows that a
pending request is lost.  The numbers keep a late response from being taken for the next one.
During a request rank 0 reports its progress, so that the slot notices a group that hangs.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait

from raykd.compat.stdlib import listening_socket
from raykd.runtime.jobs import AnyJob, JobFailure, Report
from raykd.runtime.progress import Progress, progress_of

HANDSHAKE_S = 10
"""Seconds that a caller may be silent in the middle of a message."""

BEAT_S = 5.0
"""Seconds between two reports of progress."""


@dataclass(frozen=True)
class Address:
    """Address of a slot, and the key that proves that a caller belongs to it."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True)
class StartJob:
    """Start a job and run it up to its first report; it resumes from its saved state, if any."""

    job: AnyJob


@dataclass(frozen=True)
class ContinueJob:
    """Run the job up to its next report."""


@dataclass(frozen=True)
class Exit:
    """End the worker group."""


Action = StartJob | ContinueJob | Exit


@dataclass(frozen=True)
class Request:
    """Message of a slot to its workers."""

    id: int
    action: Action


@dataclass(frozen=True)
class Response:
    """Message of the workers to their slot: the outcome of the request with the same id."""

    id: int
    outcome: Report | JobFailure


class WorkersLost(Exception):
    """The worker group went away before it responded."""


class WorkersGone(Exception):
    """The worker group does not come back; the message is the reason."""


class Channel:
    """Slot's end of the channel.

    Args:
        host: the address of this node that the workers can reach.
        check_alive: raises (any exception) when no worker group can announce itself any more;
            called while waiting.

    Attributes:
        announcements: number of worker groups that have announced themselves.
        progress: last one that a worker group has reported.
    """

    def __init__(self, host: str, check_alive: Callable[[], None] = lambda: None) -> None:
        key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), family="AF_INET", backlog=8, authkey=key)
        self._socket = listening_socket(self._listener)
        self._limit_handshakes()
        port = self._listener.address[1]
        self.address = Address(host, int(port), key)
        self._check_alive = check_alive
        self._connection: Connection | None = None
        self._last_id = 0
        self.announcements = 0
        self.progress = Progress(0, "")

    def wait_for_workers(self, timeout: float) -> None:
        """Wait until a worker group has announced itself.

        Raises:
            WorkersGone: none did within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._connection is None:
            self._check_alive()
            if time.monotonic() > deadline:
                raise WorkersGone(
                    f"no worker group announced itself within {timeout:.0f} s; "
                    "`raykd doctor` and -v show what Ray is doing"
                )
            self._accept_caller(0.2)

    def request(self, action: Action) -> Report | JobFailure:
        """Send a request and wait for its response without a time limit.

        Raises:
            WorkersLost: the group went away first; it may announce itself again.
        """
        connection = self._connection
        if connection is None:
            raise WorkersLost("no worker group is connected")
        self._last_id += 1
        try:
            connection.send(Request(self._last_id, action))
            while True:
                ready = wait([connection, self._socket], timeout=1.0)
                if connection in ready:
                    message: Response | Progress = connection.recv()
                    if isinstance(message, Progress):
                        self.progress = message
                        self._check_alive()
                    elif message.id == self._last_id:
                        return message.outcome
                elif ready:
                    self._accept_caller(0)
                    if self._connection is not connection:
                        raise WorkersLost("the worker group started again")
                else:
                    self._check_alive()
        except (EOFError, OSError) as error:
            if self._connection is connection:
                self._connection = None
            raise WorkersLost(f"the worker group went away ({type(error).__name__})") from error

    def close(self) -> None:
        """End the worker group, without waiting for a response."""
        if self._connection is not None:
            with contextlib.suppress(EOFError, OSError):
                self._connection.send(Request(self._last_id + 1, Exit()))
            self._connection.close()
            self._connection = None
        self._listener.close()

    def _limit_handshakes(self) -> None:
        """Limit the time of handshakes: a caller that stays silent must not block the slot.

        Linux passes the time limit of the listening socket on to the connections it accepts.
        """
        limit = struct.pack("ll", HANDSHAKE_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _accept_caller(self, timeout: float) -> None:
        """Accept a new worker group's connection, if one calls within `timeout` seconds."""
        if not wait([self._socket], timeout=timeout):
            return
        try:
            connection = self._listener.accept()
        except Exception:  # noqa: BLE001 - a stranger may send anything
            return  # it did not know the key, or hung up
        if self._connection is not None:
            self._connection.close()
        self._connection = connection
        self.announcements += 1


class ChannelClient:
    """Rank 0's end of the channel."""

    def __init__(self, address: Address) -> None:
        self._connection = Client((address.host, address.port), authkey=address.key)
        self._sending = threading.Lock()
        self._busy = threading.Event()

    def report_progress(self, seconds: float = BEAT_S) -> None:
        """Start to report the progress of the calling thread, as long as a request is pending."""
        thread = threading.get_ident()

        def report() -> None:
            with contextlib.suppress(OSError):  # the slot is gone
                while self._busy.wait():
                    time.sleep(seconds)
                    with self._sending:
                        if self._busy.is_set():
                            self._connection.send(progress_of(thread))

        threading.Thread(target=report, name="raykd-progress", daemon=True).start()

    def receive(self, timeout: float) -> Request | None:
        """Return the next request; None if none came within `timeout` seconds.

        Raises:
            EOFError: the slot is gone.
        """
        if not self._connection.poll(timeout):
            return None
        request: Request = self._connection.recv()
        self._busy.set()
        return request

    def respond(self, request: Request, outcome: Report | JobFailure) -> None:
        """Send the outcome of a request."""
        with self._sending:
            self._busy.clear()
            self._connection.send(Response(request.id, outcome))
