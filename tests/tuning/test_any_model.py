"""Whole studies of networks of other libraries, in this process: images, texts, MLflow models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.docstrings import write_corpus
from raykd.errors import StudyError
from raykd.study.config import read_study
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

PICTURES = """\
name: pictures
data: {name: digits, limit: 120, val_limit: 60}
teacher: {model: {name: mlp, depth: 2, width: 32}, train: {epochs: 2}}
student:
  model:
    choice:
      - {name: timm/resnet18, stem: small, args: {channels: {choice: [[4, 4, 8, 8], [8, 8, 8, 8]]}}}
      - timm/mobilenetv3_small_050
      - {name: mlp, depth: 1, width: 8}
knowledge:
  - loss: {name: kd, temperature: 4}
  - loss: {name: hint}
    pairs: [{hint: embedding, guided: embedding}]
train: {epochs: 1, batch_size: 32}
search: {sampler: grid, trials: 4, replicates: 1, finalists: 1, objectives: {val_accuracy: max}}
"""

TEXTS = """\
name: texts
data: {name: text, file: CORPUS/table.csv, tokenizer: CORPUS/tokenizer, max_length: 16}
teacher:
  model:
    name: hf/bert
    config:
      {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}
  train: {epochs: 4, batch_size: 32, optimizer: {name: adamw, lr: 0.003}}
