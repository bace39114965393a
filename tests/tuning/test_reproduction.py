"""Reproductions: a student trained again from its record has the same figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raykd
from helpers.finished_search import copy_study, finished_search
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.report.terminal.reproduction import verdict
from raykd.tracking.events import Event, WarningIssued
from raykd.tracking.mlflow_client import connect
from raykd.tuning.reproduced_figures import Figure, Reproduction, Retraining
from raykd.tuning.reproduction import reproduce
from raykd.tuning.result import read_result
from raykd.tuning.run_reference import recorded_training, split_reference

STUDY = """\
name: again
seed: 3
data: {name: digits, limit: 100, val_limit: 40}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, depth: 1, width: {choice: [4, 6]}}}
knowledge: [{loss: {name: kd, temperature: {uniform: [1, 4]}}}]
train: {epochs: 2, batch_size: 32}
search: {trials: 2, replicates: 1, finalists: 1, sampler: random}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_search(tmp_path_factory.mktemp("recorded"), STUDY)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the study's folder, with its teachers."""
    return copy_study(folder, tmp_path)


def change(folder: Path, event: str, id: str, **values: object) -> None:
    """Change lines of the journal of a training."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == event and line.get("id") == id:
            line.update(values)
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("role", ["trial", "replicate", "alone"])
def test_every_student_is_reproduced_bit_for_bit(folder: Path, role: str) -> None:
    record = read_result(folder).records.of(role)[-1]  # type: ignore[arg-type]
    before = (folder / "journal.jsonl").read_bytes()
    result = reproduce(f"{folder}:{record.id}")
    assert result.is_exact and result.agrees and result.differences == ()
    assert "equal bit for bit, after each of 2 epochs" in verdict(result)
    names = {figure.name for figure in result.student.figures}
    assert {"val_accuracy", "train_loss", "params"} <= names
    assert ("test_accuracy" in names) is (role != "trial")
    assert not result.teachers, "the teacher is reused"
    assert (folder / "journal.jsonl").read_bytes() == before
    assert result.folder.parent == folder.parent


def test_missing_teacher_is_trained_again(copy: Path) -> None:
    for file in (copy.parent / "teachers").iterdir():
        file.unlink()
    result = reproduce(copy)
    assert result.agrees and result.source == f"{copy}:{read_result(copy).best.id}"  # type: ignore[union-attr]
    [teacher] = result.teachers
    assert teacher.id == "teacher-0" and all(figure.is_equal for figure in teacher.figures)


def test_stopped_training_stops_at_same_epoch(copy: Path) -> None:
    lines = (copy / "journal.jsonl").read_text().splitlines(keepends=True)
    second = [n for n, line in enumerate(lines) if '"trial-0001", "epoch": 2' in line]
    del lines[second[0]]
    (copy / "journal.jsonl").write_text("".join(lines))
    change(copy, "end", "trial-0001", status="stopped", metrics={})
    result = reproduce(f"{copy}:trial-0001")
    assert result.is_exact and result.student.epochs == 1
    [record] = read_result(result.folder).records.of("trial")
    assert record.status == "stopped" and len(record.epochs) == 1


def test_other_figures_and_versions_are_named(copy: Path) -> None:
    record = read_result(copy).records["trial-0000"]
    changed = {**record.metrics, "val_loss": record.metrics["val_loss"] + 0.25}
    change(copy, "end", "trial-0000", metrics=changed)
    text = (copy / "journal.jsonl").read_text()
    torch_version = json.loads(text.splitlines()[0])["versions"]["torch"]
    (copy / "journal.jsonl").write_text(text.replace(f'"torch": "{torch_version}"', '"torch": "1"'))
    done = CliRunner().invoke(app, ["reproduce", f"{copy}:trial-0000"])
    assert done.exit_code == 1
    assert "do not agree within 0.001" in done.output.replace("\n", " ")
    assert f"torch 1 -> {torch_version}" in done.output
    done = CliRunner().invoke(
        app, ["reproduce", f"{copy}:trial-0000", "--tolerance", "0.5", "--json"]
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and facts["agrees"] and not facts["exact"]
    assert facts["figures"]["val_loss"]["difference"] == pytest.approx(-0.25)


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder.parents[1]}/mlflow.db"


def mlflow_ids(folder: Path) -> dict[str, str]:
    """Return MLflow's run IDs of a study, by training; "": the study's."""
    client = connect(store_of(folder))
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    of_study = [run for run in runs if run.data.tags["raykd.study"] == read_result(folder).study_id]
    return {run.data.tags["raykd.id"].partition("/")[2]: run.info.run_id for run in of_study}


def test_mlflow_run_refers_to_its_local_folder(folder: Path) -> None:
    ids, uri = mlflow_ids(folder), store_of(folder)
    best = read_result(folder).best
    assert best is not None
    for training, expected in {"trial-0001": "trial-0001", "": best.id}.items():
        with recorded_training(ids[training], uri) as reference:
            assert reference == (folder, expected)
    with pytest.raises(StudyError, match="has no run"), recorded_training("0" * 32, uri):
        pass


def test_record_is_taken_from_mlflow_without_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = mlflow_ids(folder)
    elsewhere = folder.parent.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []

    def listener(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.text)

    try:
        result = reproduce(ids["trial-0001"], tracking_uri=store_of(folder), listeners=[listener])
    finally:
        elsewhere.rename(folder.parent)
    assert result.is_exact, "bit for bit"
    assert result.source == f"trial-0001 of MLflow run {ids['trial-0001']}"
    assert result.folder.parent == tmp_path / "studies"
    [teacher] = result.teachers
    assert all(figure.is_equal for figure in teacher.figures)
    [missing] = [text for text in warnings if "trained again" in text]
    assert "copy them there" in missing and str(tmp_path / "studies" / "teachers") in missing


def test_trainings_that_cannot_be_reproduced(copy: Path) -> None:
    cases = {
        f"{copy}:trial-0009": "has no training 'trial-0009'",
        f"{copy}:teacher-0": "is a teacher; only students",
        str(copy / "nowhere"): "there is no folder",
    }
    for source, message in cases.items():
        with pytest.raises(StudyError, match=message):
            raykd.reproduce(source, progress=False)
    change(copy, "end", "trial-0000", status="failed", reason="no memory")
    with pytest.raises(StudyError, match="failed: no memory"):
        reproduce(f"{copy}:trial-0000")
    text = (copy / "journal.jsonl").read_text()
    fingerprint = next(
        json.loads(line)["fingerprint"] for line in text.splitlines() if '"dataset"' in line
    )
    (copy / "journal.jsonl").write_text(text.replace(fingerprint, "0" * 64))
    with pytest.raises(StudyError, match="have changed since it was trained"):
        reproduce(f"{copy}:trial-0001")


def test_references(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert split_reference(f"{tmp_path}/a:b") == (tmp_path / "a:b", "")
    assert split_reference(f"{tmp_path}/a:b:trial-0000") == (tmp_path / "a:b", "trial-0000")
    assert split_reference(f"{tmp_path}/c:d") == (tmp_path / "c:d", "")


@pytest.mark.parametrize(
    ("recorded", "reproduced", "deviation"),
    [
        (0.5, 0.5, 0),
        (0.5, 0.4, 0.1),
        (200.0, 198.0, 0.01),
        (math.nan, math.nan, 0),
        (math.nan, 1.0, math.inf),
        (math.inf, 1.0, math.inf),
    ],
)
def test_deviation(recorded: float, reproduced: float, deviation: float) -> None:
    figure = Figure("val_loss", recorded, reproduced)
    assert figure.deviation == pytest.approx(deviation)
    training = Retraining("trial-0000", (figure,), None, 2)
    result = Reproduction("f", Path("g"), training, (), (), tolerance=0.05)
    assert result.agrees is (deviation <= 0.05) and result.is_exact is (deviation == 0)
