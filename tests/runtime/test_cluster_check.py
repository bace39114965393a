"""Checks of a cluster's address: errors within seconds, with the cause."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.runtime import cluster_check as reaching
from raykd.runtime.cluster_check import check_cluster, host_and_port
from raykd.tuning.search_run import search

TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in TOKEN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener() -> Iterator[str]:
    """Address of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(address: str) -> tuple[str, str]:
    began = time.monotonic()
    with pytest.raises(StudyError) as refused:
        check_cluster(address)
    assert time.monotonic() - began < 20
    [problem] = refused.value.problems
    assert problem.message.startswith(f"the cluster at RAY_ADDRESS={address} cannot be joined: ")
    return problem.message.split("joined: ", 1)[1], problem.fix


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:6380", ("10.0.0.1", 6380)),
        ("head", ("head", 6379)),
        ("head:7000/", ("head", 7000)),
        ("[::1]:7000", ("::1", 7000)),
        ("::1", ("::1", 6379)),
    ],
)
def test_addresses(address: str, place: tuple[str, int]) -> None:
    assert host_and_port(address) == place


@pytest.mark.parametrize("address", ["head:x", "head:", ":6379", "head:0", "head:99999"])
def test_invalid_addresses(address: str) -> None:
    message, fix = refusal(address)
    assert "HOST:PORT" in message and "RAY_ADDRESS=HOST:6379" in fix


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_ray_client_addresses_raise_with_fix(address: str) -> None:
    message, fix = refusal(address)
    assert "client" in message and "ray job submit" in fix


def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    message, fix = refusal(f"127.0.0.1:{port}")
    assert f"no process listens at 127.0.0.1:{port}" in message and "unset it" in fix


def test_unknown_host() -> None:
    message, _ = refusal("no-such-host.invalid:6379")
    assert "no-such-host.invalid is unknown" in message or "could not be resolved" in message


def test_server_that_is_not_cluster(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "ANSWER_S", 3.0)
    message, _ = refusal(listener)
    assert "within 3 s" in message


def test_missing_token(listener: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    message, fix = refusal(listener)
    assert f"{tmp_path}/.ray/auth_token does not exist" in message and "RAY_AUTH_TOKEN_PATH" in fix
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert f"{tmp_path}/token is empty" in refusal(listener)[0]


def answers(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the check process by one that prints this output."""
    monkeypatch.setattr(reaching, "CLUSTER_QUERY", script)


def test_wrong_token(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers("raise type('AuthenticationError', (Exception,), {})('RPC error: x')", monkeypatch)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "RAY_AUTH_MODE is not `token`" in refusal(listener)[0]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "does not accept the token in RAY_AUTH_TOKEN" in refusal(listener)[0]


@pytest.mark.parametrize(
    ("ray", "python", "difference"),
    [("1.0", None, "Ray 1.0, this machine"), (None, "2.7.1", "Python 2.7.1, this machine")],
)
def test_other_versions(
    ray: str | None,
    python: str | None,
    difference: str,
    listener: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"ray_version": ray, "python_version": python}
    answers(f"print({json.dumps(json.dumps(versions))})", monkeypatch)
    message, fix = refusal(listener)
    assert difference in message and "same versions" in fix


def test_search_raises_before_writing_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    model = "model: {name: mlp, depth: 1, width: 8}"
    (tmp_path / "study.yaml").write_text(
        f"name: small\ndata: {{name: digits}}\nstudent: {{{model}}}\nteacher: {{{model}}}\n"
        "knowledge: [{loss: {name: kd}}]\n"
    )
    with pytest.raises(StudyError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"):
        search("study.yaml")
    assert os.listdir(tmp_path) == ["study.yaml"]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
