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
from raykd.runtime.cluster import MAX_FOLDER_LENGTH, ensure_token
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
def test_signal_acts_like_ctrl_c(number: signal.Signals, ctrl_c: Any) -> None:
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


def test_ctrl_c_is_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        raise KeyboardInterrupt


def test_handlers_of_host_program_are_respected() -> None:
    calls: list[int] = []

    def host_handler(number: int, frame: Any) -> None:
        calls.append(number)

    signal.signal(signal.SIGTERM, host_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with stop_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        restore_signal_handlers()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert calls == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is host_handler


def test_no_handlers_outside_main_thread() -> None:
    calls: list[Any] = []

    def run() -> None:
        with stop_on_signals():
            calls.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert calls == [signal.SIG_DFL]


def test_session_creates_token_if_user_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would write one to the home folder, which may be read-only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    ensure_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64 and not os.listdir(tmp_path)
    ensure_token()
    assert os.environ["RAY_AUTH_TOKEN"] == token, "a second session has the same token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray/auth_token"
    file.write_text("user's")
    file.chmod(0o600)
    ensure_token()
    assert not os.environ["RAY_AUTH_TOKEN"], "the user's token is used"
    monkeypatch.setattr("raykd.runtime.cluster.is_exposed", lambda path: path == file)
    ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64, "everybody can read the user's token"


SESSIONS = """\
import os
from raykd.runtime.cluster import ray_session
import ray
from ray.cluster_utils import Cluster

for _ in range(2):
    with ray_session(verbose=False):
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})  # processes of their own
os.environ["RAY_ADDRESS"] = cluster.address
with ray_session(verbose=False):
    assert ray.get(ray.remote(lambda: 2).remote()) == 2
cluster.shutdown()
"""


@pytest.mark.slow
def test_other_ray_starts_and_is_joined_after_session(tmp_path: Path) -> None:
    """Ray's C++ part keeps the mode of authentication, and needs the token for it."""
    environment = {name: os.environ[name] for name in os.environ if "RAY_AUTH" not in name}
    command = [sys.executable, "-c", SESSIONS]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_search_on_ray_is_stopped_cleanly(tmp_path: Path) -> None:
    """Also if the signal comes twice, and with a temporary folder too deep for Ray's sockets.

    A single signal is a case of tests/faults/test_fault_matrix.py.
    """
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
        for _ in range(2):
            process.terminate()
            threading.Event().wait(1)
        rest = process.stdout.read()
        assert process.wait(60) == 143, "".join(lines) + rest
    assert "raykd search --resume studies/small-" in rest and "***" not in rest
    [journal] = tmp_path.glob("studies/small-*/journal.jsonl")
    last = json.loads(journal.read_text().splitlines()[-1])
    assert (last["event"], last["status"]) == ("done", "interrupted")
