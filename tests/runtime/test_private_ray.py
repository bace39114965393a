"""Ray on this machine: closed to the network and to other users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from helpers import fault_points
from raykd.errors import StudyError
from raykd.runtime.cluster import MAX_FOLDER_LENGTH, ray_folder
from raykd.runtime.cluster_check import is_exposed

NOBODY = 65534
TOKEN = "planted-token-4711"
STUDY = """\
name: small
data: {name: digits, limit: 300}
teacher:
  model: {name: "helpers.fault_points:build", args: {width: 8, role: teacher, step_s: 0.5}}
  train: {epochs: 100000}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: {name: kd}}]
search: {trials: 1, replicates: 0}
cluster: {slots: 1, workers_per_trial: 2, cpus_per_worker: 0.5}
"""
"""Its teacher trains for good, and leaves the processors to others."""

JOURNALS = "studies/small-*/journal.jsonl"

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


def test_folder_of_ray_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(f"/tmp/t{os.getpid()}")
    short.mkdir()
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(short))
        parent = short / f"raykd-{os.getuid()}"
        assert ray_folder() == f"{parent}/ray"
        assert parent.stat().st_mode & 0o777 == 0o700
        parent.chmod(0o777)
        assert ray_folder() == f"{parent}/ray"
        assert parent.stat().st_mode & 0o777 == 0o700, "the owner closes it again"
        parent.rmdir()
        parent.symlink_to(tmp_path)
        with pytest.raises(StudyError, match="cannot be used for Ray's files") as refused:
            ray_folder()
        assert "RAY_TMPDIR" in refused.value.problems[0].fix
    finally:
        for path in short.iterdir():
            path.unlink()
        short.rmdir()


@root_only
def test_folder_that_another_user_planted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(f"/tmp/t{os.getpid()}")
    (short / "raykd-0").mkdir(parents=True)
    try:
        os.chown(short / "raykd-0", NOBODY, NOBODY)
        monkeypatch.setenv("RAY_TMPDIR", str(short))
        with pytest.raises(StudyError, match="not a folder of user 0"):
            ray_folder()
    finally:
        (short / "raykd-0").rmdir()
        short.rmdir()


def test_folder_that_is_too_deep_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * MAX_FOLDER_LENGTH)
    assert ray_folder() == f"/tmp/raykd-{os.getuid()}/ray"


def test_token_file_is_exposed_if_others_can_read_it(tmp_path: Path) -> None:
    file = Path(f"/tmp/t{os.getpid()}") / "token"
    file.parent.mkdir(mode=0o755)
    try:
        assert not is_exposed(file), "there is none"
        file.write_text("secret")
        file.chmod(0o644)
        assert is_exposed(file)
        file.parent.chmod(0o700)
        assert not is_exposed(file), "nobody else can enter the folder"
        file.parent.chmod(0o755)
        file.chmod(0o600)
        assert not is_exposed(file)
    finally:
        file.unlink()
        file.parent.rmdir()


@dataclass(frozen=True)
class Search:
    """A search with two workers a trial, all of whose processes run."""

    processes: list[psutil.Process]
    session: Path

    def address(self, name: str) -> str:
        """The address of a port that Ray has written to the session's folder."""
        (file,) = self.session.glob(f"{name}_*")
        return f"127.0.0.1:{file.read_text().strip()}"


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    folder = tmp_path_factory.mktemp("search")
    (folder / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "raykd", "search", "--allow-import", "study.yaml"]
    tests = str(Path(fault_points.__file__).parents[1])
    environment = os.environ | {
        "RAY_AUTH_TOKEN": TOKEN,
        "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
        fault_points.FOLDER: str(folder),
    }
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        driver = psutil.Process(process.pid)
        until = time.monotonic() + 240
        while not any("teacher-0" in file.read_text() for file in folder.glob(JOURNALS)):
            text = (folder / "output").read_text()
            assert process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.5)
        workers: list[psutil.Process] = []
        while len(workers) < 2:
            assert time.monotonic() < until, "the workers do not start"
            time.sleep(1)
            processes = driver.children(recursive=True)
            workers = [each for each in processes if _connections(each) and _is_worker(each)]
        time.sleep(2)
        (session,) = Path(ray_folder()).glob(f"session_*_{process.pid}")
        yield Search([driver, *driver.children(recursive=True)], session)
    finally:
        process.kill()  # the other processes end with it
        process.wait()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in process.name() or "RayTrainWorker" in process.cmdline()[0]
    except (psutil.Error, IndexError):
        return False


