"""Tests of `raykd status`, `raykd ls` and `raykd stop`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.report.status import list_studies, read_status
from raykd.report.summary import summarize
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import read_result
from raykd.tuning.search_run import SearchRun
from raykd.tuning.stop import stop_study
from raykd.tuning.study_input import load_or_use
from raykd.tuning.study_lock import active_driver, locked

STUDY = """\
name: watched
data: {name: digits, limit: 200, val_limit: 60}
student: {model: {name: mlp, depth: 1, width: {int: [4, 16]}}}
scheme: alone
train: {epochs: 2, batch_size: 32}
search: {objectives: {val_accuracy: max, params: min}, trials: 4, replicates: 0, sampler: random}
cluster: {storage: 'FOLDER/studies'}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""

HOLD = """\
import signal, sys, time
from pathlib import Path
from raykd.errors import Terminated
from raykd.runtime.signals import stop_on_signals
from raykd.tuning.study_lock import locked

if "background" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's shell does
with locked(Path(sys.argv[1]), "search"):
    try:
        with stop_on_signals():
            print("locked", flush=True)
            time.sleep(120)
    except (KeyboardInterrupt, Terminated) as error:
        print("interrupted by", type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watched")
    file = root / "study.yaml"
    file.write_text(STUDY.replace("FOLDER", str(root)))
    return SearchRun(load_or_use(file)).run(LocalExecutor()).folder


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path) -> Path:
    """A copy of the study whose journal ends in the second epoch of the third trial."""
    copy = tmp_path / "copies" / folder.name
    copy.mkdir(parents=True)
    for name in ("folder.json", "study.yaml"):
        (copy / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines]
    end = next(
        number
        for number, event in enumerate(events)
        if event.get("event") == "epoch" and event.get("id") == "trial-0002"
    )
    (copy / "journal.jsonl").write_text("".join(lines[: end + 1]))
    return copy


@contextmanager
def driver_process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock of a study."""
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline().strip() == "locked"
        yield owner
    finally:
        owner.kill()
        owner.wait()


@pytest.fixture
def process(interrupted: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the interrupted study."""
    with driver_process(interrupted) as owner:
        yield owner


def test_status_of_finished_study(folder: Path) -> None:
    status = read_status(folder)
    result = read_result(folder)
    assert (status.status, status.driver, status.running) == ("finished", "", [])
    assert status.trials == {"finished": 4} and status.planned_trials == 4
    assert result.best is not None and status.best.startswith(f"{result.best.id} (mlp")
    assert list(status.front) == [record.id for record in result.pareto]
    json.dumps(status.plain())


def test_status_of_running_study(interrupted: Path) -> None:
    with locked(interrupted, "search"):
        status = read_status(interrupted)
    assert status.status == "running" and status.driver.startswith("process ")
    assert status.trials == {"finished": 2, "running": 1} and status.ended_trials == 2
    (running,) = status.running
    assert running.id == "trial-0002" and running.epochs == (1, 2)
    assert running.value is not None
    assert status.seconds_left is not None and status.seconds_left > 0


def test_study_has_ended_while_its_process_sends_the_last_events(folder: Path) -> None:
    """The page of the report is drawn then."""
    with driver_process(folder):
        assert summarize(read_result(folder)).status == "finished"


def test_interrupted_study_has_nothing_in_progress(interrupted: Path) -> None:
    status = read_status(interrupted)
    assert (status.status, status.running, status.seconds_left) == ("interrupted", [], None)
    text = CliRunner().invoke(app, ["status", str(interrupted)]).output
    assert "interrupted" in text and f"raykd search --resume {interrupted}" in text


def test_status_without_study_is_of_running_or_newest_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = CliRunner().invoke(app, ["status"])
    assert missing.exit_code == 2 and "there is no study in studies/" in missing.output
    for day in ("01", "02"):
        shutil.copytree(folder, tmp_path / "studies" / f"watched-202601{day}-000000")
    printed = CliRunner().invoke(app, ["status", "--json"])
    assert json.loads(printed.stdout)["folder"].endswith("20260102-000000")
    with locked(tmp_path / "studies" / "watched-20260101-000000", "search"):
        printed = CliRunner().invoke(app, ["status", "--json"])
    assert json.loads(printed.stdout)["folder"].endswith("20260101-000000")
    refused = CliRunner().invoke(app, ["status", "--uri", "sqlite:///none.db"])
    assert refused.exit_code == 2 and "--uri needs STUDY" in refused.output


def test_studies_are_listed_latest_first(folder: Path, interrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "copies" / "other").mkdir()
    (tmp_path / "copies" / "other" / "journal.jsonl").write_text("no journal\n")
    states = list(list_studies([folder.parent, tmp_path / "copies"]))
    assert [state.folder for state in states].count(interrupted) == 1
    assert {state.folder for state in states} == {folder, interrupted}
    printed = CliRunner().invoke(
        app, ["ls", str(folder.parent), str(tmp_path / "copies"), "--json"]
    )
    assert [each["name"] for each in json.loads(printed.stdout)] == ["watched", "watched"]
    empty = CliRunner().invoke(app, ["ls", str(tmp_path / "nothing")])
    assert empty.exit_code == 0 and "no studies" in empty.output


def test_stop_interrupts_process(interrupted: Path, process: subprocess.Popen[str]) -> None:
    driver = stop_study(interrupted, timeout=60)
    assert driver.identity.pid == process.pid
    assert process.stdout is not None
    assert process.stdout.read() == "interrupted by KeyboardInterrupt\n"
    assert active_driver(interrupted) is None


def test_stop_ends_background_job_that_ignores_interrupts(interrupted: Path) -> None:
    with driver_process(interrupted, "background") as process:
        stop_study(interrupted, timeout=60)
        assert process.stdout is not None
        assert process.stdout.read() == "interrupted by Terminated\n"
    assert active_driver(interrupted) is None


def test_stop_gives_up_after_its_time(
    interrupted: Path, process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with monkeypatch.context() as patched:  # `process` kills with the same function at its end
        patched.setattr("raykd.tuning.stop.os.kill", lambda pid, number: None)
        with pytest.raises(StudyError, match="has not ended after 1 s"):
            stop_study(interrupted, timeout=1)
    assert time.monotonic() - began < 30 and process.poll() is None


def test_stop_without_process_is_error(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["stop", str(folder)])
    assert refused.exit_code == 2 and "no process runs the study" in refused.output


def test_folder_without_study_is_error(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert refused.exit_code == 2
