"""The newest run of a study file, for jobs that are started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raykd.tracking.events import RunEnded
from raykd.tracking.journal import events
from raykd.tuning.latest_run import latest_run, wait_for_driver
from raykd.tuning.study_dir import Verb, create_folder
from raykd.tuning.study_lock import locked

STUDY = """\
name: small
data: {name: digits, limit: 300}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: {name: kd}}]
train: {epochs: 1}
search: {trials: 1, replicates: 0}
cluster: {slots: 1}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return "study.yaml"


def begun(text: str = STUDY, overrides: tuple[str, ...] = (), verb: Verb = "search") -> Path:
    folder = create_folder("small", "studies", text, overrides, verb)
    folder.journal.write_text("{}\n")
    return folder.path


def test_without_run_there_is_none(file: str) -> None:
    assert latest_run(file, (), "search") is None


def test_newest_of_same_study_is_taken(file: str) -> None:
    *_, newest = [begun() for _ in range(12)]  # in the same second: numbered, up to two digits
    assert latest_run(file, (), "search") == newest
    later = newest.with_name("small-29990101-000000")
    os.rename(newest, later)
    assert latest_run(file, (), "search") == later


def test_other_studies_are_left_alone(file: str) -> None:
    begun(STUDY.replace("depth: 1", "depth: 2"))
    begun(overrides=("seed=1",))
    begun(verb="pairs")
    Path("studies/small-of-another-program").mkdir()
    Path("studies/small-file").write_text("")
    assert latest_run(file, (), "search") is None
    assert latest_run(file, ("seed=1",), "search") is not None
    assert latest_run(file, (), "pairs") is not None
    assert latest_run(file, ("cluster.storage=elsewhere",), "search") is None


def test_run_that_never_began_is_left_alone(file: str) -> None:
    (begun() / "journal.jsonl").write_text("")
    assert latest_run(file, (), "search") is None


def test_working_driver_is_waited_for(file: str) -> None:
    folder = begun()
    with locked(folder, "search"):
        began = time.monotonic()
        wait_for_driver(folder, patience=1.5)
        assert time.monotonic() - began >= 1.5
    began = time.monotonic()
    wait_for_driver(folder, patience=60)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_job_continues_its_own_search_and_repeats_nothing(file: str, tmp_path: Path) -> None:
    """The same command three times: killed, continued, and once more after its end."""
    command = [sys.executable, "-m", "raykd", "search", file, "--resume-latest", "--json"]
    command += ["--set", "train.epochs=60", "--set", "search.trials=2"]
    with (tmp_path / "first").open("w+") as output:
        first = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 200
        while '"epoch"' not in (tmp_path / "first").read_text() and time.monotonic() < until:
            time.sleep(0.2)
        first.kill()
        first.wait()
    for _ in range(2):
        again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        assert "resuming" in again.stderr
    folders = [path for path in Path("studies").iterdir() if path.name.startswith("small-")]
    assert len(folders) == 1
    ended = [e.id for e in events(folders[0] / "journal.jsonl") if isinstance(e, RunEnded)]
    assert ended.count("trial-0000") == 1 and len(ended) == len(set(ended))