def _connections(process: psutil.Process) -> list[str]:
    """The addresses at which a process listens."""
    try:
        found = process.net_connections()
    except psutil.Error:
        return []
    return [str(each.laddr.ip) for each in found if each.status == psutil.CONN_LISTEN]


@pytest.mark.slow
def test_every_port_is_on_loopback(search: Search) -> None:
    listening = {ip for process in search.processes for ip in _connections(process)}
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_token_is_in_no_command_line(search: Search) -> None:
    for process in search.processes:
        try:
            assert TOKEN not in " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_token_is_in_no_file_of_ray(search: Search) -> None:
    files = [path for path in search.session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


JOB = '{"entrypoint": "id"}'
ATTEMPTS = """
import json, os, socket, sys, urllib.error, urllib.request
from pathlib import Path
from ray._raylet import GcsClient
from ray._common.usage import usage_lib
import ray.exceptions, encodings.idna, http.client
session, gcs, dashboard, agent, user, job = sys.argv[1:]
answers = {}
if int(user):
    os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))

def attempt(name, action):
    try:
        answers[name] = str(action())
    except Exception as error:
        answers[name] = type(error).__name__ + " " + str(error)[:200]

def send(address, method):
    headers = {"Content-Type": "application/json"}
    if os.environ.get("RAY_AUTH_TOKEN"):
        headers["Authorization"] = "Bearer " + os.environ["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(address, job.encode(), headers, method=method)
    return urllib.request.urlopen(request, timeout=20).status

def connect():
    with socket.socket(socket.AF_UNIX) as plasma:
        plasma.connect(session + "/sockets/plasma_store")
    return "connected"

attempt("gcs", lambda: usage_lib.get_cluster_metadata(GcsClient(address=gcs))["ray_version"])
attempt("job", lambda: send("http://" + dashboard + "/api/jobs/", "POST"))
method = "POST" if "entrypoint" in job else "PUT"  # the agent would first join Ray, for a minute
attempt("agent", lambda: send("http://" + agent + "/api/job_agent/jobs/", method))
attempt("store", connect)
attempt("logs", lambda: len(os.listdir(session + "/logs")))
attempt("environment", lambda: len(Path("/proc/" + str(os.getppid()) + "/environ").read_bytes()))
print(json.dumps(answers))
"""


def attempts(search: Search, token: str, user: int, job: str = JOB) -> dict[str, str]:
    """Results of the attempts of a user to run a job and to read the store, logs and token."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "token" if token else "disabled"}
    environment |= {"RAY_AUTH_TOKEN": token} if token else {}
    gcs, agent = search.address("gcs_server_port"), search.address("dashboard_agent_listen_port")
    command = [
        sys.executable,
        "-c",
        ATTEMPTS,
        str(search.session),
        gcs,
        dashboard_of(search),
        agent,
    ]
    command += [str(user), job]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def dashboard_of(search: Search) -> str:
    """The address of Ray's dashboard, which takes the first free port from 8265 on."""
    ports = [
        each.laddr.port
        for process in search.processes
        if any("dashboard.py" in word for word in _words(process))
        for each in process.net_connections()
        if each.status == psutil.CONN_LISTEN
    ]
    return f"127.0.0.1:{next(port for port in sorted(ports) if 8265 <= port <= 8315)}"


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@root_only
@pytest.mark.parametrize("token", ["", "a-wrong-token"])
def test_other_user_has_no_access(search: Search, token: str) -> None:
    answers = attempts(search, token, NOBODY)
    assert "Authentication" in answers["gcs"] or "UNAUTHENTICATED" in answers["gcs"].upper()
    assert "401" in answers["job"] or "403" in answers["job"]
    assert "401" in answers["agent"] or "403" in answers["agent"]
    assert answers["store"].startswith("PermissionError")
    assert answers["logs"].startswith("PermissionError")
    assert answers["environment"].startswith("PermissionError")


@pytest.mark.slow
@root_only
def test_token_keeps_other_users_out(search: Search) -> None:
    """With it, requests are read: no command is a bad request, PUT a method that is not allowed."""
    answers = attempts(search, TOKEN, NOBODY, job="{}")
    assert answers["gcs"][0].isdigit()
    assert "400" in answers["job"] and "405" in answers["agent"]
    assert answers["store"].startswith("PermissionError")
    assert attempts(search, TOKEN, 0, job="{}")["store"] == "connected"
