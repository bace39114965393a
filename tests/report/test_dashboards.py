"""Tests of `raykd ui`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.processes import kill_all, processes_with, wait_until_gone
from helpers.small_study import start, trial
from raykd.cli.commands import app
from raykd.tracking import Journal, upload_journal
from raykd.tracking.events import StudyEnded

MARK = "RAYKD_TEST_OF_UI"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store with a study."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with Journal(tmp_path / "study" / "journal.jsonl") as journal:
        start(journal)
        trial(journal, 0)
        journal.append(StudyEnded())
        upload_journal(journal.path, uri)
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_servers_end_with_command(number: int, uri: str, tmp_path: Path) -> None:
    mark = f"{tmp_path}-{number}"
    command = [sys.executable, "-u", "-m", "raykd", "ui", "--uri", uri]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, MARK: mark},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        address = re.search(r"MLflow +(http://127\.0\.0\.1:\d+)\n", "".join(lines))
        assert address is not None, lines
        with urllib.request.urlopen(f"{address[1]}/health", timeout=60) as answer:
            assert answer.status == 200
        assert len(processes_with(MARK, mark)) > 1
        process.send_signal(number)
        assert process.wait(120) == 128 + number
        assert not wait_until_gone(MARK, mark, 30)
    finally:
        kill_all(processes_with(MARK, mark))
        process.wait()


def test_server_is_only_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["ui", "--uri", "http://127.0.0.1:9/"])
    assert done.exit_code == 0 and "MLflow  http://127.0.0.1:9" in done.output
    assert "Ctrl-C" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a study's folder on this machine"),
        (["--uri", "sqlite:///none.db"], "there is no"),
        (["."], "is not a study's folder"),
    ],
)
def test_one_message_for_invalid_input(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["ui", *arguments])
    assert refused.exit_code == 2 and message in refused.output
    assert list(tmp_path.iterdir()) == []