student:
  model:
    choice:
      - name: hf/distilbert
        config:
          hidden_size: {choice: [16, 24]}
          num_hidden_layers: 1
          num_attention_heads: 2
          hidden_dim: 32
      - name: hf/roberta
        config:
          {hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
knowledge:
  - loss: {name: kd, temperature: 4}
  - loss: {name: hint}
    pairs: {pairing: {hint: auto, guided: auto, max: 1}}
train: {epochs: 3, batch_size: 32, optimizer: {name: adamw, lr: 0.003}}
search: {sampler: random, trials: 3, replicates: 1, finalists: 1, constraints: {params: {max: 1e5}}}
"""


def _searched(text: str, folder: Path, **more: Any) -> StudyResult:
    file = folder / "study.yaml"
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db', register: learned}}\n"
    file.write_text(f"{text}cluster: {{storage: '{folder}/studies'}}\n{tracking}")
    return SearchRun(load_or_use(file, **more)).run(LocalExecutor())


def _students(trials: list[Record]) -> list[dict[str, Any]]:
    return [dict(trial.job.study["student"]["model"]) for trial in trials]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return _searched(PICTURES, folder), folder


def _trials(result: StudyResult) -> list[Record]:
    return list(result.records.of("trial"))


def test_search_over_students_of_timm(pictures: tuple[StudyResult, Path]) -> None:
    result, _ = pictures
    trials = _trials(result)
    assert {trial.status for trial in trials} == {"finished"}
    assert sorted(student["name"] for student in _students(trials)) == [
        "mlp",
        "timm/mobilenetv3_small_050",
        "timm/resnet18",
        "timm/resnet18",
    ]
    channels = {json.dumps(s["args"]) for s in _students(trials) if s["name"] == "timm/resnet18"}
    assert len(channels) == 2
    for trial in trials:
        assert trial.metrics["term_hint"] > 0 and trial.metrics["params"] > 0
        assert read_study(trial.job.study).student.model.name == trial.job.params["student.model"]


def test_best_student_is_in_mlflow_and_can_be_student_again(
    pictures: tuple[StudyResult, Path], tmp_path: Path
) -> None:
    result, folder = pictures
    smaller = PICTURES.replace("trials: 4, replicates: 1", "trials: 1, replicates: 0")
    store = f"sqlite:///{folder}/mlflow.db"
    overrides = [f"tracking.uri={store}", "student.model=models:/learned@champion"]
    with pytest.raises(StudyError, match=r"student\.model\.name.*would run code(.|\n)*allow-imp"):
        _searched(smaller, tmp_path, overrides=overrides)
    result_ = _searched(smaller, tmp_path, overrides=overrides, allow_import=True)
    (trial,) = _trials(result_)
    (student,) = _students([trial])
    assert student["name"] == "models:/learned@champion"
    assert Path(student["file"]).is_file()
    assert trial.metrics["params"] == result.finalists[0].trial.metrics["params"]
    folder_facts = json.loads((Path(result_.folder) / "folder.json").read_text())
    assert any(student["file"] in override for override in folder_facts["overrides"])


def test_alias_of_teacher_is_resolved_to_its_current_version(
    pictures: tuple[StudyResult, Path], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    _, folder = pictures
    store = f"sqlite:///{folder}/mlflow.db"
    file = tmp_path / "again.yaml"
    file.write_text(PICTURES)
    weights = "teacher={weights: 'models:/learned@best'}"
    client = MlflowClient(store, store)
    with pytest.raises(StudyError, match=r"teacher\.weights.*models:/learned@best: no such model"):
        load_or_use(file, [f"tracking.uri={store}", weights], allow_import=True)
    version = client.get_model_version_by_alias("learned", "champion")
    client.set_registered_model_alias("learned", "best", version.version)
    study = load_or_use(file, [f"tracking.uri={store}", weights], checks=(), allow_import=True)
    assert study.settings.teacher is not None
    assert study.settings.teacher.weights == f"models:/learned/{version.version}"
    assert any(f"models:/learned/{version.version}" in text for text in study.overrides)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    folder = tmp_path_factory.mktemp("texts")
    corpus = write_corpus(folder / "corpus")
    return _searched(TEXTS.replace("CORPUS", str(corpus)), folder), folder


def test_search_over_students_of_transformers(texts: tuple[StudyResult, Path]) -> None:
    result, _ = texts
    trials = _trials(result)
    assert {trial.status for trial in trials} == {"finished"}
    assert {student["name"] for student in _students(trials)} <= {"hf/distilbert", "hf/roberta"}
    for trial in trials:
        (_, hint) = trial.job.study["knowledge"]
        (pair,) = hint["pairs"]
        assert pair["hint"] in ("stage1", "stage2") and trial.metrics["term_hint"] > 0
        assert trial.metrics["params"] < 100_000
    (teacher,) = result.teachers
    assert teacher.metrics["test_accuracy"] > 0.35, "it has learnt something: a guess gives 0.22"


def test_text_student_is_in_mlflow(texts: tuple[StudyResult, Path]) -> None:
    from mlflow import MlflowClient
    from mlflow.models import Model

    from raykd.tracking.mlflow_models import load_model_uri

    result, folder = texts
    store = f"sqlite:///{folder}/mlflow.db"
    network = load_model_uri("models:/learned@champion", tracking_uri=store)
    tokens = torch.randint(100, (2, 16))
    logits = network({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert logits.shape == (2, 5)
    assert (
        sum(p.numel() for p in network.parameters()) == result.finalists[0].trial.metrics["params"]
    )
    client = MlflowClient(store, store)
    version = client.get_model_version_by_alias("learned", "champion")
    place = client.get_model_version_download_uri("learned", version.version)
    signature = Model.load(place).signature
    assert signature is not None
    (tensor,) = signature.inputs.inputs  # MLflow's own `predict` takes one tensor, no mapping
    assert (tensor.type, tensor.shape) == (np.dtype("int64"), (-1, 2, 16))
    stacked = torch.stack([tokens, torch.ones_like(tokens)], dim=1)
    assert torch.equal(network(stacked), logits)


def test_vision_models_for_texts_raise_before_training(
    texts: tuple[StudyResult, Path], tmp_path: Path
) -> None:
    text = TEXTS.replace("CORPUS", str(texts[1] / "corpus"))
    with pytest.raises(StudyError, match=r"student\.model: resnet takes no texts"):
        _searched(text, tmp_path, overrides=["student.model={name: resnet}"])
    assert not (tmp_path / "studies").exists()
