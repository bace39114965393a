"""Stopping of a study that another process runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from raykd.errors import Problem, StudyError
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_lock import Driver, active_driver

POLL_S = 0.2


def stop_study(path: str | Path, *, timeout: float = 120.0) -> Driver:
    """Stop the process that runs a study, as Ctrl-C does: epochs are saved, `--resume` continues.

    Args:
        path: folder of the study.
        timeout: seconds to wait for the end of the process.

    Returns:
        The process that was stopped.

    Raises:
        StudyError: no process runs the study, it runs on another machine, belongs to somebody
            else, or has not ended in time.
    """
    folder, _ = open_folder(path)
    driver = active_driver(folder.path)
    if driver is None:
        raise StudyError(Problem(f"no process runs the study in {folder.path}"))
    identity = driver.identity
    if not identity.is_local:
        raise StudyError(
            Problem(
                f"the study is run by {driver}, not on this machine",
                fix=f"stop it there: kill -INT {identity.pid}",
            )
        )
    try:
        os.kill(identity.pid, stop_signal(identity.pid))
    except PermissionError:
        raise StudyError(
            Problem(f"{driver} belongs to another user", fix="ask that user to stop it")
        ) from None
    deadline = time.monotonic() + timeout
    while driver.is_at_work and active_driver(folder.path) is not None:
        if time.monotonic() > deadline:
            raise StudyError(
                Problem(
                    f"{driver} has not ended after {timeout:.0f} s",
                    fix="wait, or send the signal a second time to end it at once",
                )
            )
        time.sleep(POLL_S)
    return driver


def stop_signal(pid: int) -> signal.Signals:
    """Return SIGINT, or SIGTERM for a process that ignores SIGINT.

    A shell lets the background jobs of a script ignore SIGINT, and raykd respects that.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # not Linux, or the process has ended
        return signal.SIGINT
    fields = dict(line.split(":", 1) for line in status.splitlines())
    ignored = int(fields.get("SigIgn", "0"), 16)
    return signal.SIGTERM if ignored >> (signal.SIGINT - 1) & 1 else signal.SIGINT
