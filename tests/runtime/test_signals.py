"""SIGTERM and SIGHUP stop a run as Ctrl-C does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from raykd.errors import Terminated
from raykd.runtime.cluster import MAX_FOLDER_LENGTH, ray_temp_folder, session_token
from raykd.runtime.signals import (
    begin_cleanup,
    received_stop_signal,
    restore_signal_handlers,
    stop_on_signals,
)

STUDY = """\
name: small
data: {name: digits, limit: 300}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 400}}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: {name: kd}}]
search: {trials: 1, replicates: 0}
cluster: {slots: 1}
"""


@pytest.fixture(autouse=True)
def default_handlers(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in names}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_it_acts_as_ctrl_c(number: signal.Signals, ctrl_c: Any) -> None:
    """Also in a background job of a shell, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, ctrl_c)
    calls: list[str] = []

    @stop_on_signals()
    def run() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            assert received_stop_signal()
            begin_cleanup(hurry=lambda: calls.append("hurry"))
            signal.raise_signal(number)  # does not interrupt the cleaning up
            calls.append("cleaned up")
            raise

    with pytest.raises(Terminated) as ended:
        run()
    assert ended.value.code == 128 + number and calls == ["hurry", "cleaned up"]
    assert signal.getsignal(number) == signal.SIG_DFL and not received_stop_signal()


def test_ctrl_c_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        raise KeyboardInterrupt


def test_the_host_program_s_handlers_are_respected() -> None:
    calls: list[int] = []

    def own(number: int, frame: Any) -> None:
        calls.append(number)

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with stop_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        restore_signal_handlers()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert calls == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is own


def test_in_another_thread_nothing_is_installed() -> None:
    calls: list[Any] = []

    def run() -> None:
        with stop_on_signals():
            calls.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert calls == [signal.SIG_DFL]


def test_a_deep_temporary_folder_is_not_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert ray_temp_folder() is None
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * MAX_FOLDER_LENGTH)))
    assert ray_temp_folder() == f"/tmp/ray-{os.getuid()}"


def test_a_session_brings_its_own_token_where_the_user_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would write one below the home folder, which may be read-only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with session_token():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ and not os.listdir(tmp_path)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("user's")
    with session_token():
        assert "RAY_AUTH_TOKEN" not in os.environ, "the user's own is used"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_search_on_ray_is_stopped_in_order(times: int, tmp_path: Path) -> None:
    """Below a temporary folder that is too deep for Ray's sockets."""
    deep = tmp_path / ("x" * MAX_FOLDER_LENGTH)
    deep.mkdir()
    (tmp_path / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "raykd", "search", "study.yaml"]
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"TMPDIR": str(deep)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipe) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "teacher" in line:
                break
        assert process.poll() is None, "".join(lines)
        for _ in range(times):
            process.terminate()
            threading.Event().wait(1)
        rest = process.stdout.read()
        assert process.wait(60) == 143, "".join(lines) + rest
    assert "raykd search --resume studies/small-" in rest and "***" not in rest
    [journal] = tmp_path.glob("studies/small-*/journal.jsonl")
    last = json.loads(journal.read_text().splitlines()[-1])
    assert (last["event"], last["status"]) == ("done", "interrupted")
