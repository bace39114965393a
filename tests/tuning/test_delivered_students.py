"""A student as its user gets it: from MLflow or a file, in a process of its own, on raw samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.docstrings import write_corpus
from raykd.data import Dataset
from raykd.models.preprocessing import RawInputModel
from raykd.tracking import events
from raykd.tracking.events import ModelSaved
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.single_run import train_teacher
from raykd.tuning.study_input import load_or_use

DIGITS = """\
name: numbers
data: {name: digits, limit: 400, val_limit: 60}
student: {model: {name: resnet, depth: 8, width: 4}}
scheme: alone
train: {epochs: 3, batch_size: 32}
"""

PICTURES = """\
name: pictures
data: {name: image_folder, root: FOLDER/data, size: 8}
student: {model: {name: quantized, base: {name: mlp, depth: 2, width: 16}}}
scheme: alone
train: {epochs: 4, batch_size: 16}
"""

TEXTS = """\
name: texts
data: {name: text, file: FOLDER/table.csv, tokenizer: FOLDER/tokenizer, max_length: 12}
student:
  model:
    name: hf/bert
    config:
      {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}
scheme: alone
train: {epochs: 16, batch_size: 32, optimizer: {name: adamw, lr: 0.01}}
"""

LOADS = """\
import json, sys
import mlflow, numpy as np, torch

found = []
for model in json.loads(sys.argv[1]):
    mlflow.set_tracking_uri(model["store"])
    samples, targets = np.load(model["samples"]), np.load(model["targets"])
    ways = {
        "pytorch": mlflow.pytorch.load_model(model["uri"]),
        "file": torch.load(model["file"], weights_only=False),
    }
    answers = {}
    for way, network in ways.items():
        with torch.no_grad():
            answers[way] = network(torch.from_numpy(samples)).argmax(1).numpy()
    loaded = mlflow.pyfunc.load_model(model["uri"])
    answers["pyfunc"] = loaded.predict(samples).argmax(1)
    info = mlflow.models.get_model_info(model["uri"])
    found.append({
        **{way: float((answer == targets).mean()) for way, answer in answers.items()},
        "input": str(info.signature.inputs), "output": str(info.signature.outputs),
        "metadata": info.metadata, "example": list(np.shape(loaded.input_example)),
    })
print("FOUND" + json.dumps(found))
"""


def _run(text: str, folder: Path, *overrides: str) -> StudyResult:
    file = folder / "study.yaml"
    file.write_text(
        f"{text.replace('FOLDER', str(folder))}"
        "search: {trials: 1, replicates: 2, finalists: 1}\n"
        f"cluster: {{storage: '{folder}/studies'}}\n"
        f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db', register: learned}}\n"
    )
    return SearchRun(load_or_use(file, overrides)).run(LocalExecutor())


def _write_pictures(folder: Path, brightness: int, count: int = 30) -> None:
    """Colored noise of the given brightness; the class is in one channel."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.normal(brightness, 30, (8, 8, 3))
            pixels[..., 2 - label] += 18
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number:02}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delivered")


@pytest.fixture(scope="module")
def results(home: Path) -> dict[str, StudyResult]:
    folders = {name: home / name for name in ("digits", "pictures", "texts")}
    for folder in folders.values():
        folder.mkdir()
    _write_pictures(folders["pictures"] / "data", 110)
    write_corpus(folders["texts"])
    return {
        "digits": _run(DIGITS, folders["digits"]),
        "pictures": _run(PICTURES, folders["pictures"]),
        "texts": _run(TEXTS, folders["texts"]),
    }


def _delivered(result: StudyResult) -> ModelSaved:
    (model,) = [e for e in events(result.folder / "journal.jsonl") if isinstance(e, ModelSaved)]
    return model


def _data(result: StudyResult) -> Dataset:
    return load_or_use(result.folder / "study.yaml").settings.data.load()


def _raw(name: str, data: Dataset) -> np.ndarray:
    """The test samples as a user has them, read without raykd where that is possible."""
    rows = data.test.index.numpy()
    if name == "digits":
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return digits.images[rows]
    if name == "pictures":
        files = sorted(Path(data.origin).rglob("*.png"))
        pixels = [np.asarray(Image.open(files[row])) for row in rows]
        return np.stack(pixels).transpose(0, 3, 1, 2)
    inputs = data.test.take(torch.arange(len(data.test)))
    assert isinstance(inputs, dict)
    return np.stack([value.numpy() for value in inputs.values()], axis=1)


@pytest.fixture(scope="module")
def loaded(results: dict[str, StudyResult], home: Path) -> dict[str, dict[str, Any]]:
    """What another process finds that knows only the addresses and the raw samples."""
    asked = []
    for name, result in results.items():
        data = _data(result)
        np.save(home / f"{name}.npy", _raw(name, data))
        np.save(home / f"{name}-targets.npy", data.test.targets.numpy())
        store, model = result.folder.parent.parent / "mlflow.db", _delivered(result)
        asked.append(
            {
                "store": f"sqlite:///{store}",
                "uri": "models:/learned@champion",
                "file": str(result.folder / model.path),
                "samples": str(home / f"{name}.npy"),
                "targets": str(home / f"{name}-targets.npy"),
            }
        )
    done = subprocess.run(
        [sys.executable, "-c", LOADS, json.dumps(asked)],
        capture_output=True,
        text=True,
        cwd=home,
        timeout=300,
        check=False,
    )
    assert "FOUND" in done.stdout, done.stderr
    found = json.loads(done.stdout.partition("FOUND")[2])
    return dict(zip(results, found, strict=True))


