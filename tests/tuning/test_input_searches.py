"""Whole searches, in this process, whose networks take different inputs of each sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.language_cases import SMALL_VOCABULARY, write_languages
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


BERT = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}"

VECTORS = f"""\
name: vectors
data:
  name: text
  file: pairs.parquet
  label: vector
  kind: vector
  tokenizer: large
  max_length: 16
  inputs:
    english: {{text: english}}
    german: {{text: german, second: title, tokenizer: small, max_length: 20}}
teacher: {{model: {{name: hf/bert, config: {BERT}}}, input: english, train: {{epochs: 1}}}}
student: {{model: {{name: hf/bert, config: {BERT}}}, input: german}}
knowledge:
- {{loss: logit_mse}}
- {{loss: hint, pairs: [{{hint: embedding, guided: embedding}}]}}
train: {{epochs: 1, batch_size: 16}}
search: {{trials: 1, replicates: 1, finalists: 1}}
cache: {{use: always}}
"""

LANGUAGES = f"""\
name: languages
data:
  name: text
  file: pairs.parquet
  label: kind
  tokenizer: large
  max_length: 16
  text: english
  inputs:
    whole: {{}}
    short: {{max_length: 4}}
    german: {{text: german, tokenizer: small, max_length: 20}}
task: {{name: classification, metrics: [accuracy, teacher_agreement]}}
teacher: {{model: {{name: hf/bert, config: {BERT}}}, input: whole, train: {{epochs: 1}}}}
student: {{model: {{name: hf/bert, config: {BERT}}}, input: {{choice: [whole, short, german]}}}}
knowledge: [{{loss: kd}}]
train: {{epochs: 1, batch_size: 16}}
search: {{sampler: grid, trials: 3, replicates: 1, finalists: 3, scheduler: none}}
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
    for name in ("t.csv", "pairs.parquet"):
        text = text.replace(f"file: {name}", f"file: {folder}/{name}")
    for name in ("large", "small"):
        text = text.replace(f"tokenizer: {name}", f"tokenizer: {folder}/{name}")
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


def test_a_student_of_another_language(tmp_path: Path) -> None:
    """A student learns the vectors of a teacher, which reads the same sentence in English."""
    write_languages(tmp_path)
    folder = searched(tmp_path, VECTORS)
    history, records = read_history(folder / "journal.jsonl")
    trainings = records.of("trial", "alone", "replicate", "teacher")
    assert {each.status for each in trainings} == {"finished"} and records.of("alone")
    notes = [event.tags.get("teacher_outputs", "") for event in history if isinstance(event, Note)]
    assert any(note.startswith("kept") for note in notes)
    [saved] = [event for event in history if isinstance(event, ModelSaved)]
    student = find_student(folder)
    about = student.network.preprocessing
    assert set(about.keys) == {"input_ids", "attention_mask", "token_type_ids"}
    assert about.shape == (20,) and about.vocabulary <= SMALL_VOCABULARY
    assert about.preparation.startswith("columns german, title; the tokenizer of ")
    assert saved.example is not None and saved.input_shape == [20]
    with np.load(folder / saved.example) as arrays:
        tokens = {key: torch.from_numpy(arrays[key]) for key in about.keys}
    assert all(each.shape[1:] == (20,) for each in tokens.values())
    assert student.network(tokens).shape[1:] == (4,)
    data = student.load_data()
    assert data.input == "german" and data.vocabulary == about.vocabulary


@pytest.mark.slow
def test_a_search_chooses_the_texts_of_the_student(tmp_path: Path) -> None:
    write_languages(tmp_path)
    folder = searched(tmp_path, LANGUAGES)
    history, records = read_history(folder / "journal.jsonl")
    trials = {each.job.study["student"]["input"]: each for each in records.of("trial")}
    assert {name: each.status for name, each in trials.items()} == dict.fromkeys(
        ("whole", "short", "german"), "finished"
    )
    params = {name: each.metrics["params"] for name, each in trials.items()}
    macs = {name: each.metrics["macs"] for name, each in trials.items()}
    assert params["whole"] == params["short"] > params["german"]
    assert macs["short"] < macs["whole"] < macs["german"]
    assert len(records.of("teacher")) == 1, "students of different inputs share the teacher"
    shapes = {tuple(event.input_shape or ()) for event in history if isinstance(event, ModelSaved)}
    assert shapes <= {(16,), (4,), (20,)} and shapes
    student = find_student(folder)
    assert student.load_data().input_shape == student.network.preprocessing.shape
