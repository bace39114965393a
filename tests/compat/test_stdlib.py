"""Private parts of the standard library: each test fails when its part is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
from multiprocessing.connection import Client, Listener, wait

from raykd.compat.stdlib import listening_socket


def test_listener_returns_its_socket() -> None:
    """It becomes ready when a caller connects."""
    with Listener(("127.0.0.1", 0)) as listener:
        listening = listening_socket(listener)
        assert isinstance(listening, socket.socket)
        assert listening.getsockname() == listener.address
        assert wait([listening], timeout=0) == []
        with Client(listener.address):
            assert wait([listening], timeout=10) == [listening]


SCRIPT = """\
import atexit, threading, time
from raykd.compat.stdlib import exit_now

threading.Thread(target=time.sleep, args=(600,)).start()
atexit.register(print, "at exit")
print("before")
exit_now(3)
"""


def test_process_ends_after_its_exit_functions() -> None:
    """A running thread does not hold it up."""
    command = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.split("\n") == ["before", "at exit", ""]
