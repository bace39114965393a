"""The thread, and a store that is not always there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.mlflow_runs import Store
from helpers.mlflow_server import Server
from helpers.small_study import STUDY, network, start, trial
from raykd.tracking import Journal, Tracker, find_run, load_model_uri, upload_journal
from raykd.tracking.cursor import Cursor
from raykd.tracking.events import EpochFinished, ModelSaved, RunEnded, RunStarted, StudyEnded
from raykd.tracking.mlflow_writer import MlflowWriter
from raykd.tracking.store_check import check_store
from raykd.tracking.sync import CHUNK, PATIENCE_S, Status, Uploader


def wait(until: float, done: Callable[[], object]) -> bool:
    end = time.monotonic() + until
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


def test_tracker_follows_journal(journal: Journal, uri: str) -> None:
    with Tracker(journal.path, uri, poll=0.05, start_after=0) as tracker:
        start(journal)
        trial(journal, 0)
        assert wait(60, lambda: tracker.status.delivered == 6), tracker.status
        assert str(tracker.status) == "all events are in MLflow"
        journal.append(RunStarted("trial-0001", role="trial"))
        journal.append(EpochFinished("trial-0001", 1, {"val_accuracy": 0.5}))
        assert wait(60, lambda: tracker.status.delivered == 8), tracker.status
        assert Store(uri).run("trial-0001").info.status == "RUNNING"
        journal.append(RunEnded("trial-0001", "finished"))
        journal.append(StudyEnded())
        assert tracker.close(60)
    assert tracker.status.pending == 0
    assert Store(uri).run().info.status == "FINISHED"


def test_no_event_is_delivered_and_pending_at_once(
    journal: Journal, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads may read the status at any step of an upload."""
    statuses: list[Status] = []
    uploader = Uploader(journal.path, uri, verbose=False)

    def observed(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def observe(*arguments: Any, **options: Any) -> object:
            statuses.append(uploader.status)
            result = method(*arguments, **options)
            statuses.append(uploader.status)
            return result

        monkeypatch.setattr(owner, name, observe)

    observed(MlflowWriter, "write")
    observed(MlflowWriter, "flush")
    observed(Cursor, "save")
    start(journal)
    trial(journal, 0)
    with contextlib.closing(uploader):
        assert uploader.step()
    statuses.append(uploader.status)
    assert {status.delivered + status.pending for status in statuses} == {6}
    assert statuses[0].delivered == 0 and statuses[-1].pending == 0


def test_close_delivers_what_was_written_just_before(journal: Journal, uri: str) -> None:
    tracker = Tracker(journal.path, uri, start_after=600)
    start(journal)
    trial(journal, 0)
    assert tracker.status.pending == 6
    assert tracker.close(60)
    assert Store(uri).run("trial-0000").info.status == "FINISHED"


def test_uploads_take_at_most_half_of_time(journal: Journal, uri: str) -> None:
    tracker = Tracker(journal.path, uri, start_after=600)
    start(journal)
    for number in range(CHUNK // 4):
        trial(journal, number)
    assert tracker.status.pending >= CHUNK

    def waited(took: float, last_event: float) -> float:
        os.utime(journal.path, (last_event, last_event))
        tracker._last_took = took
        began = time.monotonic()
        tracker._wait_for_calm()
        return time.monotonic() - began

    still_to_come = time.time() + 600
    assert 0.5 <= waited(0.5, still_to_come) < PATIENCE_S
    assert waited(60, still_to_come) >= PATIENCE_S, "but events are not held back for ever"
    assert waited(60, time.time() - 1) < 0.5, "calm is made use of at once"
    tracker._abandoned.set()  # so that `close` brings none of it anywhere
    tracker.close(0)


def test_absent_store_blocks_and_breaks_nothing(journal: Journal, folder: Path) -> None:
    began = time.monotonic()
    tracker = Tracker(journal.path, f"sqlite:///{folder}/taken/mlflow.db", start_after=0)
    (folder / "taken").write_text("a file where a folder should be")
    start(journal)
    assert time.monotonic() - began < 1
    assert wait(60, lambda: tracker.status.error), tracker.status
    assert not tracker.close(1)
    assert tracker.status.pending == 2
    assert str(tracker.status).startswith("2 events wait (")


def test_single_process_uploads_journal(journal: Journal, uri: str) -> None:
    start(journal)
    with Tracker(journal.path, uri, poll=0.05, start_after=0) as tracker:
        assert wait(60, lambda: tracker.status.delivered == 2), tracker.status
        with pytest.raises(ValueError, match="another process is sending it"):
            upload_journal(journal.path, uri, patience=0)
    assert upload_journal(journal.path, uri).delivered == 0


def test_no_journal_yet_is_no_trouble(folder: Path, uri: str) -> None:
    path = folder / "later" / "journal.jsonl"
    path.parent.mkdir()
    with Tracker(path, uri, poll=0.05, start_after=0) as tracker:
        time.sleep(0.2)
        with Journal(path) as journal:
            start(journal)
        assert wait(60, lambda: tracker.status.delivered == 2), tracker.status
    assert tracker.status.error == ""


@pytest.mark.slow
def test_late_and_restarted_server_has_every_event_once(
    journal: Journal, server: Server, folder: Path, tables: Path
) -> None:
    shutil.copyfile(tables, folder / "server.db")
    tracker = Tracker(journal.path, server.uri, poll=0.1, start_after=0)
    start(journal)
    trial(journal, 0)
    assert wait(120, lambda: tracker.status.error), tracker.status
    assert tracker.status.pending == 6
    server.start()
    assert wait(240, lambda: tracker.status.delivered == 6), tracker.status
    assert tracker.status.error == ""
    assert wait(60, lambda: check_store(server.uri).ok), check_store(server.uri)

    journal.append(RunStarted("trial-0001", role="trial"))
    for epoch in range(1, 201):
        journal.append(
            EpochFinished("trial-0001", epoch, {"loss": 1 / epoch, "accuracy": epoch / 256})
        )
        if epoch == 100:
            time.sleep(0.2)  # let it be in the middle
            server.stop()
    journal.append(RunEnded("trial-0001", "finished"))
    path = journal.path.parent / "student.pt"
    torch.save(network(), path)
    journal.append(
        ModelSaved(
            "trial-0001", str(path), input_shape=(1, 8, 8), register="digits", aliases=["champion"]
        )
    )
    journal.append(StudyEnded())
    time.sleep(1)
    server.start()
    assert tracker.close(240), tracker.status
    assert (tracker.status.pending, tracker.status.refused) == (0, 0), tracker.status

    store = Store(server.uri)
    assert sorted(run[0] for run in store.everything().values()) == [
        "digits",
        "trial-0000",
        "trial-0001",
    ]
    history = store.history("trial-0001", "accuracy")
    assert [(step, value) for step, value, _ in history] == [(e, e / 256) for e in range(1, 201)]
    assert store.run("trial-0001").info.status == "FINISHED"
    load_model_uri("models:/digits@champion", tracking_uri=server.uri)
    run = find_run(server.uri, STUDY)
    assert run is not None and run.page.startswith(server.uri)


@pytest.mark.slow
def test_sync_gives_up_on_absent_server(journal: Journal, server: Server) -> None:
    start(journal)
    began = time.monotonic()
    with pytest.raises(ValueError, match="2 events wait"):
        upload_journal(journal.path, server.uri, patience=2)
    assert time.monotonic() - began < 30
    with pytest.raises(ValueError, match="MLflow at"):
        find_run(server.uri, STUDY)


@pytest.mark.slow
def test_nothing_is_printed(journal: Journal, folder: Path) -> None:
    start(journal)
    id = trial(journal, 0)
    torch.save(network(), journal.path.parent / "student.pt")
    journal.append(
        ModelSaved(id, str(journal.path.parent / "student.pt"), input_shape=(1, 8, 8), register="d")
    )
    journal.append(StudyEnded())
    code = f"""
from raykd.tracking import Tracker
new = Tracker({str(journal.path)!r}, "sqlite:///{folder}/quiet.db", start_after=0)
assert new.close(120), new.status
away = Tracker({str(journal.path)!r}, "http://127.0.0.1:9", start_after=0)
assert not away.close(3)
"""
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
