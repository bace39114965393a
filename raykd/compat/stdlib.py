"""Private parts of the standard library (Python 3.11 to 3.14)."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
from multiprocessing.connection import Listener
from typing import NoReturn


def listening_socket(listener: Listener) -> socket.socket:
    """Return the socket of a `multiprocessing` listener.

    `Listener` has no public way to wait for a caller and for a message at the same time, nor to
    limit the time of a handshake.
    """
    return listener._listener._socket  # type: ignore[attr-defined]


def exit_now(code: int) -> NoReturn:
    """End the process after its exit functions, without tearing down the interpreter.

    The teardown walks through all imported modules: one to two seconds after a search.  It frees
    nothing that the system does not free anyway.  `os._exit` alone would skip the exit functions,
    and no public name runs them.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None if it is closed
            stream.flush()
    os._exit(code)
