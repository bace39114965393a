"""Sweeper of a Ray session: nothing of it outlives the driver, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.processes import kill_all
from raykd.runtime.session_sweeper import session_processes, swept

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="finds processes in /proc"
)

SLEEPER = "import time; print(flush=True); time.sleep(600)"
DRIVER = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
from raykd.runtime.session_sweeper import swept

def start(driver, log, mode):
    logs = Path(sys.argv[1], f"session_2026_{{driver}}", "logs")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / log).touch()
    with open(logs / log, mode) as file:
        command = [sys.executable, "-c", {SLEEPER!r}]
        fds = dict(pass_fds=[file.fileno()], stdout=subprocess.DEVNULL, start_new_session=True)
        return str(subprocess.Popen(command, **fds).pid)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with swept(sys.argv[1]):
    me = os.getpid()
    agent = start(me, "agent.out", "ab")
    outsiders = [
        start(me, "agent.out", "rb"),
        start(me, "python-core-driver-1.log", "ab"),
        start(1, "agent.out", "ab"),
    ]
    print(agent, *outsiders, flush=True)
    if sys.argv[2] == "waits":
        time.sleep(600)
    if sys.argv[2] == "raises":
        raise SystemExit(3)
"""


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("waits", signal.SIGKILL),
        ("waits", signal.SIGTERM),
        ("waits", signal.SIGINT),
        ("raises", None),
        ("returns", None),
    ],
)
def test_session_ends_with_its_driver(
    way: str, number: signal.Signals | None, tmp_path: Path
) -> None:
    """Readers of its logs, what the driver forked, and sessions of other drivers do not."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), way],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert driver.stdout is not None
    agent, *outsiders = map(int, driver.stdout.readline().split())
    try:
        if number is not None:
            os.kill(driver.pid, number)
        driver.wait(60)
        end = time.monotonic() + 60
        while is_alive(agent) and time.monotonic() < end:
            time.sleep(0.02)
        assert not is_alive(agent) and all(map(is_alive, outsiders))
    finally:
        driver.kill()
        kill_all(dict.fromkeys([agent, *outsiders], ""))


def test_sweeper_ends_without_processes(tmp_path: Path) -> None:
    with swept(str(tmp_path)):
        pass
    assert session_processes(str(tmp_path), os.getpid()) == []


def test_there_is_no_sweeper_without_session() -> None:
    with swept(None):
        pass
