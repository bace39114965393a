"""A study's folder, and the journal that others listen to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.tracking.events import EpochFinished, Event, Note, PhaseStarted, StudyEnded
from raykd.tracking.journal import EventBus, Journal, events
from raykd.tuning.result import read_result
from raykd.tuning.study_dir import FORMAT, create_folder, open_folder


def test_a_fresh_folder_can_be_opened_again(tmp_path: Path) -> None:
    made = create_folder("small", str(tmp_path / "studies"), "name: small\n", ["a.b=1", "c=2"])
    assert made.path.parent == tmp_path / "studies"
    assert made.name == made.path.name and made.name.startswith("small-")
    assert made.study_file.read_text() == "name: small\n"
    assert made.optuna == f"{made.path}/optuna.log"
    assert open_folder(made.path) == (made, ["a.b=1", "c=2"])
    assert open_folder(str(made.path))[0] == made


def test_folders_made_in_the_same_second_are_distinct(tmp_path: Path) -> None:
    made = [create_folder("small", str(tmp_path), "", ()) for _ in range(5)]
    assert len({folder.path for folder in made}) == 5


def test_a_relative_folder_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = create_folder("small", "studies", "", ())
    assert made.storage == str(tmp_path / "studies")
    opened, _ = open_folder(f"studies/{made.name}")
    monkeypatch.chdir("/")
    assert opened == made and opened.path.is_absolute()


def test_with_a_uri_the_local_part_lies_below_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = create_folder("small", "s3://bucket/kd", "", ())
    assert made.path.parent == tmp_path / "studies"
    assert made.storage == "s3://bucket/kd"
    assert open_folder(made.path)[0] == made


def test_a_folder_that_was_moved_whole_goes_on_there(tmp_path: Path) -> None:
    made = create_folder("small", str(tmp_path / "here"), "", ["seed=1"])
    (tmp_path / "there").mkdir()
    shutil.move(made.path, tmp_path / "there" / "renamed")
    opened, overrides = open_folder(tmp_path / "there" / "renamed")
    assert opened.storage == str(tmp_path / "there")
    assert opened.name == "renamed"
    assert overrides == ["seed=1"]


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no folder\.json"):
        open_folder(tmp_path)
    with pytest.raises(StudyError, match=r"has no folder\.json"):
        open_folder(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StudyError, match=r"has no folder\.json"):
        open_folder(file)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', '{"format": 1}'])
def test_a_foreign_folder_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").write_text(content)
    with pytest.raises(StudyError, match="was not written by raykd"):
        open_folder(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    content = {"format": FORMAT + 1, "storage": str(tmp_path), "overrides": []}
    (tmp_path / "folder.json").write_text(json.dumps(content))
    with pytest.raises(
        StudyError, match=rf"format is {FORMAT + 1}, and this version reads {FORMAT}"
    ):
        open_folder(tmp_path)


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StudyError) as refused:
        create_folder("small", str(file / "studies"), "", ())
    [problem] = refused.value.problems
    assert problem.path == "cluster.storage"


def test_no_result_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        read_result(tmp_path)


def test_a_bus_publishes_and_writes(tmp_path: Path) -> None:
    heard: list[Event] = []
    also: list[str] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        bus = EventBus(journal, [heard.append, lambda e: also.append(e.kind)])
        epoch, phase = EpochFinished("trial-0000", 1, {"val_accuracy": 0.5}), PhaseStarted("ray")
        bus.publish(epoch)
        bus.publish(phase)
    assert heard == [epoch, phase]
    assert also == ["epoch", "phase"]
    [kept] = events(tmp_path / "journal.jsonl")
    assert isinstance(kept, EpochFinished), "what is only told is not kept"


def test_what_is_told_is_already_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    seen: list[int] = []
    bus = EventBus(journal, [lambda _: seen.append(len(events(journal.path)))])
    bus.publish(Note(id=None, tags={}, metrics={}))
    bus.publish(StudyEnded(status="finished"))
    journal.close()
    assert seen == [1, 2]
