"""Study folder, and the bus that writes its journal."""

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


def test_new_folder_can_be_reopened(tmp_path: Path) -> None:
    folder = create_folder("small", str(tmp_path / "studies"), "name: small\n", ["a.b=1", "c=2"])
    assert folder.path.parent == tmp_path / "studies"
    assert folder.name == folder.path.name and folder.name.startswith("small-")
    assert folder.study_file.read_text() == "name: small\n"
    assert folder.optuna == f"{folder.path}/optuna.log"
    assert open_folder(folder.path) == (folder, ["a.b=1", "c=2"])
    assert open_folder(str(folder.path))[0] == folder


def test_folders_of_one_second_are_distinct(tmp_path: Path) -> None:
    folders = [create_folder("small", str(tmp_path), "", ()) for _ in range(5)]
    assert len({folder.path for folder in folders}) == 5


def test_relative_folder_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = create_folder("small", "studies", "", ())
    assert folder.storage == str(tmp_path / "studies")
    opened, _ = open_folder(f"studies/{folder.name}")
    monkeypatch.chdir("/")
    assert opened == folder and opened.path.is_absolute()


def test_local_part_of_uri_storage_is_in_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = create_folder("small", "s3://bucket/kd", "", ())
    assert folder.path.parent == tmp_path / "studies"
    assert folder.storage == "s3://bucket/kd"
    assert open_folder(folder.path)[0] == folder


def test_moved_folder_resumes(tmp_path: Path) -> None:
    folder = create_folder("small", str(tmp_path / "here"), "", ["seed=1"])
    (tmp_path / "there").mkdir()
    shutil.move(folder.path, tmp_path / "there" / "renamed")
    opened, overrides = open_folder(tmp_path / "there" / "renamed")
    assert opened.storage == str(tmp_path / "there")
    assert opened.name == "renamed"
    assert overrides == ["seed=1"]


def test_foreign_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no folder\.json"):
        open_folder(tmp_path)
    with pytest.raises(StudyError, match="there is no folder"):
        open_folder(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StudyError, match="there is no folder"):
        open_folder(file)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', '{"format": 1}'])
def test_foreign_folder_json_raises(content: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").write_text(content)
    with pytest.raises(StudyError, match=r"folder\.json:1: "):
        open_folder(tmp_path)


def test_other_format_raises(tmp_path: Path) -> None:
    content = {"format": FORMAT + 1, "storage": str(tmp_path), "overrides": []}
    (tmp_path / "folder.json").write_text(json.dumps(content))
    with pytest.raises(
        StudyError, match=rf"format is {FORMAT + 1}, and this version reads {FORMAT}"
    ):
        open_folder(tmp_path)


def test_unwritable_storage_raises(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StudyError) as refused:
        create_folder("small", str(file / "studies"), "", ())
    [problem] = refused.value.problems
    assert problem.path == "cluster.storage"


def test_no_result_without_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        read_result(tmp_path)


def test_bus_publishes_and_writes(tmp_path: Path) -> None:
    published: list[Event] = []
    also: list[str] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        bus = EventBus(journal, [published.append, lambda e: also.append(e.kind)])
        epoch, phase = EpochFinished("trial-0000", 1, {"val_accuracy": 0.5}), PhaseStarted("ray")
        bus.publish(epoch)
        bus.publish(phase)
    assert published == [epoch, phase]
    assert also == ["epoch", "phase"]
    [stored] = events(tmp_path / "journal.jsonl")
    assert isinstance(stored, EpochFinished), "transient events are not stored"


def test_published_events_are_already_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    counts: list[int] = []
    bus = EventBus(journal, [lambda _: counts.append(len(events(journal.path)))])
    bus.publish(Note(id=None, tags={}, metrics={}))
    bus.publish(StudyEnded(status="finished"))
    journal.close()
    assert counts == [1, 2]
