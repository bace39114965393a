"""A resumed study is the one that was begun, in the folder it was begun in."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raykd.errors import StudyError
from raykd.study.checks.load import load_study
from raykd.tracking.events import Event, Note, RunEnded, StudyEnded, WarningIssued
from raykd.tracking.journal import Listener, events
from raykd.training.build import task_of
from raykd.tuning import provenance, search_run
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.resume import check_unchanged, file_digests, other_versions, resumed
from raykd.tuning.search_run import search
from raykd.tuning.single_run import distill
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_input import load_data
from raykd.tuning.study_lock import active_driver

STUDY = """\
name: begun
data: {name: image_folder, root: data, size: 8, channels: 1}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 16}}
student: {model: {name: 'nets.small:build', args: {width: 6}}}
knowledge: [{loss: {name: kd, temperature: {choice: [2, 4]}}}]
train: {epochs: 2, batch_size: 16}
search: {trials: 2, replicates: 1, finalists: 1, sampler: grid}
"""

CODE = {
    "nets/__init__.py": "",
    "nets/small.py": "from .parts import layers\n\n\ndef build(task, width):\n"
    "    return layers(task, width)\n",
    "nets/parts.py": "from math import prod\n\nfrom torch import nn\n\n\ndef layers(task, width):\n"
    "    size = prod(task.input_shape)\n    first = nn.Linear(size, width)\n"
    "    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, task.classes))\n",
    "nets/unused.py": "1 / 0\n",
}


def stops_at(event: str, number: int) -> Listener:
    """A listener that interrupts the run at the event's `number`th time."""
    seen = 0

    def listener(told: Event) -> None:
        nonlocal seen
        seen += told.kind == event
        if told.kind == event and seen == number:
            raise KeyboardInterrupt

    return listener


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data, code, and a search that was interrupted in its first trial."""
    folder = tmp_path_factory.mktemp("begun")
    for name, text in CODE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    generator = np.random.default_rng(0)
    for label, name in enumerate(["blue", "green", "red"]):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(16):
            pixels = generator.integers(0, 40, (8, 8)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"data/{name}/{number}.png")
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(search_run, "RayExecutor", LocalExecutor)
        interrupt("study.yaml")
    return folder


def interrupt(study: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(study, allow_import=True, listeners=[stops_at("epoch", 3)])


@pytest.fixture
def project(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, begun there; searches train in this process."""
    folder = tmp_path / "project"
    shutil.copytree(begun, folder)
    [file] = folder.glob("studies/begun-*/folder.json")
    file.write_text(file.read_text().replace(str(begun), str(folder)))
    for name in [one for one in sys.modules if one.partition(".")[0] == "nets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(search_run, "RayExecutor", LocalExecutor)
    return folder


def study_of(project: Path) -> Path:
    """The folder of its search, the last where there are more."""
    return max(project.glob("studies/begun-*"))


def refusal(folder: Path, **changed: Any) -> str:
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(StudyError) as refused:
        search("", resume=folder, **{"allow_import": True, **changed})
    assert (folder / "journal.jsonl").read_bytes() == before, "nothing was started"
    return str(refused.value)


def test_it_goes_on_from_another_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_of(project)
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = search("", resume=os.path.relpath(folder), allow_import=True)
    assert result.best is not None and len(result.trials) == 2
    assert Path.cwd() == elsewhere and list(elsewhere.iterdir()) == []
    assert (project / "mlflow.db").exists()
    assert result.tracking_uri == f"sqlite:///{project}/mlflow.db"
    assert active_driver(folder) is None
    statuses = [
        one.status for one in events(folder / "journal.jsonl") if isinstance(one, StudyEnded)
    ]
    assert statuses == ["interrupted", "finished"]


def test_a_project_that_was_moved_goes_on_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study_of(project)
    moved = project.parent / "moved"
    monkeypatch.chdir("/")
    shutil.move(project, moved)
    result = search("", resume=moved / "studies" / folder.name, allow_import=True)
    assert result.best is not None
    assert (moved / "mlflow.db").exists()


def test_a_folder_that_was_moved_alone_means_where_it_was_begun(
    project: Path, tmp_path: Path
) -> None:
    folder = study_of(project)
    shutil.move(folder, tmp_path / "renamed")
    result = search("", resume=tmp_path / "renamed", allow_import=True)
    assert result.best is not None and result.folder == tmp_path / "renamed"


def test_the_working_folder_of_an_older_study_is_the_present_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study_of(project)
    content = json.loads((folder / "folder.json").read_text())
    del content["begun_in"], content["path"]
    (folder / "folder.json").write_text(json.dumps(content))
    assert open_folder(folder)[0].begun_in is None
    assert search("", resume=folder, allow_import=True).best is not None


def test_another_study_is_refused(project: Path) -> None:
    folder = study_of(project)
    given = folder / "study.yaml"
    given.write_text(STUDY.replace("epochs: 2,", "epochs: 3,").replace("[2, 4]", "[2, 4, 8]"))
    said = refusal(folder)
    assert "train.epochs: 2 -> 3" in said and str(given) in said
    assert "knowledge[0].loss.temperature.choice: [2, 4] -> [2, 4, 8]" in said
    given.write_text(STUDY + "cache: {use: never}\n")
    assert "cache.use: nothing -> never" in refusal(folder)
    given.write_text(f"# The same.\n{STUDY}\ncluster: {{slots: 1}}\n")
    assert search("", resume=folder, allow_import=True).best is not None


def test_other_overrides_are_refused(project: Path) -> None:
    folder = study_of(project)
    content = json.loads((folder / "folder.json").read_text())
    content["overrides"] = ["train.epochs=5"]
    (folder / "folder.json").write_text(json.dumps(content))
    assert "train.epochs: 2 -> 5" in refusal(folder)


def test_other_data_are_refused(project: Path) -> None:
    folder = study_of(project)
    (project / "data" / "blue").rename(project / "data" / "violet")
    (project / "data" / "red" / "3.png").unlink()
    said = refusal(folder)
    assert "the data have changed since the study started (fingerprint " in said
    assert "classes gone: blue; new classes: violet" in said and "samples" in said
    assert "train.epochs" not in said


def test_other_code_is_refused(project: Path) -> None:
    folder = study_of(project)
    (project / "nets" / "unused.py").write_text("")
    parts = project / "nets" / "parts.py"
    parts.write_text(parts.read_text().replace("ReLU", "GELU"))
    said = refusal(folder)
    assert "nets/parts.py (" in said and "unused" not in said and "small.py" not in said
    parts.write_text(CODE["nets/parts.py"])
    assert search("", resume=folder, allow_import=True).best is not None


def test_other_weights_are_refused(project: Path) -> None:
    from safetensors.torch import load_file, save_file

    [weights] = (project / "studies" / "teachers").glob("*.safetensors")
    shutil.copy(weights, project / "teacher.safetensors")
    shutil.rmtree(study_of(project))
    text = STUDY.replace("train: {epochs: 1, batch_size: 16}", "weights: teacher.safetensors")
    (project / "study.yaml").write_text(text)
    interrupt("study.yaml")
    folder = study_of(project)
    changed = {key: value + 1 for key, value in load_file("teacher.safetensors").items()}
    save_file(changed, "teacher.safetensors")
    assert "teacher.safetensors (" in refusal(folder)


def test_other_versions_are_warned_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_of(project)
    present = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: present | {"torch": "9.9", "timm": "0.1"})
    told: list[Event] = []
    search("", resume=folder, allow_import=True, listeners=[told.append])
    [warning] = [one.text for one in told if isinstance(one, WarningIssued)]
    assert f"torch {present['torch']} -> 9.9" in warning and "ray" not in warning
    tags = [e.tags for e in events(folder / "journal.jsonl") if isinstance(e, Note)]
    assert any("torch" in one.get("resumed_with", "") for one in tags)


