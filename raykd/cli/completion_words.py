"""Words for shell completion, collected from the options and the study's schema.

Importing the options takes seconds, which is too long for the Tab key, so the words are stored in
`raykd/cli/completions.json`.  A test checks that the file is up to date; this command writes it:

    python -m raykd.cli.completion_words
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from raykd.report.options.catalogue import PARTS, list_entries
from raykd.study.config import study_adapter

DEEPEST = 4
"""Dots in the longest key that is completed."""


def words() -> dict[str, dict[str, Any]]:
    """Return options by part and name, and study keys by path, with short descriptions.

    Options of other packages are omitted: completion finds their names from their entry points.
    """
    options = {
        part: {
            entry.name: entry.summary for entry in list_entries(part) if entry.package == "raykd"
        }
        for part in PARTS
    }
    schema = study_adapter().json_schema()
    keys: dict[str, str] = {}
    for path, description in _keys(schema, schema["$defs"], "", ()):
        keys.setdefault(path, description)
    return {"options": options, "keys": dict(sorted(keys.items()))}


def text() -> str:
    """Return the content of `raykd/cli/completions.json`."""
    return json.dumps(words(), indent=1, ensure_ascii=False) + "\n"


def _keys(
    node: Any, definitions: Mapping[str, Any], path: str, above: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    for member in _members(node, definitions):
        if "items" in member:
            yield from _keys(member["items"], definitions, f"{path}[0]", above)
        if id(member) in above:
            continue
        for key, below in member.get("properties", {}).items():
            inner = f"{path}.{key}" if path else key
            if inner.count(".") > DEEPEST:
                continue
            yield inner, below.get("description", "")
            yield from _keys(below, definitions, inner, (*above, id(member)))


def _members(node: Any, definitions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the objects and arrays of a schema, with references and unions resolved."""
    if not isinstance(node, Mapping):
        return []
    if "$ref" in node:
        return _members(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    union = node.get("anyOf") or node.get("oneOf")
    if union:
        return [inner for member in union for inner in _members(member, definitions)]
    return [node]


if __name__ == "__main__":
    Path(str(files("raykd.cli").joinpath("completions.json"))).write_text(text(), encoding="utf-8")
