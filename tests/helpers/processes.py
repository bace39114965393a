"""Processes of a command that a test started, found by a variable of their environment."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def processes_with(variable: str, value: str) -> dict[int, str]:
    """Return the processes whose environment has a value, with their command lines."""
    entry = f"{variable}={value}".encode()
    processes: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if name:  # empty: a process that has ended and waits for its parent
                    processes[pid] = name
    return processes


def wait_until_gone(variable: str, value: str, seconds: float) -> dict[int, str]:
    """Wait until no process has a value in its environment; return those that are left."""
    end = time.monotonic() + seconds
    while (left := processes_with(variable, value)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def kill_all(processes: dict[int, str]) -> None:
    """Kill processes with signal 9."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
