"""How a slot talks to rank 0 of its worker group: numbered commands and answers on one socket.

A worker group that is started again announces itself by a new connection; a command still under
way is then known to be lost.  Numbers keep a late answer from being taken for the next one.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, Literal

from raykd.compat.stdlib import listening_socket

Verb = Literal["start", "epoch", "stop", "exit"]

SILENCE_S = 10
"""How long a caller may fall silent in the middle of a message."""


@dataclass(frozen=True)
class Address:
    """Where a slot listens, and the key that proves a caller belongs to it."""

    host: str
    port: int
    key: bytes


@dataclass(frozen=True)
class Command:
    """What the slot asks."""

    id: int
    verb: Verb
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the workers say of the command with the same id."""

    id: int
    body: Mapping[str, Any]


class WorkersLost(Exception):
    """The worker group went away before it answered."""


class WorkersGone(Exception):
    """The worker group is not coming back; the reason is the message."""


class Mailbox:
    """The slot's side.

    Args:
        host: the address of this node that the workers can reach.
        still_coming: raises (any exception) once no worker group can announce itself any more;
            asked while waiting.
    """

    def __init__(self, host: str, still_coming: Callable[[], None] = lambda: None) -> None:
        key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), family="AF_INET", backlog=8, authkey=key)
        self._socket = listening_socket(self._listener)
        self._limit_handshakes()
        port = self._listener.address[1]
        self.address = Address(host, int(port), key)
        self._still_coming = still_coming
        self._connection: Connection | None = None
        self._last_id = 0
        self.announcements = 0

    def wait_for_workers(self, timeout: float) -> None:
        """Wait until a worker group has announced itself.

        Raises:
            WorkersGone: none did within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._connection is None:
            self._still_coming()
            if time.monotonic() > deadline:
                raise WorkersGone(
                    f"no worker group announced itself within {timeout:.0f} s; "
                    "`raykd doctor` and -v show what Ray is doing"
                )
            self._accept_if_calling(0.2)

    def ask(self, verb: Verb, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Send a command and wait for its answer, however long that takes.

        Raises:
            WorkersLost: the group went away first; it may announce itself again.
        """
        connection = self._connection
        if connection is None:
            raise WorkersLost("no worker group is connected")
        self._last_id += 1
        try:
            connection.send(Command(self._last_id, verb, body or {}))
            while True:
                ready = wait([connection, self._socket], timeout=1.0)
                if connection in ready:
                    answer = connection.recv()
                    if answer.id == self._last_id:
                        return answer.body
                elif ready:
                    self._accept_if_calling(0)
                    if self._connection is not connection:
                        raise WorkersLost("the worker group started again")
                else:
                    self._still_coming()
        except (EOFError, OSError) as error:
            if self._connection is connection:
                self._connection = None
            raise WorkersLost(f"the worker group went away ({type(error).__name__})") from error

    def close(self) -> None:
        """Say goodbye, without waiting for an answer."""
        if self._connection is not None:
            with contextlib.suppress(EOFError, OSError):
                self._connection.send(Command(self._last_id + 1, "exit", {}))
            self._connection.close()
            self._connection = None
        self._listener.close()

    def _limit_handshakes(self) -> None:
        """A caller that connects and says nothing must not hold the slot up for ever.

        Linux hands the listening socket's time limit on to the connections it accepts.
        """
        limit = struct.pack("ll", SILENCE_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _accept_if_calling(self, timeout: float) -> None:
        if not wait([self._socket], timeout=timeout):
            return
        try:
            newcomer = self._listener.accept()
        except Exception:  # noqa: BLE001 - a stranger may send anything
            return  # not one of ours: it did not know the key, or hung up
        if self._connection is not None:
            self._connection.close()
        self._connection = newcomer
        self.announcements += 1


class WorkerEnd:
    """Rank 0's side."""

    def __init__(self, address: Address) -> None:
        self._connection = Client((address.host, address.port), authkey=address.key)

    def next(self, timeout: float) -> Command | None:
        """The next command; None where none came within `timeout` seconds.

        Raises:
            EOFError: the slot is gone.
        """
        if not self._connection.poll(timeout):
            return None
        return self._connection.recv()

    def answer(self, command: Command, body: Mapping[str, Any]) -> None:
        self._connection.send(Answer(command.id, body))
