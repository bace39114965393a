"""Lock of a study's folder: one process writes at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raykd.errors import StudyError
from raykd.tracking.events import Note, StudyEnded
from raykd.tracking.journal import EventBus, Journal, events
from raykd.tuning import study_lock as lock
from raykd.tuning.study_lock import (
    LOCK,
    RECORD,
    STALE_S,
    TRUSTED_S,
    Identity,
    LockLost,
    active_driver,
    check_lock,
    is_lost,
    locked,
    read_driver,
)

HOLDER = """\
import sys, time
from pathlib import Path
from raykd.tuning.study_lock import locked
with locked(Path(sys.argv[1]), "search"):
    print("held", flush=True)
    time.sleep(60)
"""

PRESENT = Identity.of_this_process()
ELSEWHERE = replace(PRESENT, host="elsewhere", boot="another-boot", pid=1, started=12345)
CONTAINER = replace(PRESENT, host="container", namespace="pid:[1]", pid=1, started=12345)
"""A process of this machine whose number means nothing here."""


@contextmanager
def locked_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def write_record(folder: Path, identity: Identity, age: float = 0.0, **changed: Any) -> None:
    """Write a record as another process would."""
    content = {**asdict(identity), "format": 1, "work": "search", "since": time.time() - 999}
    content |= {"token": "another", "released": False, **changed}
    (folder / RECORD).write_text(json.dumps(content))
    then = time.time() - age
    os.utime(folder / RECORD, (then, then))


def refusal(folder: Path) -> str:
    with pytest.raises(StudyError) as refused, locked(folder, "search"):
        pass
    return str(refused.value)


def test_lock_and_release(tmp_path: Path) -> None:
    assert active_driver(tmp_path) is None
    with locked(tmp_path, "search"):
        driver = active_driver(tmp_path)
        assert driver is not None and driver.identity == PRESENT and driver.work == "search"
        assert f"process {os.getpid()}" in str(driver)
    assert active_driver(tmp_path) is None
    with locked(tmp_path, "pairs"):
        assert active_driver(tmp_path) is not None


def test_second_driver_raises_with_owner(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as process:
        message = refusal(tmp_path)
        assert (
            f"process {process.pid} on {PRESENT.host}, since 2" in message
            and "raykd search" in message
        )
        driver = active_driver(tmp_path)
        assert driver is not None and driver.identity.pid == process.pid
        process.kill()
        process.wait()
        assert active_driver(tmp_path) is None, "it died without giving the folder back"
        with locked(tmp_path, "search"):
            assert read_driver(tmp_path) == replace(
                read_driver(tmp_path) or driver, identity=PRESENT, released=False
            )


def test_suspended_driver_keeps_its_lock(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        while not lock._is_suspended(process.pid):
            time.sleep(0.01)
        assert f"kill -CONT {process.pid}" in refusal(tmp_path)


def test_second_thread_raises(tmp_path: Path) -> None:
    message: list[str] = []
    with locked(tmp_path, "search"):
        thread = threading.Thread(target=lambda: message.append(refusal(tmp_path)))
        thread.start()
        thread.join()
        (tmp_path / "link").symlink_to(tmp_path)
        message.append(refusal(tmp_path / "link"))
        # The failed tries must not have freed the operating system's lock.
        code = HOLDER.replace("time.sleep(60)", "")
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1 and f"process {os.getpid()}" in run.stderr
    assert all(f"process {os.getpid()}" in text for text in message) and len(message) == 2


def test_reused_pid_of_dead_process(tmp_path: Path) -> None:
    """In a container a driver is always process 1; the start time distinguishes processes."""
    write_record(tmp_path, replace(PRESENT, started=PRESENT.started - 1))
    with locked(tmp_path, "search"):
        pass


@pytest.mark.parametrize(("age", "fresh"), [(STALE_S - 10, True), (STALE_S + 10, False)])
def test_silent_driver_on_another_machine_is_dead(age: float, fresh: bool, tmp_path: Path) -> None:
    write_record(tmp_path, ELSEWHERE, age)
    assert (active_driver(tmp_path) is not None) is fresh
    if fresh:
        message = refusal(tmp_path)
        assert "process 1 on elsewhere" in message and f"{age:.0f} s ago" in message
        assert str(tmp_path / LOCK) in message
    else:
        with locked(tmp_path, "search"):
            pass


@pytest.mark.parametrize(("age", "fresh"), [(0, True), (TRUSTED_S + 5, False)])
def test_dead_container_on_this_machine_releases_its_lock(
    age: float, fresh: bool, tmp_path: Path
) -> None:
    write_record(tmp_path, CONTAINER, age)
    if fresh:
        assert "process 1 on container" in refusal(tmp_path)
    else:
        with locked(tmp_path, "search"):
            pass


def test_record_decides_without_file_system_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with locked(tmp_path, "search"):
        monkeypatch.setattr(lock, "_LOCKS", {})
        assert f"process {os.getpid()}" in refusal(tmp_path)
        monkeypatch.undo()


def test_driver_that_slept_too_long_detects_it_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = lock._clock()
    monkeypatch.setattr(lock, "BEAT_S", 1e6)
    monkeypatch.setattr(lock, "_clock", lambda: now)
    path = tmp_path / "journal.jsonl"
    with locked(tmp_path, "search"), Journal(path) as journal:
        bus = EventBus(journal, [], lambda: check_lock(tmp_path))
        bus.publish(Note(id=None))
        write_record(tmp_path, ELSEWHERE)  # another process took it over
        now += STALE_S + 1
        with pytest.raises(LockLost, match="process 1 on elsewhere"):
            bus.publish(StudyEnded(status="finished"))
        with pytest.raises(LockLost):
            check_lock(tmp_path)
        assert is_lost(tmp_path) and not is_lost(tmp_path / "other")
    assert [event.kind for event in events(path)] == ["note"]
    driver = read_driver(tmp_path)
    assert driver is not None and driver.token == "another", "it is not ours to give back"


@pytest.mark.parametrize(("silent", "lost"), [(TRUSTED_S + 1, False), (STALE_S + 1, True)])
def test_removed_record_is_rewritten(
    silent: float, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = lock._clock()
    monkeypatch.setattr(lock, "BEAT_S", 1e6)
    monkeypatch.setattr(lock, "_clock", lambda: now)
    with locked(tmp_path, "search"):
        (tmp_path / RECORD).unlink()
        now += silent
        assert is_lost(tmp_path) is lost
        assert (active_driver(tmp_path) is None) is lost


def test_heartbeat_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with locked(tmp_path, "search"):
        os.utime(tmp_path / RECORD, (0, 0))
        until = time.monotonic() + 10
        while (tmp_path / RECORD).stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / RECORD).stat().st_mtime > 0


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_damaged_record_is_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(content)
    assert active_driver(tmp_path) is None
    with locked(tmp_path, "search"):
        assert active_driver(tmp_path) is not None


def test_mlflow_upload_does_not_lock_study(tmp_path: Path) -> None:
    with locked(tmp_path, "sync"):
        assert active_driver(tmp_path) is None
        assert "raykd sync" in refusal(tmp_path)
