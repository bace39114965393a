"""Process that ends a Ray session when its driver is gone, however it ended.

After a `kill -9` of the driver its raylet and control service (GCS) end with it, but two agents of
the raylet look for the control service for a minute before they give up.  This process waits for
the end of a pipe from the driver, then kills what is left of the session.  A pipe ends whenever
its writer does.

Processes of Ray are found by the log files that they write.  Ray replaces their command lines,
which also overwrites a part of their environment.

The file runs as a script, without raykd, Ray or site packages: it starts in 20 ms and needs 8 MB.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SWEEPS, PAUSE_S = 20, 0.25
"""Number of sweeps after the end of the driver, and seconds between two of them."""


@contextmanager
def swept(folder: str | None) -> Iterator[None]:
    """Kill what is left of this process's Ray session at the end of the context or of the process.

    Without `/proc` nothing is killed.

    Args:
        folder: of the sessions, without a link in its path; None: there is nothing to kill.
    """
    if folder is None or not Path("/proc/self/fd").exists():
        yield
        return
    sweeper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, folder, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C on the terminal must not reach it
    )
    try:
        yield
    finally:
        assert sweeper.stdin is not None
        sweeper.stdin.close()
        sweeper.wait()


def session_processes(folder: str, driver: int) -> list[int]:
    """Return the processes that write a log of the session of a driver.

    The name of a session ends with the process ID of its driver.  The log of the driver itself may
    be open in processes that it forked, which are no part of the session.
    """
    log = re.compile(rf"{re.escape(folder)}/session_[^/]*_{driver}/logs/(?!.*core-driver)")
    pids = []
    for process in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # it has ended, or belongs to another user
            pid = int(process.name)
            if pid != driver and any(map(log.match, _written_files(process / "fd"))):
                pids.append(pid)
    return pids


def _written_files(descriptors: Path) -> Iterator[str]:
    """Yield the files that a process has open for writing."""
    for descriptor in descriptors.iterdir():
        with suppress(OSError):
            if descriptor.lstat().st_mode & stat.S_IWUSR:
                yield os.readlink(descriptor)


def main(folder: str, driver: int) -> None:
    """Wait for the end of standard input, then kill the processes of a session."""
    sys.stdin.buffer.read()
    for _ in range(SWEEPS):
        pids = session_processes(folder, driver)
        if not pids:
            return
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
