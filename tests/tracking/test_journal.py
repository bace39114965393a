from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raykd.tracking.journal import Journal, events, read
from raykd.tracking.mlflow_writer import Story


def test_events_come_back_in_order_with_times(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with Journal(path) as journal:
        journal.run("trial-0000", role="trial", params={"a.b": 1})
        journal.epoch("trial-0000", 1, {"loss": 0.5})
        journal.end("trial-0000", "stopped", reason="asha")
        journal.done()
    told = events(path)
    assert [event["event"] for event in told] == ["run", "epoch", "end", "done"]
    assert told[0]["parent"] is None and told[0]["params"] == {"a.b": 1}
    assert told[2]["reason"] == "asha"
    times = [event["at"] for event in told]
    assert times == sorted(times) and all(isinstance(at, int) for at in times)


def test_no_journal_has_no_events(tmp_path: Path) -> None:
    assert events(tmp_path / "none.jsonl") == []


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.done("one")
        (first,) = read(path)
        journal.done("two")
        (second,) = read(path, first.end)
    assert second.event["status"] == "two"
    assert second.end == path.stat().st_size


def test_torn_last_line_is_left_alone_and_closed_off_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.done("one")
    with open(path, "ab") as file:
        file.write(b'{"event": "epo')
    assert [event["status"] for event in events(path)] == ["one"]
    with Journal(path) as journal:
        journal.done("two")
    assert [event["status"] for event in events(path)] == ["one", "two"]
    assert list(read(path))[-1].end == path.stat().st_size


def test_numbers_json_lacks_are_strings_and_lines_stay_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1}
    with Journal(path) as journal:
        journal.epoch("t", 1, values)
        journal.run("t", role="trial", params={"p": math.inf, "path": Path("x"), "betas": (0.9, 1)})
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    epoch, run = events(path)
    assert epoch["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    assert run["params"] == {"p": "inf", "path": "x", "betas": [0.9, 1]}


def test_files_of_its_own_folder_are_relative(tmp_path: Path) -> None:
    with Journal(tmp_path / "study" / "journal.jsonl") as journal:
        journal.artifact(tmp_path / "study" / "report" / "front.csv")
        journal.artifact(tmp_path / "elsewhere.csv")
        journal.model("t", tmp_path / "study" / "best.pt", input_shape=(1, 8, 8))
    inside, outside, model = events(journal.path)
    assert inside["path"] == "report/front.csv"
    assert outside["path"] == str(tmp_path / "elsewhere.csv")
    assert model["path"] == "best.pt" and model["example"] is None


def test_threads_may_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:

        def write(name: str) -> None:
            for epoch in range(200):
                journal.epoch(name, epoch, {"loss": 1.0})

        threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = events(path)
    assert len(told) == 800
    for name in ("t0", "t3"):
        assert [e["epoch"] for e in told if e["id"] == name] == list(range(200))


def test_importing_the_journal_imports_no_mlflow() -> None:
    code = "import sys, raykd.tracking.journal; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _epoch(epoch: int, at: int = 0) -> dict:
    return {"event": "epoch", "at": at, "id": "t", "epoch": epoch, "metrics": {"acc": epoch / 10}}


def test_story_drops_epochs_told_twice() -> None:
    story = Story()
    run = {"event": "run", "at": 0, "id": "t", "role": "trial"}
    story.take(run)
    assert story.take(_epoch(1)) and story.take(_epoch(2))
    story.take(run)  # the trial starts again after its workers were lost
    assert story.take(_epoch(1, at=9)) is None
    assert story.take(_epoch(2, at=9)) is None
    assert story.take(_epoch(3)) is not None


def test_story_leaves_out_of_the_end_what_the_last_epoch_told() -> None:
    story = Story()
    story.take({"event": "run", "at": 0, "id": "t", "role": "trial"})
    story.take(_epoch(4))
    end = {"event": "end", "at": 1, "id": "t", "metrics": {"acc": 0.4, "test_acc": 0.3}}
    told = story.take(end)
    assert told is not None
    assert told["metrics"] == {"test_acc": 0.3} and told["epoch"] == 4


def test_story_tells_done_which_runs_are_open() -> None:
    story = Story()
    for id in ("a", "b"):
        story.take({"event": "run", "at": 0, "id": id, "role": "trial"})
    story.take({"event": "end", "at": 1, "id": "a"})
    done = story.take({"event": "done", "status": "failed"})
    assert done is not None and done["open"] == ["b"]


def test_story_wants_runs_started() -> None:
    with pytest.raises(KeyError, match="no `run` event"):
        Story().take(_epoch(1))
