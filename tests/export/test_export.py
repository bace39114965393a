"""Tests of the export of students of finished studies, loaded in a process without raykd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from helpers.delivered_studies import DIGITS, PICTURES, TEXTS, write_pictures
from helpers.docstrings import write_corpus
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.export import ExportResult, export_student, find_student
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

STUDIES = {"digits": DIGITS, "pictures": PICTURES, "texts": TEXTS}
END = """\
search: {trials: 1, replicates: 2, finalists: 1}
cluster: {storage: 'FOLDER/studies'}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""
FORMATS = {
    "digits": ("onnx", "pt2", "safetensors"),
    "pictures": ("onnx", "pt2"),
    "texts": ("onnx", "pt2", "hf"),
}

LOAD = """\
import json, sys
sys.modules["raykd"] = None  # an import of raykd fails
from pathlib import Path
import numpy as np, torch

differences = {}
for folder in map(Path, sys.argv[1:]):
    example = dict(np.load(folder / "example.npz"))
    logits = example.pop("logits")
    if (folder / "model.onnx").exists():
        import onnxruntime
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        inputs = {node.name: example[node.name] for node in session.get_inputs()}
        [output] = session.run(None, inputs)
        differences[f"{folder.name} onnx"] = float(np.abs(output - logits).max())
    network = torch.export.load(folder / "model.pt2").module()
    output = network(*map(torch.from_numpy, example.values())).detach().numpy()
    differences[f"{folder.name} pt2"] = float(np.abs(output - logits).max())
    if (folder / "hf").exists():
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        model = AutoModelForSequenceClassification.from_pretrained(folder / "hf")
        output = model(**{key: torch.from_numpy(value) for key, value in example.items()}).logits
        differences[f"{folder.name} hf"] = float(np.abs(output.detach().numpy() - logits).max())
        assert AutoTokenizer.from_pretrained(folder / "hf").pad_token_id is not None
print("DIFFERENCES" + json.dumps(differences))
"""


def run_study(name: str, folder: Path) -> StudyResult:
    file = folder / "study.yaml"
    file.write_text((STUDIES[name] + END).replace("FOLDER", str(folder)))
    return SearchRun(load_or_use(file)).run(LocalExecutor())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def studies(root: Path) -> dict[str, StudyResult]:
    for name in STUDIES:
        (root / name).mkdir()
    write_pictures(root / "pictures" / "data", 110)
    write_corpus(root / "texts")
    return {name: run_study(name, root / name) for name in STUDIES}


@pytest.fixture(scope="module")
def exports(root: Path, studies: dict[str, StudyResult]) -> dict[str, ExportResult]:
    return {
        name: export_student(find_student(result.folder), FORMATS[name], root / f"out-{name}")
        for name, result in studies.items()
    }


@pytest.mark.parametrize("name", list(STUDIES))
def test_files_have_accuracy_of_student(
    name: str, studies: dict[str, StudyResult], exports: dict[str, ExportResult]
) -> None:
    result = exports[name]
    reported = find_student(studies[name].folder).metrics["test_accuracy"]
    assert result.accuracy == pytest.approx(reported, abs=1e-12)
    assert [file.format for file in result.files] == list(FORMATS[name])
    for file in result.files:
        assert file.accuracy == pytest.approx(reported, abs=0.03 if name == "pictures" else 1e-12)
        assert file.path.exists() and file.bytes > 0 and file.batch is None
        assert file.difference <= 0.1 * file.largest


def test_exports_load_without_raykd(root: Path, exports: dict[str, ExportResult]) -> None:
    folders = [str(result.folder) for result in exports.values()]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *folders],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=300,
        check=False,
    )
    assert "DIFFERENCES" in done.stdout, done.stderr
    differences = json.loads(done.stdout.partition("DIFFERENCES")[2])
    assert len(differences) == 7
    for key, value in differences.items():
        assert value < (0.2 if "pictures" in key else 1e-3), key


