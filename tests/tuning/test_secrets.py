"""Secrets of the user stay out of everything that a run writes, sends or shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PLANTED = "planted-4711-secret"
STUDY = """\
name: small
data: {name: digits, limit: 300}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: {name: kd}}]
train: {epochs: 1}
"""
VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
    "HF_TOKEN",
)
AWAY = f"http://user:{PLANTED}@127.0.0.1:9"
"""A server that does not answer."""
IMPATIENT = """
from raykd.cli.commands import main
from raykd.tuning import run

run.UPLOAD_S = 5
main()
"""
"""The command line, which at the end waits for a server for a few seconds only."""


def leaks(folder: Path) -> list[str]:
    """The files below a folder that contain the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if PLANTED.encode() in path.read_bytes()]


@pytest.mark.slow
def test_run_without_server_writes_no_secret(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    environment = os.environ | dict.fromkeys(VARIABLES, PLANTED) | {"HOME": str(tmp_path)}
    environment["MLFLOW_TRACKING_URI"] = AWAY
    command = [sys.executable, "-c", IMPATIENT, "teacher", "study.yaml", "--verbose"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert PLANTED not in run.stdout + run.stderr
    assert list(tmp_path.glob("studies/small-*/journal.jsonl"))
    assert leaks(tmp_path) == []


SEARCH = f"""\
{STUDY}search: {{trials: 1, replicates: 1, sampler: random}}
"""


@pytest.mark.slow
def test_search_writes_no_secret(tmp_path: Path) -> None:
    """Journal, copy of the study, page, students, MLflow, Ray's output and command lines."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "study.yaml").write_text(SEARCH)
    environment = os.environ | dict.fromkeys(VARIABLES, PLANTED) | {"HOME": str(home)}
    run = subprocess.Popen(
        [sys.executable, "-m", "raykd", "search", "study.yaml", "--verbose"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    command_lines: set[str] = set()
    assert run.stdout is not None
    output = ""
    for line in run.stdout:
        output += line
        command_lines |= {" ".join(each.info["cmdline"] or ()) for each in processes()}
    assert run.wait(60) == 0, output[-2000:]
    assert PLANTED not in output
    assert not [line for line in command_lines if PLANTED in line]
    [folder] = tmp_path.glob("studies/small-*")
    page = [sys.executable, "-m", "raykd", "report", str(folder), "-o", "page"]
    subprocess.run(page, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert list(folder.glob("students/*.pt"))
    assert list((tmp_path / "page").rglob("*.html"))
    assert leaks(tmp_path) == []


@pytest.mark.slow
def test_password_in_study_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f'{STUDY}tracking: {{uri: "{AWAY}"}}\n')
    command = [sys.executable, "-m", "raykd", "search", "study.yaml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and PLANTED not in run.stdout + run.stderr
    assert "tracking.uri: http://user:***@127.0.0.1:9 contains a password" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline"]))
