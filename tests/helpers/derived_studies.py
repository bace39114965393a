"""Studies with compressed students that train in a second."""

from __future__ import annotations

from typing import Any

from raykd.study.checks.load import open_study
from raykd.study.config import Study, read_study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import parse_document

TEXT = """\
name: derived
data: {name: digits, limit: 240, val_limit: 60}
teacher:
  model: {name: resnet, depth: 14, width: 8}
  train: {epochs: 3, batch_size: 32, optimizer: {name: sgd, lr: 0.1}}
student:
  model:
    choice:
      - {name: layer_pruning, keep: 0.5}
      - {name: channel_pruning, keep: 0.5}
      - {name: low_rank, rank: {choice: [0.25]}}
      - separable
      - {name: quantized, base: {name: layer_pruning, rule: last}}
      - {name: copy, inherit_weights: true}
scheme: offline
knowledge:
  - loss: {name: kd, temperature: 4}
  - loss: {name: hint}
    pairs: [{hint: stage2, guided: stage2}]
train: {epochs: 1, batch_size: 32, optimizer: {name: sgd, lr: 0.02}}
search: {sampler: grid, trials: 6, replicates: 0, finalists: 1}
"""
KD = [{"loss": {"name": "kd"}}]


def open_derived(*overrides: str, text: str = TEXT) -> OpenStudy:
    document = parse_document(text, "study.yaml").with_overrides(overrides)
    return open_study(document, allow_import=True)


def derived_study(**changed: Any) -> Study:
    """Return a concrete study of the first kind with its base set."""
    model = changed.pop("model", {"name": "layer_pruning"})
    plain = {
        "name": "small",
        "data": {"name": "digits", "limit": 120, "val_limit": 60},
        "teacher": {"model": {"name": "resnet", "depth": 14, "width": 4}, "train": {"epochs": 1}},
        "student": {"model": model},
        "scheme": {"name": "alone"},
        "train": {"epochs": 1, "batch_size": 32},
    }
    return read_study({**plain, **changed})
