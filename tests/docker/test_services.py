"""The services of compose.yaml as processes: PostgreSQL, an S3 server, MLflow with a login."""

from __future__ import annotations

import base64
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from helpers.mlflow_runs import Store
from helpers.small_study import network, start, trial
from raykd.tracking import Journal, upload_journal
from raykd.tracking.events import ModelSaved, StudyEnded

pytestmark = pytest.mark.slow

DOCKER = Path(__file__).parents[2] / "docker"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
START_S = 240
USER = "raykd"


def compose(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"][name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process; end it and its children afterwards."""
    with log.open("ab") as output:
        running = subprocess.Popen[bytes](command, stdout=output, stderr=output, **options)
    try:
        yield running
    finally:
        try:
            family = [psutil.Process(running.pid)]
            family += family[0].children(recursive=True)
            for each in family:
                each.terminate()
            psutil.wait_procs(family, timeout=20)
        except psutil.NoSuchProcess:
            pass
        running.kill()
        running.wait()


def wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and running.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@contextmanager
def postgres(password: str, folder: Path) -> Iterator[int]:
    """Start Debian's PostgreSQL with the user and the database of compose.yaml."""
    owner: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as place:
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(place, user.pw_uid, user.pw_gid)
            owner = {"user": user.pw_uid, "group": user.pw_gid, "cwd": place}
        secret = Path(place, "secret")
        secret.write_text(password)
        secret.chmod(0o644)
        settings = compose("postgres")["environment"]["POSTGRES_INITDB_ARGS"].split()
        command = [f"{BINARIES[-1]}/initdb", "--pgdata", f"{place}/data", "--pwfile", str(secret)]
        command += ["--username", "mlflow", *settings]
        subprocess.run(command, check=True, capture_output=True, **owner)
        secret.unlink()
        port, log = free_port(), folder / "postgres.log"
        command = [f"{BINARIES[-1]}/postgres", "-D", f"{place}/data", "-h", "127.0.0.1"]
        with process([*command, "-p", str(port), "-k", place], log, **owner) as running:
            wait_for(port, running, log)
            create = [f"{BINARIES[-1]}/createdb", "-h", "127.0.0.1", "-p", str(port)]
            environment = {"PGPASSWORD": password, "PATH": "/usr/bin:/bin"}
            subprocess.run([*create, "-U", "mlflow", "mlflow"], check=True, env=environment)
            yield port


@dataclass(frozen=True)
class Services:
    """The services that run, and their secrets."""

    uri: str
    port: int
    s3: str
    secrets: Mapping[str, str]
    server: subprocess.Popen[bytes]
    folder: Path


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    for package in ("moto", "boto3", "psycopg2", "flask_wtf"):
        pytest.importorskip(package)
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    if shutil.which("sh") is None:
        pytest.skip("no shell")
    folder = tmp_path_factory.mktemp("services")
    subprocess.run([str(DOCKER / "new-secrets"), str(folder / "env")], check=True)
    secrets = {}
    for line in (folder / "env").read_text().splitlines():
        name, _, value = line.partition("=")
        secrets[name.removeprefix("RAYKD_").lower()] = value
        (folder / name.removeprefix("RAYKD_").lower()).write_text(value)
    with ExitStack() as stack:
        database = stack.enter_context(postgres(secrets["postgres_password"], folder))
        s3 = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3)]
        wait_for(s3, stack.enter_context(process(command, folder / "s3.log")), folder / "s3.log")
        settings = {key: str(value) for key, value in compose("mlflow")["environment"].items()}
        environment = os.environ | settings
        environment |= {
            "SECRETS": str(folder),
            "POSTGRES_ADDRESS": f"127.0.0.1:{database}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }
        bucket = [sys.executable, str(DOCKER / "make-bucket"), *compose("bucket")["command"][1:]]
        for _ in range(2):  # a second start finds it
            subprocess.run(bucket, check=True, env=environment)
        port = free_port()
        _, *words = compose("mlflow")["command"]
        words = [re.sub(r"\b5000\b", str(port), word) for word in words]
        words = [word.replace("0.0.0.0", "127.0.0.1").replace("=2", "=1") for word in words]
        log = folder / "mlflow.log"
        command = [str(DOCKER / "mlflow-server"), *words]
        running = stack.enter_context(process(command, log, env=environment, cwd=folder))
        wait_for(port, running, log)
        uri = f"http://127.0.0.1:{port}"
        yield Services(uri, port, f"http://127.0.0.1:{s3}", secrets, running, folder)


@pytest.fixture
def login(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    user = compose("study")["environment"]["MLFLOW_TRACKING_USERNAME"]
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", services.secrets["mlflow_password"])


def test_health_check_succeeds(services: Services) -> None:
    *_, code = compose("mlflow")["healthcheck"]["test"]
    code = code.replace("5000", str(services.port))
    until = time.monotonic() + START_S
    while subprocess.run(
        [sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL
    ).returncode:
        assert time.monotonic() < until, (services.folder / "mlflow.log").read_text()[-3000:]
        time.sleep(1)


@pytest.mark.parametrize("password", [None, "", "password1234", "wrong"])
def test_requests_without_password_are_refused(services: Services, password: str | None) -> None:
    page = f"{services.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    request = urllib.request.Request(page)
    if password is not None:
        credentials = base64.b64encode(f"{USER}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 401


def test_other_host_names_are_refused(services: Services) -> None:
    request = urllib.request.Request(f"{services.uri}/api/2.0/mlflow/experiments/search")
    request.add_header("Host", "attacker.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code in (400, 401, 403)


@pytest.mark.usefixtures("login")
def test_study_is_stored_in_postgresql_and_its_model_in_s3(
    services: Services, tmp_path: Path
) -> None:
    import boto3

    with Journal(tmp_path / "study" / "journal.jsonl") as journal:
        start(journal)
        id = trial(journal, 0)
        model = journal.path.parent / "student.pt"
        torch.save(network(), model)
        journal.append(ModelSaved(id, str(model), input_shape=(1, 8, 8), register="digits"))
        journal.append(StudyEnded())
        status = upload_journal(journal.path, services.uri, patience=120)
        assert (status.pending, status.refused) == (0, 0), status
        text = journal.path.read_text()
    assert Store(services.uri).run("trial-0000").info.status == "FINISHED"
    client = boto3.client(
        "s3",
        endpoint_url=services.s3,
        aws_access_key_id="mlflow",
        aws_secret_access_key=services.secrets["s3_key"],
        region_name="us-east-1",
    )
    stored = [each["Key"] for each in client.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any("MLmodel" in key for key in stored)
    files = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    for secret in services.secrets.values():
        assert secret not in text
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_no_password_is_in_ps_or_in_logs(services: Services) -> None:
    driver = psutil.Process(services.server.pid)
    lines = [" ".join(each.cmdline()) for each in [driver, *driver.children(recursive=True)]]
    logs = [path.read_text() for path in services.folder.glob("*.log")]
    for secret in services.secrets.values():
        assert not any(secret in line for line in [*lines, *logs])
