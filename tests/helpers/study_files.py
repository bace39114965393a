"""Study texts for tests."""

from __future__ import annotations

from pathlib import Path

from raykd.study.checks.load import open_study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import parse_document

SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))

BASE = """\
name: base
data: {name: digits}
teacher:
  model: {name: resnet, depth: 14, width: 8}
  train: {epochs: 2}
student:
  model:
    name: resnet
    depth: 8
    width: 4
scheme: {name: offline}
knowledge:
  - loss:
      name: kd
      temperature: 4
    weight: 0.5
train: {epochs: 2}
"""
"""A concrete study; the tests replace parts of it."""


def changed(*replacements: tuple[str, str]) -> str:
    """Return `BASE` with each first text, which must occur, replaced by the second."""
    text = BASE
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    return text


def opened(text: str, *overrides: str) -> OpenStudy:
    """Parse the study of a text."""
    document = parse_document(text, "study.yaml").with_overrides(overrides)
    return open_study(document, allow_import=True)
