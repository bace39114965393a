"""A run notices that Ray is gone, although the thread that uses it hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raykd.errors import RayLost, StudyError
from raykd.runtime import ray_watch
from raykd.runtime.cluster import ray_session
from raykd.runtime.ray_watch import ControlService, RayProcesses, StoppedWorkers, run_watched

NONE = RayProcesses({}, "")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield sleeper
    sleeper.kill()
    sleeper.wait()


def test_end_of_process_ends_hanging_run(process: subprocess.Popen[bytes]) -> None:
    hang = threading.Event()
    processes = RayProcesses({"its control service": process}, "/logs")

    def work() -> None:
        process.kill()
        hang.wait()

    with pytest.raises(RayLost, match=r"its control service is gone \(signal 9\)\n.*in /logs"):
        run_watched(work, lambda: None, processes)
    hang.set()


def test_end_of_process_explains_another_error(process: subprocess.Popen[bytes]) -> None:
    def work() -> None:
        process.kill()
        process.wait()
        raise ConnectionError("no answer")

    with pytest.raises(RayLost):
        run_watched(work, lambda: None, RayProcesses({"its raylet": process}, ""))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_worker_that_stays_stopped_is_killed(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time counts in looks: a driver that was stopped as long (Ctrl-Z) kills nothing."""
    clock = 0.0
    monkeypatch.setattr(ray_watch.time, "monotonic", lambda: clock)
    workers, elsewhere = StoppedWorkers(os.getpid(), 30), StoppedWorkers(process.pid, 30)

    def pass_by(seconds: float, looks: int) -> None:
        nonlocal clock
        for _ in range(looks):
            clock += seconds
            workers.end()
            elsewhere.end()

    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    pass_by(5, looks=4)
    pass_by(3600, looks=1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WCONTINUED | os.WNOWAIT)
    pass_by(5, looks=9)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    pass_by(5, looks=6)
    assert process.poll() is None
    pass_by(5, looks=1)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_error_of_work_is_raised(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run_watched(work, lambda: None, NONE)
    assert raised.value is error


def test_interrupted_work_is_requested_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """And waited for: it still writes what it has."""
    stopped, steps = threading.Event(), list[str]()
    monkeypatch.setattr(ray_watch, "POLL_S", 0.01)
    wait = ray_watch._wait
    calls: list[float] = []

    def interrupted(ended: threading.Event, processes: RayProcesses, seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 1:
            raise KeyboardInterrupt
        wait(ended, processes, seconds)

    def work() -> None:
        stopped.wait()
        steps.append("written")

    monkeypatch.setattr(ray_watch, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_watched(work, stopped.set, NONE)
    assert steps == ["written"]


def test_control_service_may_be_away_for_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "CONNECT_S", 1e-3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        service = ControlService(f"127.0.0.1:{server.getsockname()[1]}")
        wait_then_check(service)
    wait_then_check(service)  # away, but not for long
    monkeypatch.setattr(ray_watch, "SILENCE_S", 0.0)
    with pytest.raises(RayLost, match=r"control service at 127.0.0.1:.* was away"):
        wait_then_check(service)


def wait_then_check(service: ControlService) -> None:
    time.sleep(2 * ray_watch.CONNECT_S)
    service.check()


@pytest.mark.slow
def test_failed_start_of_ray_is_reported_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "RAYLET_EXECUTABLE", "/bin/false")
    with pytest.raises(StudyError) as raised, ray_session(verbose=False):
        pass
    [problem] = raised.value.problems
    assert problem.message.startswith("Ray could not be started on this machine: ")
    assert "\n" not in problem.message
    assert Path(problem.fix.removeprefix("its logs: ")).is_dir()


def test_signal_waits_for_work_to_end() -> None:
    asked, ended = threading.Event(), threading.Event()

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        assert asked.wait(60)
        time.sleep(1)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_watched(work, asked.set, NONE)
    assert ended.is_set()
