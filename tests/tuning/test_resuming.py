"""Resumed studies continue with the same study, data, code and folder."""

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
from raykd.study.config import Cluster
from raykd.tracking.events import (
    Event,
    Note,
    RunEnded,
    StudyEnded,
    SummaryWritten,
    TrackingEnded,
    WarningIssued,
)
from raykd.tracking.journal import Listener, events
from raykd.training.build import signature_of
from raykd.tuning import provenance, search_run
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.resume import check_unchanged, file_digests, other_versions, resumed
from raykd.tuning.search_run import search
from raykd.tuning.single_run import distill
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_input import load_data
from raykd.tuning.study_lock import active_driver

STUDY = """\
name: interrupted_project
data: {name: image_folder, root: data, size: 8, channels: 1}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 16}}
student: {model: {name: 'nets.small:build', args: {width: 6}}}
knowledge: [{loss: {name: kd, temperature: {choice: [2, 4]}}}]
train: {epochs: 2, batch_size: 16}
search: {trials: 2, replicates: 1, finalists: 1, sampler: grid}
"""

CODE = {
    "nets/__init__.py": "",
    "nets/small.py": "from .parts import layers\n\n\ndef build(signature, width):\n"
    "    return layers(signature, width)\n",
    "nets/parts.py": "from math import prod\n\nfrom torch import nn\n\n\ndef "
    "layers(signature, width):\n    size = prod(signature.input_shape)\n"
    "    first = nn.Linear(size, width)\n"
    "    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), "
    "nn.Linear(width, signature.classes))\n",
    "nets/unused.py": "1 / 0\n",
}


def stops_at(event: str, number: int) -> Listener:
    """Listener that interrupts the run at the `number`th event of a kind."""
    count = 0

    def listener(event_: Event) -> None:
        nonlocal count
        count += event_.kind == event
        if event_.kind == event and count == number:
            raise KeyboardInterrupt

    return listener


@pytest.fixture(scope="module")
def interrupted_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folder with data, code, and a search interrupted in its first trial."""
    folder = tmp_path_factory.mktemp("interrupted_project")
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
def project(interrupted_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of that folder with its search; searches train in this process."""
    folder = tmp_path / "project"
    shutil.copytree(interrupted_project, folder)
    [file] = folder.glob("studies/interrupted_project-*/folder.json")
    file.write_text(file.read_text().replace(str(interrupted_project), str(folder)))
    for name in [module for module in sys.modules if module.partition(".")[0] == "nets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(search_run, "RayExecutor", LocalExecutor)
    return folder


def study_of(project: Path) -> Path:
    """Folder of its (last) search."""
    return max(project.glob("studies/interrupted_project-*"))


def refusal(folder: Path, **changed: Any) -> str:
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(StudyError) as refused:
        search("", resume=folder, **{"allow_import": True, **changed})
    assert (folder / "journal.jsonl").read_bytes() == before, "nothing was started"
    return str(refused.value)


def test_resume_from_another_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        event.status for event in events(folder / "journal.jsonl") if isinstance(event, StudyEnded)
    ]
    assert statuses == ["interrupted", "finished"]


class NeverExecutor(LocalExecutor):
    """Machine that must not be used."""

    def check(self, cluster: Cluster) -> None:
        raise AssertionError("a finished study needs no machine")

    def execute(self, run: Any, session: Any) -> Any:
        raise AssertionError("a finished study trains nothing")


def test_finished_search_is_not_started_again(project: Path) -> None:
    folder = study_of(project)
    search("", resume=folder, allow_import=True)
    journal = (folder / "journal.jsonl").read_bytes()
    received: list[Event] = []
    again = search(
        "", resume=folder, allow_import=True, listeners=[received.append], executor=NeverExecutor()
    )
    assert again.best is not None and len(again.trials) == 2
    assert (folder / "journal.jsonl").read_bytes() == journal
    [warning] = received
    assert isinstance(warning, WarningIssued) and "is finished" in warning.text
    assert f"raykd extend {folder} --trials +8" in warning.text
    # what MLflow does not have is sent
    (folder / "journal.jsonl.sent").unlink()
    received.clear()
    search(
        "", resume=folder, allow_import=True, listeners=[received.append], executor=NeverExecutor()
    )
    assert isinstance(received[-1], TrackingEnded) and received[-1].delivered
    # a number that has grown in the study file is trained
    file = folder / "study.yaml"
    file.write_text(file.read_text().replace("replicates: 1", "replicates: 2"))
    grown = search("", resume=folder, allow_import=True)
    assert len(grown.records.of("replicate")) == 2


