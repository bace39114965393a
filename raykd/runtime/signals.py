"""Signals SIGTERM and SIGHUP, which stop a run as Ctrl-C does.

SLURM, Kubernetes and `docker stop` send SIGTERM; a terminal that is closed sends SIGHUP.  During a
run each of them acts as Ctrl-C (Tune then ends after the present step).  After the clean-up,
`Terminated` ends the process with the usual exit code, 128 + the signal's number.

Handlers of the host program, and signals that it ignores, are respected.  Ray installs its own
handlers, in Python and in C++, whenever it starts or ends in a process; `restore_signal_handlers`
restores ours, or the host's.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from raykd.errors import Terminated

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

WATCHED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Signals whose handlers are restored after Ray has set its own."""

STOPPING = tuple(number for number in WATCHED if number.name in ("SIGTERM", "SIGHUP"))
"""Signals that end a run."""


class _StopSignals:
    """Signal handlers of one run.

    Attributes:
        received: the first signal that stops the run; 0: none.
        hurry: called by further signals during the clean-up; None: before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self.hurry: Callable[[], None] | None = None
        self._before: dict[int, Handler] = {}
        self._handlers: dict[int, Handler] = {}

    def install(self) -> None:
        """Handle the signals that the host program leaves to their default."""
        for number in WATCHED:
            self._before[number] = self._handlers[number] = signal.getsignal(number)
        for number in STOPPING:
            if self._before[number] == signal.SIG_DFL:
                self._handlers[number] = self.receive
        self.keep()

    def keep(self) -> None:
        """Install the handlers of this run again."""
        for number, handler in self._handlers.items():
            if handler is not None:  # None: installed by C code, out of Python's reach
                signal.signal(number, handler)

    def restore(self) -> None:
        """Install the handlers from before the run."""
        self._handlers = self._before
        self.keep()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Act as Ctrl-C; during the clean-up, hurry it."""
        self.received = self.received or number
        if self.hurry is not None:
            self.hurry()
            return
        interrupt = signal.getsignal(signal.SIGINT)  # Tune's, while it runs
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:  # a background job of a shell ignores Ctrl-C
            raise KeyboardInterrupt


_active: list[_StopSignals] = []
"""Signals of the present run; empty if there is none."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP act as Ctrl-C in the context; in other threads nothing changes.

    Raises:
        Terminated: one of them interrupted the run.
    """
    if not _is_main() or _active:
        yield
        return
    stop = _StopSignals()
    _active.append(stop)
    try:
        stop.install()
        yield
    except BaseException as error:
        if stop.received and _is_stop(error):
            raise Terminated(stop.received) from None
        raise
    finally:
        _active.clear()
        stop.restore()


def restore_signal_handlers() -> None:
    """Restore the signal handlers that Ray has replaced."""
    if _is_main():
        for stop in _active:
            stop.keep()


def begin_cleanup(hurry: Callable[[], None] = lambda: None) -> None:
    """Begin the clean-up of a run, which further signals do not interrupt.

    Args:
        hurry: called by each of them.
    """
    for stop in _active:
        stop.hurry = hurry


def received_stop_signal() -> bool:
    """Return whether a signal has stopped the run."""
    return any(stop.received for stop in _active)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, (KeyboardInterrupt, SystemExit))
