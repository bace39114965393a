"""JSON Schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from helpers.study_files import BASE, SHIPPED, changed
from raykd.study.json_schema import json_schema
from raykd.study.yaml_file import parse_document, read_document

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def is_valid(data: Any) -> bool:
    return not list(VALIDATOR.iter_errors(data))


def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["student"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_validate(path: Path) -> None:
    assert is_valid(read_document(path).data)


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        changed(("depth: 8", "depth: {choice: [8, {int: [14, 20], step: 6}]}")),
        changed(("{name: offline}", "{choice: [offline, {name: offline, task_weight: 0.5}]}")),
        changed(("temperature: 4", "temperature: {loguniform: [1, 16]}")),
        changed(("    weight: 0.5", "    pairs: {pairing: {hint: auto, max: 2, order: any}}")),
        changed(
            ("data: {name: digits}", "data: {name: digits, augment: {choice: [[], [random_crop]]}}")
        ),
        changed(("knowledge:\n", "search: {scheduler: asha}\nknowledge:\n")),
    ],
)
def test_allowed_studies(text: str) -> None:
    assert is_valid(parse_document(text).data)


@pytest.mark.parametrize(
    "text",
    [
        changed(("temperature: 4", "temprature: 4")),
        changed(("depth: 8", "depth: eight")),
        changed(("depth: 8", "depth: {choice: []}")),
        changed(("depth: 8", "depth: {int: [8]}")),
        changed(("name: base", "name: {choice: [a, b]}")),
        changed(("name: kd", "name: kdd")),
        BASE + "search: {trials: {int: [1, 2]}}\n",
        BASE + "search: {sampler: tpee}\n",
        changed(("data: {name: digits}", "data: {name: digits, val: {choice: [0.1, 0.2]}}")),
    ],
)
def test_rejected_studies(text: str) -> None:
    assert not is_valid(parse_document(text).data)
