"""Pages of a study: MLflow, Optuna's dashboard, Ray's dashboard and the report.

Servers listen on this machine only, and end with the command that started them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from raykd.errors import Problem, StudyError, Terminated
from raykd.tracking.mlflow_client import UI_ADDRESS
from raykd.tracking.store_check import check_store
from raykd.tracking.store_uri import absolute, is_server, masked
from raykd.tuning.study_dir import open_folder

HOST = "127.0.0.1"
MLFLOW_PORT, OPTUNA_PORT = 5000, 8080
RAY_ADDRESS = "http://127.0.0.1:8265"
PATIENCE_S = 120.0
"""Seconds in which a server must respond."""

GRACE_S = 10.0
"""Seconds in which a server must end."""


@dataclass(frozen=True)
class Link:
    """Page of a study.

    Attributes:
        name: "MLflow", "report", ...
        address: URL, or path of a file.
    """

    name: str
    address: str


@dataclass(frozen=True)
class StudyPages:
    """Pages of a study, as far as they need no server that has to be started.

    Attributes:
        uri: URI of its tracking store.
        links: pages; those of MLflow begin with `UI_ADDRESS` unless the store is a server.
        optuna: file of Optuna's storage; "" if there is none.
    """

    uri: str
    links: Sequence[Link]
    optuna: str = ""


def pages_of_folder(path: Path) -> StudyPages:
    """Return the pages of the study in a folder.

    Raises:
        StudyError: this is not a study's folder.
    """
    from raykd.report.commands import layer_study_commands, search_commands
    from raykd.tracking.journal import events

    folder, _ = open_folder(path)
    history = events(folder.journal)
    if folder.verb == "pairs":
        from raykd.layer_study.result import read_layer_study

        result = read_layer_study(path)
        commands = layer_study_commands(result, history)
    else:
        from raykd.tuning.result import read_result

        result = read_result(path)
        commands = search_commands(result, history)
    names = {"page": "study in MLflow", "table": "table in MLflow"}
    links = [Link(names[each.name], each.text) for each in commands if each.name in names]
    report = folder.path / "report" / "report.html"
    if not report.is_file():
        report = folder.path / "report.html"
    if report.is_file():
        links.append(Link("report", report.resolve().as_uri()))
    optuna = folder.optuna if Path(folder.optuna).is_file() else ""
    return StudyPages(absolute(result.tracking_uri), links, optuna)


@contextlib.contextmanager
def serve(pages: StudyPages) -> Iterator[tuple[list[Link], Sequence[subprocess.Popen[bytes]]]]:
    """Start the servers of a study's pages; give all links and the servers' processes.

    A tracking server is only linked.  At the end every process is stopped.

    Raises:
        StudyError: the tracking store cannot be used, or a server does not start.
        Terminated: a signal ended the process.
    """
    links, servers = [], []
    with tempfile.TemporaryDirectory(prefix="raykd-ui-") as logs, _stop_signals():
        try:
            base = masked(pages.uri).rstrip("/")
            if not is_server(pages.uri):
                base = _start_mlflow(pages.uri, servers, Path(logs))
            links.append(Link("MLflow", base))
            links += [Link(e.name, e.address.replace(UI_ADDRESS, base)) for e in pages.links]
            program = _optuna_dashboard()
            if pages.optuna and program:
                port = _free_port(OPTUNA_PORT)
                command = [program, "--host", HOST, "--port", str(port), pages.optuna]
                address = f"http://{HOST}:{port}"
                _start(command, {}, address, servers, Path(logs, "optuna.log"))
                links.append(Link("Optuna", address))
            ray = os.environ.get("RAY_DASHBOARD_ADDRESS") or RAY_ADDRESS
            if _responds(f"{ray}/api/version"):
                links.append(Link("Ray", ray))
            yield links, servers
        finally:
            for server in servers:
                _stop(server)


def _start_mlflow(uri: str, servers: list[subprocess.Popen[bytes]], logs: Path) -> str:
    check = check_store(uri)
    if not check.ok:
        raise StudyError(Problem(f"MLflow at {check.message}", fix=check.fix))
    port = _free_port(MLFLOW_PORT)
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", HOST, "--port", str(port)]
    # in the environment, because other users see the arguments of a command
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    _start(command, settings, f"{address}/health", servers, logs / "mlflow.log")
    return address


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    address: str,
    servers: list[subprocess.Popen[bytes]],
    log: Path,
) -> None:
    """Start a server in a process group of its own, and wait until it responds."""
    with log.open("wb") as file:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    servers.append(server)
    until = time.monotonic() + PATIENCE_S
    while not _responds(address):
        if server.poll() is not None or time.monotonic() > until:
            tail = log.read_text(errors="replace").strip().splitlines()[-5:]
            name = log.stem
            raise StudyError(Problem("\n".join([f"the server of {name} does not respond:", *tail])))
        time.sleep(0.2)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End a server and the processes it started: they share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop the servers, too."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optuna_dashboard() -> str | None:
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("optuna-dashboard", path=folders)


def _free_port(preferred: int) -> int:
    """Return a port that nothing listens on: the preferred one, or another."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return probe.getsockname()[1]
    raise StudyError(Problem(f"no port of {HOST} is free"))


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (OSError, ValueError):
        return False
