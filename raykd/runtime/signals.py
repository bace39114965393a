"""SIGTERM and SIGHUP stop a run as Ctrl-C does.

SLURM, Kubernetes and `docker stop` send SIGTERM, a terminal that is closed SIGHUP.  While a run is
under way each of them acts as Ctrl-C (Tune then ends after the present step); when the run has
been put in order, `Terminated` leaves with the usual exit code, 128 + the signal's number.

A handler that the host program installed itself is respected, and so is a signal that it ignores.
Ray installs handlers of its own, in Python and in C++, whenever it starts or ends in a process:
`restore_signal_handlers` puts ours, or the host's, back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from raykd.errors import Terminated

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

WATCHED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Signals whose handlers are put back after Ray has set its own."""

STOPPING = tuple(number for number in WATCHED if number.name in ("SIGTERM", "SIGHUP"))
"""Signals that end a run."""


class _Stop:
    """The signals of one run."""

    def __init__(self) -> None:
        self.received = 0
        self.hurry: Callable[[], None] | None = None
        self.before: dict[int, Handler] = {}
        self.wanted: dict[int, Handler] = {}

    def install(self) -> None:
        """Take the signals that the host program leaves to their default."""
        for number in WATCHED:
            self.before[number] = self.wanted[number] = signal.getsignal(number)
        for number in STOPPING:
            if self.before[number] == signal.SIG_DFL:
                self.wanted[number] = self.receive
        self.keep()

    def keep(self) -> None:
        """Have the wanted handlers in place, whatever was installed meanwhile."""
        for number, handler in self.wanted.items():
            if handler is not None:  # None: installed by C code, and beyond Python's reach
                signal.signal(number, handler)

    def restore(self) -> None:
        """Have the handlers of before in place."""
        self.wanted = self.before
        self.keep()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Act as Ctrl-C; where the run is being put in order already, hurry that up."""
        self.received = self.received or number
        if self.hurry is not None:
            self.hurry()
            return
        interrupt = signal.getsignal(signal.SIGINT)  # Tune's, while it runs
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:  # a background job of a shell ignores Ctrl-C
            raise KeyboardInterrupt


_present: list[_Stop] = []
"""The run's under way, if any."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP act as Ctrl-C inside; outside the main thread nothing changes.

    Raises:
        Terminated: one of them came, and the run has been interrupted.
    """
    if not _is_main() or _present:
        yield
        return
    stop = _Stop()
    _present.append(stop)
    try:
        stop.install()
        yield
    except BaseException as error:
        if stop.received and _is_stop(error):
            raise Terminated(stop.received) from None
        raise
    finally:
        _present.clear()
        stop.restore()


def restore_signal_handlers() -> None:
    """Put the handlers back that Ray has replaced."""
    if _is_main():
        for stop in _present:
            stop.keep()


def closing(hurry: Callable[[], None] = lambda: None) -> None:
    """From now on a run is put in order, which more signals do not interrupt.

    Args:
        hurry: called when one comes.
    """
    for stop in _present:
        stop.hurry = hurry


def received_stop_signal() -> bool:
    """Return whether such a signal has come."""
    return any(stop.received for stop in _present)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, (KeyboardInterrupt, SystemExit))
