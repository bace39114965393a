"""Figures, names and texts of a search in MLflow, compared with its journal."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student_t

from raykd.tracking import upload_journal
from raykd.tracking.mlflow_client import connect
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import search

STUDY = """\
name: small
data: {name: digits, limit: 300, val_limit: 100}
teacher:
  model: {name: resnet, depth: 8, width: 8}
  train: {epochs: 2}
student:
  model: {name: resnet, depth: 8, width: {int: [2, 8], step: 2}}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
train: {epochs: 2, batch_size: 32}
search:
  objectives: {val_accuracy: max, params: min}
  sampler: random
  trials: 4
  replicates: 3
  finalists: 2
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("figures")
    file = folder / "study.yaml"
    cluster = f"cluster: {{storage: {folder}/studies}}\n"
    file.write_text(f"{STUDY}{cluster}tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\n")
    result = search(file, executor=LocalExecutor())
    # on a busy machine the search may end before all of it is sent
    upload_journal(result.folder / "journal.jsonl", result.tracking_uri, patience=240)
    return result


@pytest.fixture(scope="module")
def runs(result: StudyResult) -> dict[str, Any]:
    return stored(result.tracking_uri, result)


def stored(uri: str, result: StudyResult) -> dict[str, Any]:
    """Runs of the study in a store, by their ID in the journal; "" for the study's own."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    listed = client.search_runs([experiment.experiment_id])
    prefix = result.study_id
    return {run.data.tags["raykd.id"].removeprefix(prefix).lstrip("/"): run for run in listed}


def journal(result: StudyResult) -> list[dict[str, Any]]:
    lines = (result.folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def interval(values: list[float], lowest: float) -> dict[str, float]:
    """Mean, 95% interval and number of values, as a textbook has them."""
    mean, count = statistics.fmean(values), len(values)
    figures = {"mean": mean, "n": float(count)}
    if max(values) - min(values) > 1e-12:
        half = float(student_t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
        figures |= {"low": max(mean - half, lowest), "high": min(mean + half, 1.0)}
    return figures


def test_figures_equal_those_of_journal(result: StudyResult, runs: dict[str, Any]) -> None:
    lines = journal(result)
    ends = {line["id"]: line for line in lines if line["event"] == "end"}
    chosen = [line["id"] for line in lines if line.get("tags") == {"chosen": "true"}]
    assert chosen
    for trial in chosen:
        distilled, alone = (
            [ends[f"{trial}/{kind}-{n}"]["metrics"]["test_accuracy"] for n in (1, 2, 3)]
            for kind in ("seed", "alone")
        )
        gains = [a - b for a, b in zip(distilled, alone, strict=True)]
        expected: dict[str, float] = {}
        for name, values, lowest in (
            ("test_accuracy", distilled, 0.0),
            ("alone_test_accuracy", alone, 0.0),
            ("gain", gains, -1.0),
        ):
            figures = interval(values, lowest)
            expected |= {f"{name}_{end}": value for end, value in figures.items()}
        names = ("test_accuracy_", "alone_test_accuracy_", "gain_")
        for run in (runs[trial], *([runs[""]] if trial == result.finalists[0].trial.id else [])):
            metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(names)}
            assert metrics == pytest.approx(expected)


def test_figures_of_whole(result: StudyResult, runs: dict[str, Any]) -> None:
    metrics = runs[""].data.metrics
    trials = [
        line for line in journal(result) if line["event"] == "run" and line["role"] == "trial"
    ]
    assert metrics["trials"] == len(trials) == metrics["trials_finished"] == 4
    assert metrics["front_size"] == len(result.pareto)
    best = max(
        run.data.metrics["val_accuracy"]
        for id, run in runs.items()
        if id in {line["id"] for line in trials}
    )
    assert metrics["best_val_accuracy"] == best
    assert metrics["teacher_test_accuracy"] == runs["teacher-0"].data.metrics["test_accuracy"]


def test_run_names_show_student_losses_and_number(
    result: StudyResult, runs: dict[str, Any]
) -> None:
    names = {id: run.info.run_name for id, run in runs.items()}
    assert names[""] == "small" and names["teacher-0"] == "teacher resnet d8 w8"
    for id, name in names.items():
        if not id.startswith("trial"):
            continue
        trial, _, end = id.partition("/")
        width = runs[id].data.params["student.model.width"]
        losses = "alone" if end.startswith("alone") else "kd"
        seed = f" seed {end[-1]}" if end else ""
        assert name == f"resnet d8 w{width} {losses} #{int(trial[-4:])}{seed}"


def test_note_answers_first(result: StudyResult, runs: dict[str, Any]) -> None:
    first = result.finalists[0]
    note = runs[""].data.tags["mlflow.note.content"]
    assert note.startswith(f"**{runs[first.trial.id].info.run_name}**: test accuracy ")
    assert f"raykd report {result.folder}" in note
    assert "| finalist |" in note and "not finished" not in note


def test_later_sync_gives_same(result: StudyResult, runs: dict[str, Any], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/other.db"
    assert upload_journal(result.folder / "journal.jsonl", uri).refused == 0
    later = stored(uri, result)
    assert later.keys() == runs.keys()
    for id, run in runs.items():
        assert later[id].data.metrics == run.data.metrics
        assert later[id].data.params == run.data.params
        assert later[id].info.run_name == run.info.run_name
    client, other = connect(result.tracking_uri), connect(uri)
    tags, later_tags = (
        store.get_experiment(listed[""].info.experiment_id).tags
        for store, listed in ((client, runs), (other, later))
    )
    assert later_tags == tags