def test_interrupted_search_names_its_best_trial(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two interrupted studies left a note of their experiment without any winner."""
    with pytest.raises(KeyboardInterrupt):
        search("study.yaml", allow_import=True, listeners=[stops_at("epoch", 4)])
    history = events(study_of(project) / "journal.jsonl")
    summaries = [event for event in history if isinstance(event, SummaryWritten)]
    assert [each.has_result for each in summaries] == [False, True]
    assert summaries[1].headline.startswith("Interrupted; best so far: **")
    assert "is the best trial: val accuracy" in summaries[1].headline
    assert isinstance(history[-1], StudyEnded) and history[-1].status == "interrupted"


def test_moved_project_resumes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_of(project)
    moved = project.parent / "moved"
    monkeypatch.chdir("/")
    shutil.move(project, moved)
    result = search("", resume=moved / "studies" / folder.name, allow_import=True)
    assert result.best is not None
    assert (moved / "mlflow.db").exists()


def test_moved_study_folder_uses_its_original_working_folder(project: Path, tmp_path: Path) -> None:
    folder = study_of(project)
    shutil.move(folder, tmp_path / "renamed")
    result = search("", resume=tmp_path / "renamed", allow_import=True)
    assert result.best is not None and result.folder == tmp_path / "renamed"


def test_studies_without_working_folder_use_current_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study_of(project)
    content = json.loads((folder / "folder.json").read_text())
    del content["begun_in"], content["path"]
    (folder / "folder.json").write_text(json.dumps(content))
    assert open_folder(folder)[0].begun_in is None
    assert search("", resume=folder, allow_import=True).best is not None


def test_other_study_raises(project: Path) -> None:
    folder = study_of(project)
    study_file = folder / "study.yaml"
    study_file.write_text(STUDY.replace("epochs: 2,", "epochs: 3,").replace("[2, 4]", "[2, 4, 8]"))
    message = refusal(folder)
    assert "train.epochs: 2 -> 3" in message and str(study_file) in message
    assert "knowledge[0].loss.temperature.choice: [2, 4] -> [2, 4, 8]" in message
    study_file.write_text(STUDY + "cache: {use: never}\n")
    assert "cache.use: nothing -> never" in refusal(folder)
    study_file.write_text(f"# The same.\n{STUDY}\ncluster: {{slots: 1}}\n")
    assert search("", resume=folder, allow_import=True).best is not None


def test_other_overrides_raise(project: Path) -> None:
    folder = study_of(project)
    content = json.loads((folder / "folder.json").read_text())
    content["overrides"] = ["train.epochs=5"]
    (folder / "folder.json").write_text(json.dumps(content))
    assert "train.epochs: 2 -> 5" in refusal(folder)


def test_other_data_raise(project: Path) -> None:
    folder = study_of(project)
    (project / "data" / "blue").rename(project / "data" / "violet")
    (project / "data" / "red" / "3.png").unlink()
    message = refusal(folder)
    assert "the data have changed since the study started (fingerprint " in message
    assert "classes gone: blue; new classes: violet" in message and "samples" in message
    assert "train.epochs" not in message


def test_other_code_raises(project: Path) -> None:
    folder = study_of(project)
    (project / "nets" / "unused.py").write_text("")
    parts = project / "nets" / "parts.py"
    parts.write_text(parts.read_text().replace("ReLU", "GELU"))
    message = refusal(folder)
    assert "nets/parts.py (" in message and "unused" not in message and "small.py" not in message
    parts.write_text(CODE["nets/parts.py"])
    assert search("", resume=folder, allow_import=True).best is not None


def test_other_weights_raise(project: Path) -> None:
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


def test_other_versions_warn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study_of(project)
    present = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: present | {"torch": "9.9", "timm": "0.1"})
    published: list[Event] = []
    search("", resume=folder, allow_import=True, listeners=[published.append])
    [warning] = [item.text for item in published if isinstance(item, WarningIssued)]
    assert f"torch {present['torch']} -> 9.9" in warning and "ray" not in warning
    tags = [e.tags for e in events(folder / "journal.jsonl") if isinstance(e, Note)]
    assert any("torch" in item.get("resumed_with", "") for item in tags)


def test_running_study_is_not_resumed(project: Path) -> None:
    folder = study_of(project)
    message: list[str] = []

    def resumes_too(event: Event) -> None:
        if isinstance(event, RunEnded) and not message:
            with pytest.raises(StudyError) as refused, resumed(folder, "search"):
                pass
            message.append(str(refused.value))

    search("", resume=folder, allow_import=True, listeners=[resumes_too])
    assert f"process {os.getpid()}" in message[0]
    ends = [e.id for e in events(folder / "journal.jsonl") if isinstance(e, RunEnded)]
    assert len(ends) == len(set(ends))


def test_new_study_locks_its_folder(project: Path) -> None:
    locked: list[bool] = []

    def looks(event: Event) -> None:
        if isinstance(event, RunEnded):
            folder = study_of(project)
            locked.append(active_driver(folder) is not None)

    study = load_study(
        "study.yaml", ["knowledge[0].loss.temperature=4", "search.replicates=0"], allow_import=True
    )
    result = distill(study, listeners=[looks])
    assert locked and all(locked) and active_driver(result.folder) is None


def test_empty_journal_is_accepted(project: Path) -> None:
    """A process that was killed immediately has written no event."""
    folder = study_of(project)
    study = load_study(folder / "study.yaml", allow_import=True)
    data = load_data(study.settings)
    check_unchanged([], open_folder(folder)[0], study, data)
    assert other_versions([], {"torch": "1"}) == []


def test_journals_of_older_versions_lack_fields(project: Path) -> None:
    folder = study_of(project)
    journal = folder / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        for key in ("content", "overrides", "class_names"):
            record.pop(key, None)
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert search("", resume=folder, allow_import=True).best is not None


def test_digests_contain_every_file_once(project: Path) -> None:
    study = load_study("study.yaml", allow_import=True)
    signature = signature_of(load_data(study.settings))
    digests = file_digests(study, signature)
    assert [*digests] == ["nets/__init__.py", "nets/parts.py", "nets/small.py"]
    assert all(len(digest) == 64 for digest in digests.values())
