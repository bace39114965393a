"""Whole searches, in this process, whose networks take different inputs of each sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raykd.export.student import find_student
from raykd.tracking.events import ModelSaved, Note
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.records import read_history
from raykd.tuning.search_run import search

COLUMNS = """\
name: columns
data:
  name: table
  file: t.csv
  target: kind
  kind: class
  inputs: {all: [a, b, c], few: [c, b]}
teacher: {model: {name: mlp, depth: 1, width: 16}, input: all, train: {epochs: 3}}
student: {model: {name: mlp, depth: 1, width: {choice: [2, 4]}}, input: few}
knowledge: [{loss: kd}]
train: {epochs: 2, batch_size: 16}
search: {sampler: grid, trials: 2, replicates: 1, finalists: 1}
cache: {use: always}
"""

PICTURES = """\
name: pictures
data:
  name: table
  file: t.csv
  target: kind
  kind: class
  inputs: {photo: {images: file, size: 8}, facts: [b, c]}
task: {name: classification, metrics: [accuracy, teacher_agreement]}
teacher: {model: {name: resnet, depth: 8, width: 4}, input: photo, train: {epochs: 1}}
student: {model: {name: mlp, depth: 1, width: 4}, input: facts}
knowledge: [{loss: kd}]
train: {epochs: 1, batch_size: 16}
search: {trials: 1, replicates: 1, finalists: 1}
"""

RESOLUTIONS = """\
name: resolutions
data: {name: digits, limit: 120, val_limit: 60}
teacher: {model: {name: mlp, depth: 1, width: 16}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 1, width: 4}, input: {choice: [8x8, 4x4, 2x2]}}
knowledge: [{loss: kd}]
train: {epochs: 1, batch_size: 32}
search:
  sampler: grid
  trials: 3
  replicates: 1
  finalists: 3
  objectives: {val_accuracy: max, macs: min}
  scheduler: none
"""


def write_table(folder: Path) -> None:
    random = np.random.default_rng(0)
    lines = ["file,a,b,c,kind"]
    for row in range(80):
        kind = row % 2
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{row}.png"
        )
        a, b, c = random.normal(size=3) + kind
        lines.append(f"{row}.png,{a:.3f},{b:.3f},{c:.3f},{'xy'[kind]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")


def searched(folder: Path, text: str) -> Path:
    text = text.replace("file: t.csv", f"file: {folder}/t.csv")
    (folder / "study.yaml").write_text(f"{text}cluster: {{storage: '{folder}/studies'}}\n")
    uri = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    return search(folder / "study.yaml", overrides=[uri], executor=LocalExecutor()).folder


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(COLUMNS, id="columns"),
        pytest.param(PICTURES, id="pictures", marks=pytest.mark.slow),
    ],
)
def test_search(text: str, tmp_path: Path) -> None:
    write_table(tmp_path)
    folder = searched(tmp_path, text)
    history, records = read_history(folder / "journal.jsonl")
    assert not [
        each
        for each in records.of("trial", "alone", "replicate", "teacher")
        if each.status == "failed"
    ]
    assert records.of("alone"), "the baseline"
    if "use: always" in text:
        notes = [
            event.tags.get("teacher_outputs", "") for event in history if isinstance(event, Note)
        ]
        assert any(note.startswith("kept") for note in notes)
    [saved] = [event for event in history if isinstance(event, ModelSaved)]
    assert saved.input_shape == [2]
    assert saved.example is not None
    assert np.load(folder / saved.example).shape[1:] == (2,)
    # the delivered student takes the raw columns of its input, in the order of the table
    student = find_student(folder)
    raw = torch.tensor([[0.1, 0.2], [1.0, 1.5]])
    assert student.network(raw).shape == (2, 2)
    assert student.network.preprocessing.preparation.startswith("columns b, c")
    assert student.load_data().input_shape == (2,)


@pytest.mark.slow
def test_the_input_of_the_student_is_searched(tmp_path: Path) -> None:
    folder = searched(tmp_path, RESOLUTIONS)
    history, records = read_history(folder / "journal.jsonl")
    trials = records.of("trial")
    macs = {each.job.study["student"]["input"]: each.metrics["macs"] for each in trials}
    assert set(macs) == {"8x8", "4x4", "2x2"} and macs["8x8"] > macs["4x4"] > macs["2x2"]
    shapes = {tuple(event.input_shape or ()) for event in history if isinstance(event, ModelSaved)}
    assert shapes <= {(1, 4, 4), (1, 2, 2), (8, 8), (1, 8, 8)} and shapes
