"""Files of somebody else run no code, in whatever place of a study folder they lie."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.layer_study.run import pairs
from raykd.study.checks.load import load_study
from raykd.tracking.events import ArtifactSaved, Event, ModelSaved, RunEnded
from raykd.tracking.journal import Journal, events
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import read_result
from raykd.tuning.search_run import search

STUDY = """\
name: foreign
data: {name: digits, limit: 100, val_limit: 40}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, depth: 1, width: {choice: [4, 6]}}}
knowledge: [{loss: kd}]
train: {epochs: 1, batch_size: 32}
search: {trials: 2, replicates: 1, finalists: 1, sampler: random}
"""


class WritesFile:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a study that has ended, with its MLflow store."""
    root = tmp_path_factory.mktemp("foreign")
    file = root / "study.yaml"
    file.write_text(STUDY)
    settings = [f"cluster.storage={root}/studies", f"tracking.uri=sqlite:///{root}/mlflow.db"]
    search(file, overrides=settings, executor=LocalExecutor())
    return root


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the study's folder, with its own storage."""
    copy = tmp_path / "theirs"
    shutil.copytree(finished, copy)
    [folder] = copy.glob("studies/foreign-*")
    for name in ("folder.json", "journal.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(str(finished), str(copy)))
    return folder


def run(*command: str) -> Result:
    """Run a verb of the command line."""
    return CliRunner().invoke(app, list(command))


def acts(folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads a study folder."""
    trial = read_result(folder).finalists[0].trial.id
    uri = ["--uri", f"sqlite:///{folder.parents[1]}/again.db"]
    return {
        "validate": lambda: run("validate", str(folder / "study.yaml")),
        "report": lambda: run("report", str(folder)),
        "page": lambda: run("report", str(folder), "-o", f"{folder}/page", "--predictions"),
        "status": lambda: run("status", str(folder)),
        "ls": lambda: run("ls", str(folder.parent)),
        "export": lambda: run("export", f"{folder}:{trial}", "-o", f"{folder}/out", "--no-test"),
        "sync": lambda: run("sync", str(folder), "--from-start", *uri),
        "student": lambda: read_result(folder).student(),
        "resume": lambda: search("", resume=folder, executor=LocalExecutor()),
        "search": lambda: search(f"{folder}:{trial}", executor=LocalExecutor()),
    }


@pytest.mark.slow
def test_no_planted_file_runs(folder: Path, tmp_path: Path) -> None:
    """Every file is a pickle that writes a marker, one after another and all at once."""
    marker = tmp_path / "marker"
    named = acts(folder)
    root = folder.parents[1]
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    students = [file for file in files if file.suffix == ".pt"]
    assert students, "the study has saved a student"
    readable = {"journal.jsonl", "folder.json", "study.yaml", "driver.json", "mlflow.db"}
    planted = [file for file in files if file.name not in readable]
    for file in planted:
        torch.save(WritesFile(marker), file)
    for name in ("states/trial-0000.0.safetensors", "states/trial-0000.0.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save(WritesFile(marker), folder / name)
    for name, act in named.items():
        with contextlib.suppress(StudyError, ValueError):
            act()
        assert not marker.exists(), name
    for name in readable - {"mlflow.db"}:
        torch.save(WritesFile(marker), folder / name)
        for act in named.values():
            with contextlib.suppress(StudyError, ValueError):
                act()
        assert not marker.exists(), name


def test_planted_student_is_named(folder: Path, tmp_path: Path) -> None:
    [file] = folder.glob("students/*.pt")
    torch.save(WritesFile(tmp_path / "marker"), file)
    with pytest.raises(ValueError, match=rf"{re.escape(file.name)} holds .*open.*--allow-import"):
        read_result(folder).student()
    assert not (tmp_path / "marker").exists()


LAYERS = """\
name: layers
data: {name: digits, limit: 100, val_limit: 40}
teacher: {model: {name: mlp, depth: 2, width: 8}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, depth: 2, width: 6}}
knowledge: [{loss: hint, pairs: {pairing: {hint: [stage1], guided: auto}}}]
train: {epochs: 1, batch_size: 32}
search: {replicates: 0, pairs: {seeds: 3, arms: [], steps: 1, batches: 1}}
"""


@pytest.mark.slow
def test_layer_study_continues_without_probe_of_planted_student(tmp_path: Path) -> None:
    """The baseline's network is planted, damaged or gone before its layers are probed."""
    file, marker = tmp_path / "study.yaml", tmp_path / "marker"
    file.write_text(LAYERS)
    breaks: dict[str, tuple[Callable[[Path], object], str]] = {
        "none/seed-0": (lambda student: torch.save(WritesFile(marker), student), "holds .*open"),
        "none/seed-1": (lambda student: student.write_bytes(b"\0" * 100), "not a whole file"),
        "none/seed-2": (Path.unlink, "FileNotFoundError"),
    }

    def plant(event: Event) -> None:
        if isinstance(event, RunEnded) and event.id in breaks:
            [folder] = tmp_path.glob("studies/layers-*")
            breaks[event.id][0](folder / "students" / f"{event.id.replace('/', '.')}.pt")

    settings = [f"cluster.storage={tmp_path}/studies", f"tracking.uri=sqlite:///{tmp_path}/m.db"]
    result = pairs(file, overrides=settings, listeners=[plant], executor=LocalExecutor())
    assert not marker.exists()
    assert {record.status for record in result.records.of("trial")} == {"finished"}
    probes = {record.id: record for record in result.records.of("probe")}
    assert len(probes) == 3 and result.best is not None
    for number, (_, reason) in enumerate(breaks.values()):
        probe = probes[f"predictors/seed-{number}"]
        assert probe.status == "failed" and re.search(reason, probe.reason), probe.reason


@pytest.mark.parametrize("place", ["teacher", "student"])
@pytest.mark.parametrize("uri", ["models:/theirs@best", "runs:/abc/model", "mlflow-artifacts:/a"])
def test_networks_of_mlflow_need_permission(uri: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    teachers = [f"{{weights: '{uri}'}}", f"{{choice: [{{model: mlp}}, {{weights: '{uri}'}}]}}"]
    models = [f"{{model: '{uri}'}}", f"{{model: {{choice: [mlp, vit, cnn, '{uri}']}}}}"]
    for value in teachers if place == "teacher" else models:
        with pytest.raises(StudyError, match=r"run.* code .*(.|\n)*--allow-import"):
            load_study(file, [f"{place}={value}"])


OUTSIDE = ("../outside", "/etc/hostname", "linked", "../../..")


@pytest.mark.slow
def test_only_files_of_folder_are_uploaded(folder: Path) -> None:
    """The journal of somebody else cannot have files of this machine sent to a server."""
    from mlflow import MlflowClient

    (folder.parent / "outside").write_text("secret")
    (folder / "linked").symlink_to(folder.parent / "outside")
    journal = folder / "journal.jsonl"
    [model] = [event for event in events(journal) if isinstance(event, ModelSaved)]
    writer, shape = Journal(folder / "new.jsonl"), model.input_shape
    for path in OUTSIDE:
        writer.append(ArtifactSaved(None, path, folder="stolen"))
        writer.append(ModelSaved(model.id, path, input_shape=shape))
        writer.append(ModelSaved(model.id, model.path, input_shape=shape, example=path))
        writer.append(ModelSaved(model.id, model.path, input_shape=shape, program=path))
    lines = [
        line for line in journal.read_text().splitlines() if json.loads(line)["event"] != "model"
    ]
    added = (folder / "new.jsonl").read_text().splitlines()
    journal.write_text("\n".join([*lines[:-1], *added, lines[-1]]) + "\n")
    store = f"sqlite:///{folder.parents[1]}/again.db"
    done = run("sync", str(folder), "--uri", store)
    assert done.exit_code == 1 and "lies outside of" in done.output
    client = MlflowClient(store, store)
    for experiment in client.search_experiments():
        for each in client.search_runs([experiment.experiment_id]):
            names = [item.path for item in client.list_artifacts(each.info.run_id)]
            assert "stolen" not in names
        for saved in client.search_logged_models([experiment.experiment_id]):
            assert saved.status != "READY"