def test_model_card_describes_student(exports: dict[str, ExportResult]) -> None:
    card = (exports["digits"].folder / "README.md").read_text()
    for text in (
        "# digits-resnet-d8-w4-alone",
        "| scheme | alone |",
        "| student | resnet d8 w4 |",
        "`model.onnx`",
        "mean of 2 seeds",
        "Classes in order: 0, 1, 2",
        'onnxruntime.InferenceSession("model.onnx")',
        "## License",
    ):
        assert text in card
    facts = json.loads((exports["digits"].folder / "raykd.json").read_text())
    assert facts["training"].startswith("trial-0000/")
    assert facts["study"]["student"]["model"]["name"] == "resnet"


def test_trial_and_training_select_student(studies: dict[str, StudyResult]) -> None:
    folder = studies["digits"].folder
    best = find_student(folder)
    assert (
        find_student(f"{folder}:trial-0000").id == find_student(f"{folder}:{best.id}").id == best.id
    )
    with pytest.raises(
        StudyError, match=r"no network of trial-0007 was saved .* saved: trial-0000"
    ):
        find_student(f"{folder}:trial-0007")


def test_mlflow_runs_give_same_student(
    root: Path, studies: dict[str, StudyResult], exports: dict[str, ExportResult], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{root}/digits/mlflow.db"
    client = MlflowClient(store)
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments)
    local = find_student(studies["digits"].folder)
    identifiers = {run.data.tags["raykd.id"].partition("/")[2]: run.info.run_id for run in runs}
    for name in ("", "trial-0000", local.id):
        student = find_student(identifiers[name], tracking_uri=store, allow_import=True)
        assert student.id == local.id
        for key, tensor in student.network.state_dict().items():
            assert torch.equal(tensor, local.network.state_dict()[key])
    student = find_student(identifiers[""], tracking_uri=store, allow_import=True)
    result = export_student(student, ["pt2"], tmp_path / "from-mlflow")
    assert result.accuracy == exports["digits"].accuracy
    with pytest.raises(StudyError, match="add --allow-import"):
        find_student(identifiers[""], tracking_uri=store)
    with pytest.raises(StudyError, match="MLflow at"):
        find_student("0" * 32, tracking_uri=store, allow_import=True)


def test_refusals_leave_nothing_behind(studies: dict[str, StudyResult], tmp_path: Path) -> None:
    student = find_student(studies["digits"].folder)
    out = tmp_path / "out"
    with pytest.raises(StudyError, match="unknown format 'tflite'; allowed are onnx, pt2"):
        export_student(student, ["tflite"], out)
    with pytest.raises(StudyError, match="only models of transformers"):
        export_student(student, ["pt2", "hf"], out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(StudyError, match="exists already"):
        export_student(student, ["pt2"], out)
    with pytest.raises(StudyError, match="not the folder of an export"):
        export_student(student, ["pt2"], out, overwrite=True)
    assert list(out.iterdir()) == []


def test_missing_data_are_noted(
    studies: dict[str, StudyResult], root: Path, tmp_path: Path
) -> None:
    student = find_student(studies["pictures"].folder)
    data = root / "pictures" / "data"
    data.rename(root / "pictures" / "moved")
    try:
        result = export_student(student, ["pt2"], tmp_path / "out")
    finally:
        (root / "pictures" / "moved").rename(data)
    assert result.accuracy is None and result.files[0].accuracy is None
    assert "the test accuracy was not measured" in result.notes[0]


def test_command_prints_measurements(
    studies: dict[str, StudyResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(app, ["export", str(studies["digits"].folder), "--to", "pt2"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "digits-resnet-d8-w4-alone"
    assert (folder / "model.pt2").is_file() and (folder / "README.md").is_file()
    assert "model.pt2" in done.output and "test accuracy" in done.output
    arguments = ["export", str(studies["digits"].folder), "--to", "pt2", "--no-test", "--json"]
    done = runner.invoke(app, [*arguments, "-o", "second"])
    facts = json.loads(done.stdout)
    assert facts["accuracy"] is None and facts["files"][0]["format"] == "pt2"
    refused = runner.invoke(app, [*arguments, "-o", "second"])
    assert refused.exit_code == 2 and "exists already" in refused.output
    missing = runner.invoke(app, ["export", str(tmp_path / "nothing")])
    assert missing.exit_code == 2
