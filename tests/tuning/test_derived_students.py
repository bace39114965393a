"""Searches over compressed students, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.derived_studies import TEXT
from raykd.models import Signature, profile_model
from raykd.models.compression import Copy
from raykd.models.compression.int8 import Int8Layer
from raykd.study.config import read_study
from raykd.tracking.mlflow_models import load_model_uri
from raykd.training.checkpoint import parse_weights
from raykd.training.stored_networks import raw_samples
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

KINDS = {"layer_pruning", "channel_pruning", "low_rank", "separable", "quantized", "copy"}
TASK = Signature((1, 8, 8), 10)


def _searched(folder: Path, *overrides: str) -> StudyResult:
    file = folder / "study.yaml"
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db', register: small}}\n"
    file.write_text(f"{TEXT}cluster: {{storage: '{folder}/studies'}}\n{tracking}")
    return SearchRun(load_or_use(file, overrides)).run(LocalExecutor())


# A whole search


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    folder = tmp_path_factory.mktemp("derived")
    return _searched(folder), folder


def _model(record: Record) -> Any:
    return read_study(record.job.study).student.model


def test_search_over_every_compression(finished_search: tuple[StudyResult, Path]) -> None:
    result, _ = finished_search
    trials = result.records.of("trial")
    assert {record.status for record in trials} == {"finished"}
    (teacher,) = result.records.of("teacher")
    for record in trials:
        profile = profile_model(_model(record), TASK)
        assert record.metrics["params"] == profile.params == record.metrics["inherited_params"]
        assert record.job.teachers[-1] == teacher.job.network_file
        assert record.job.tags["student"].startswith(_model(record).name)
        assert "Resnet(" not in record.job.tags["student"]
        assert "test_accuracy" not in record.metrics
    assert {_model(record).name for record in trials} == KINDS
    by_name = {_model(record).name: record.metrics for record in trials}
    assert by_name["copy"]["val_accuracy"] > 0.6, "it starts as the teacher"


def test_quantized_student_is_tested_and_saved_in_int8(tmp_path: Path) -> None:
    model = "student.model={name: quantized}"
    result = _searched(tmp_path, model, "search.trials=1", "search.replicates=1")
    (replicate,), (alone,) = result.records.of("replicate"), result.records.of("alone")
    for record in (replicate, alone):
        metrics = record.metrics
        assert abs(metrics["test_accuracy"] - metrics["simulated_test_accuracy"]) < 0.03
        assert metrics["int8_bytes"] < 0.5 * 4 * metrics["params"]
        assert metrics["inherited_params"] == metrics["params"]
    assert replicate.metrics["test_accuracy"] > 0.5
    network = load_model_uri(
        "models:/small@champion", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"
    )
    layers = [module for module in network.modules() if isinstance(module, Int8Layer)]
    assert len(layers) > 10 and all(module.weight.dtype == torch.int8 for module in layers)
    data = read_study(replicate.job.study).data.load()
    raw = raw_samples(data, torch.arange(len(data.test)))
    hits = (network(raw).argmax(1) == data.test.targets).double().mean().item()
    assert hits == pytest.approx(replicate.metrics["test_accuracy"], abs=1e-12)


def test_compression_of_teacher_from_weights_file(
    finished_search: tuple[StudyResult, Path], tmp_path: Path
) -> None:
    """The teacher's file may have any origin if its model is specified."""
    result, folder = finished_search
    (teacher,) = result.records.of("teacher")
    file = folder / "studies" / str(teacher.job.network_file)
    weights = f"teacher={{model: {{name: resnet, depth: 14, width: 8}}, weights: '{file}'}}"
    from_weights = _searched(tmp_path, weights, "student.model=low_rank", "search.trials=1")
    (trial,) = from_weights.records.of("trial")
    assert trial.status == "finished" and trial.metrics["inherited_params"] > 0
    source = read_study(trial.job.study).student.model.origin
    assert source is not None
    network = source.build(TASK)
    parse_weights(network, file.read_bytes())
    assert Copy(base=source, inherit_weights=True).build_from(network, TASK)