@pytest.mark.parametrize("name", ["digits", "pictures", "texts"])
def test_raw_samples_give_the_reported_accuracy(
    name: str, results: dict[str, StudyResult], loaded: dict[str, dict[str, Any]]
) -> None:
    reported = _delivered(results[name]).metrics["test_accuracy"]
    # The trainer of the tokenizer breaks ties at random, so texts differ; chance is 0.22 for them.
    assert reported > (0.3 if name == "texts" else 0.4)
    found = {way: loaded[name][way] for way in ("pytorch", "pyfunc", "file")}
    assert found == pytest.approx(dict.fromkeys(found, reported), abs=1e-12)


def test_the_signature_and_metadata_say_what_it_takes(
    results: dict[str, StudyResult], loaded: dict[str, dict[str, Any]]
) -> None:
    assert "float64" in loaded["digits"]["input"] and "(-1, 8, 8)" in loaded["digits"]["input"]
    assert "uint8" in loaded["pictures"]["input"]
    assert "(-1, 3, 8, 8)" in loaded["pictures"]["input"]
    assert "int64" in loaded["texts"]["input"] and "(-1, 2, 12)" in loaded["texts"]["input"]
    assert loaded["digits"]["example"] == [8, 8, 8]
    for name, result in results.items():
        data, facts = _data(result), loaded[name]["metadata"]
        assert facts["classes"] == list(data.class_names)
        assert facts["input"].get("mean", []) == list(data.mean)
        assert facts["input"].get("std", []) == list(data.std)
        low, high = facts["test_accuracy_interval"]
        reported = facts["metrics"]["test_accuracy"]
        assert 0 <= low <= reported <= high <= 1 and low < high
        assert f"{reported:.2%}" in facts["accuracy"] and "2 seeds" in facts["accuracy"]
        assert "logits" in loaded[name]["output"]
    assert loaded["pictures"]["metadata"]["input"]["color"] == "RGB"
    assert loaded["texts"]["metadata"]["input"]["keys"] == ["input_ids", "attention_mask"]
    assert "tokenizer" in loaded["texts"]["metadata"]["input"]["preparation"]


def test_its_name_says_what_it_is(results: dict[str, StudyResult]) -> None:
    assert _delivered(results["digits"]).name == "digits-resnet-d8-w4-alone"
    assert str(_delivered(results["pictures"]).name).startswith("image_folder-quantized-base-mlp")
    assert str(_delivered(results["texts"]).name).startswith("text-hf-bert")


def test_a_result_gives_its_student(results: dict[str, StudyResult]) -> None:
    result = results["digits"]
    student, data = result.student(), _data(result)
    assert isinstance(student, RawInputModel) and student.class_names == data.class_names
    raw = torch.from_numpy(_raw("digits", data))
    hits = (student(raw).argmax(1) == data.test.targets).double().mean().item()
    assert hits == pytest.approx(student.metrics["test_accuracy"], abs=1e-12)
    assert hits == pytest.approx(_delivered(result).metrics["test_accuracy"], abs=1e-12)
    with pytest.raises(ValueError, match="trial-9999"):
        result.student("trial-9999")


# As a teacher


@pytest.fixture(scope="module")
def elsewhere(home: Path, results: dict[str, StudyResult]) -> Path:
    """Pictures whose mean and deviation are others, and whose test part is the first data's."""
    folder = home / "elsewhere"
    _write_pictures(folder / "train", 60, count=12)
    data = _data(results["pictures"])
    files = sorted(Path(data.origin).rglob("*.png"))
    for row in data.test.index.tolist():
        target = folder / "test" / files[row].parent.name / files[row].name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[row].read_bytes())
    return folder


def test_a_teacher_from_mlflow_is_as_good_as_reported_on_other_data(
    home: Path, results: dict[str, StudyResult], elsewhere: Path
) -> None:
    file = home / "pupil.yaml"
    file.write_text(f"""\
name: pupil
data: {{name: image_folder, root: '{elsewhere}', size: 8}}
teacher: {{weights: models:/learned@champion}}
student: {{model: {{name: mlp, depth: 1, width: 8}}}}
knowledge: [{{loss: {{name: kd}}}}]
train: {{epochs: 1, batch_size: 16}}
cluster: {{storage: '{home}/pupils'}}
tracking: {{uri: 'sqlite:///{home}/pictures/mlflow.db'}}
""")
    found = train_teacher(file)
    (teacher,) = found.teachers
    reported = _delivered(results["pictures"]).metrics["test_accuracy"]
    assert teacher.metrics["test_accuracy"] == pytest.approx(reported, abs=1e-12)
    assert _data(found).mean != _data(results["pictures"]).mean