def test_a_study_at_work_is_not_resumed(project: Path) -> None:
    folder = study_of(project)
    said: list[str] = []

    def resumes_too(event: Event) -> None:
        if isinstance(event, RunEnded) and not said:
            with pytest.raises(StudyError) as refused, resumed(folder, "search"):
                pass
            said.append(str(refused.value))

    search("", resume=folder, allow_import=True, listeners=[resumes_too])
    assert f"process {os.getpid()}" in said[0]
    ends = [e.id for e in events(folder / "journal.jsonl") if isinstance(e, RunEnded)]
    assert len(ends) == len(set(ends))


def test_a_fresh_study_holds_its_folder(project: Path) -> None:
    seen: list[bool] = []

    def looks(event: Event) -> None:
        if isinstance(event, RunEnded):
            folder = study_of(project)
            seen.append(active_driver(folder) is not None)

    study = load_study(
        "study.yaml", ["knowledge[0].loss.temperature=4", "search.replicates=0"], allow_import=True
    )
    result = distill(study, listeners=[looks])
    assert seen and all(seen) and active_driver(result.folder) is None


def test_a_journal_without_a_beginning_refuses_nothing(project: Path) -> None:
    """A process that was killed at once has written no event."""
    folder = study_of(project)
    study = load_study(folder / "study.yaml", allow_import=True)
    data = load_data(study.settings)
    check_unchanged([], open_folder(folder)[0], study, data)
    assert other_versions([], {"torch": "1"}) == []


def test_journals_of_older_versions_know_less(project: Path) -> None:
    folder = study_of(project)
    journal = folder / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        for key in ("content", "overrides", "class_names"):
            record.pop(key, None)
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert search("", resume=folder, allow_import=True).best is not None


def test_content_names_every_file_once(project: Path) -> None:
    study = load_study("study.yaml", allow_import=True)
    task = task_of(load_data(study.settings))
    found = file_digests(study, task)
    assert [*found] == ["nets/__init__.py", "nets/parts.py", "nets/small.py"]
    assert all(len(digest) == 64 for digest in found.values())
