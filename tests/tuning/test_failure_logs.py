"""Logs of failed trainings, collected in the study's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.runtime.jobs import TrainJob
from raykd.storage import Storage
from raykd.tuning.failure_logs import KILLED, Logs
from raykd.tuning.study_dir import StudyFolder, create_folder

CRASH = """Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/somewhere/own.py", line 7 in forward
"""


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return create_folder("small", str(tmp_path), "", ())


def work(folder: StudyFolder) -> TrainJob:
    return TrainJob("trial-0000/seed-1", "replicate", {}, seed=0, epochs=1, folder=folder.name)


def write(folder: StudyFolder, rank: int, text: str) -> None:
    Storage(folder.storage).write(work(folder).log_file(rank), text.encode())


def test_logs_of_all_workers_are_merged(folder: StudyFolder) -> None:
    write(folder, 0, "zero\n")
    write(folder, 1, "one\nValueError: boom\n")
    failure = Logs(folder, workers=2).collect(work(folder), "ValueError: boom", raised_at="a.py:1")
    assert failure.log == "logs/trial-0000.seed-1.log"
    assert (folder.path / failure.log).read_text() == (
        "--- worker 0 of 2 ---\nzero\n\n--- worker 1 of 2 ---\none\nValueError: boom\n"
    )
    assert [file.name for file in (folder.path / "logs").iterdir()] == ["trial-0000.seed-1.log"]
    assert (failure.reason, failure.raised_at) == ("ValueError: boom", "a.py:1")


def test_crash_of_any_worker_is_reason(folder: StudyFolder) -> None:
    write(folder, 1, CRASH)
    failure = Logs(folder, workers=2).collect(work(folder), "[gloo] Connection closed by peer")
    assert failure.reason == "its process crashed: Segmentation fault (signal 11)"
    assert failure.raised_at == "/somewhere/own.py:7"


def test_process_without_log_was_killed(folder: StudyFolder) -> None:
    error = "The actor died unexpectedly"
    failure = Logs(folder).collect(work(folder), "Ray lost its slot", more=error, died=True)
    assert failure.reason == KILLED and "signal 9" in KILLED
    assert (folder.path / failure.log).read_text() == error + "\n"


def test_traceback_is_written_once(folder: StudyFolder) -> None:
    write(folder, 0, "Traceback\nboom\n")
    failure = Logs(folder).collect(work(folder), "boom", more="Traceback\nboom\n")
    assert (folder.path / failure.log).read_text() == "Traceback\nboom\n"
