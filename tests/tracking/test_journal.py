from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raykd.tracking.events import (
    EpochFinished,
    RunEnded,
    RunPromoted,
    RunStarted,
    StudyEnded,
)
from raykd.tracking.journal import Journal, events, read
from raykd.tracking.journal_state import JournalState, Upload


def test_events_are_read_in_order_with_times(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(RunStarted("trial-0000", role="trial", params={"a.b": 1}))
        journal.append(EpochFinished("trial-0000", 1, {"loss": 0.5}))
        journal.append(RunEnded("trial-0000", "stopped", reason="asha"))
        journal.append(StudyEnded())
    history = events(path)
    assert [event.kind for event in history] == ["run", "epoch", "end", "done"]
    assert history[0] == RunStarted("trial-0000", "trial", params={"a.b": 1})
    assert history[2] == RunEnded("trial-0000", "stopped", "asha")
    times = [event.at for event in history]
    assert times == sorted(times) and all(isinstance(at, int) for at in times)


def test_no_journal_has_no_events(tmp_path: Path) -> None:
    assert events(tmp_path / "none.jsonl") == []


def test_reading_continues_at_last_position(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(StudyEnded("one"))
        (first,) = read(path)
        journal.append(StudyEnded("two"))
        (second,) = read(path, first.end)
    assert second.event == StudyEnded("two")
    assert second.end == path.stat().st_size


def test_torn_last_line_is_closed_on_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(StudyEnded("one"))
    with open(path, "ab") as file:
        file.write(b'{"event": "epo')
    assert events(path) == [StudyEnded("one")]
    with Journal(path) as journal:
        journal.append(StudyEnded("two"))
    assert events(path) == [StudyEnded("one"), StudyEnded("two")]
    assert list(read(path))[-1].end == path.stat().st_size


def test_numbers_json_lacks_are_strings_and_lines_stay_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    with Journal(path) as journal:
        journal.append(EpochFinished("t", 1, values))
        journal.append(
            RunStarted(
                "t", role="trial", params={"p": math.inf, "path": Path("x"), "betas": (0.9, 1)}
            )
        )
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    epoch, run = map(json.loads, path.read_text().splitlines())
    assert epoch["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    assert run["params"] == {"p": "inf", "path": "x", "betas": [0.9, 1]}
    read_back, _ = events(path)
    assert isinstance(read_back, EpochFinished) and repr(read_back.metrics) == repr(values)


def test_threads_may_share_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:

        def write(name: str) -> None:
            for epoch in range(200):
                journal.append(EpochFinished(name, epoch, {"loss": 1.0}))

        threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    history = events(path)
    assert len(history) == 800
    for name in ("t0", "t3"):
        epochs = [e.epoch for e in history if isinstance(e, EpochFinished) and e.id == name]
        assert epochs == list(range(200))


def test_importing_journal_imports_no_mlflow() -> None:
    code = "import sys, raykd.tracking.journal; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _epoch(epoch: int, at: int = 0) -> EpochFinished:
    return EpochFinished("t", epoch, {"acc": epoch / 10}, at=at)


def test_repeated_epochs_are_skipped() -> None:
    state = JournalState()
    run = RunStarted("t", "trial")
    state.update(run)
    assert state.update(_epoch(1)) and state.update(_epoch(2))
    state.update(run)  # the trial starts again after its workers were lost
    assert state.update(_epoch(1, at=9)) is None
    assert state.update(_epoch(2, at=9)) is None
    assert state.update(_epoch(3)) is not None


def test_end_leaves_out_metrics_of_last_epoch() -> None:
    state = JournalState()
    state.update(RunStarted("t", "trial"))
    state.update(_epoch(4))
    end = RunEnded("t", "finished", metrics={"acc": 0.4, "test_acc": 0.3})
    upload = state.update(end)
    assert upload == Upload(RunEnded("t", "finished", metrics={"test_acc": 0.3}), 4)


def test_end_of_study_names_open_runs() -> None:
    state = JournalState()
    for id in ("a", "b"):
        state.update(RunStarted(id, "trial"))
    state.update(RunEnded("a", "finished"))
    assert state.update(StudyEnded("failed")) == Upload(StudyEnded("failed"), open_runs=("b",))


def test_promotion_opens_run_that_had_ended() -> None:
    state = JournalState()
    for event in (RunStarted("a", "trial"), RunEnded("a", "stopped"), RunPromoted("a", 1)):
        state.update(event)
    assert state.update(StudyEnded("failed")) == Upload(StudyEnded("failed"), open_runs=("a",))


def test_epoch_belongs_to_run_that_started() -> None:
    with pytest.raises(KeyError, match="no `run` event"):
        JournalState().update(_epoch(1))
