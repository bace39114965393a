"""JSON Schema of study files, for completion and checks in editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raykd.study.domains import DOMAINS
from raykd.study.outline import Schema, SchemaIndex
from raykd.study.pairings import ORDERS, OWN, WIDE
from raykd.study.schema import study_adapter
from raykd.study.space import CLOSED

_REF = "#/$defs/"
_ABOUT = ("title", "description", "default")
_ANY_DOMAIN = {"$ref": f"{_REF}domain"}
_BOUNDS = {"type": "array", "minItems": 2, "maxItems": 2}
_LAYERS = {
    "anyOf": [
        {"enum": [*WIDE]},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    ]
}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a study file: domains are allowed wherever a study may be left open, and the
    bare name of an option in place of a mapping (`scheme: offline`)."""
    schema = study_adapter().json_schema()
    editor = _Editor(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "raykd study",
        "properties": {key: editor.part(key, node) for key, node in schema["properties"].items()},
        "$defs": {**editor.definitions(), **_domain_definitions(editor.open_definition("Pair"))},
    }


class _Editor:
    """Adds to each definition of a schema a variant with its values left open."""

    def __init__(self, schema: Schema) -> None:
        self.index = SchemaIndex(schema)
        self.original = schema["$defs"]

    def definitions(self) -> dict[str, Any]:
        closed = {name: self.closed(node) for name, node in self.original.items()}
        opened = {f"open{name}": self.opened(node) for name, node in self.original.items()}
        return {**closed, **opened}

    def open_definition(self, name: str) -> Any:
        return self.opened(self.original[name])

    def part(self, key: str, node: Any) -> Any:
        """One of the study's own keys."""
        if key == "data":
            return self.data(node)
        return self.named(node) if key in CLOSED else self.place(node)

    def data(self, node: Any) -> Any:
        """The data sources, closed but for their augmentation."""
        sources = []
        for member in node.get("oneOf", [node]):
            source = self.index.target(member)
            properties = {
                key: self.place(value) if key == "augment" else value
                for key, value in source["properties"].items()
            }
            sources.append({**source, "properties": properties})
        return _either(_about(node), [*sources, *self.bare_names(node)])

    def closed(self, node: Any) -> Any:
        """A definition without domains."""
        if "properties" not in node:
            return node
        properties = {key: self.named(value) for key, value in node["properties"].items()}
        return {**node, "properties": properties}

    def named(self, node: Any) -> Any:
        """`node`, or the bare name of an option it allows."""
        names = self.bare_names(node)
        return _either(_about(node), [_bare(node), *names]) if names else node

    def place(self, node: Any) -> dict[str, Any]:
        """`node`, the bare name of an option it allows, or a domain of such values."""
        values = [_bare(self.opened(node)), *self.bare_names(node)]
        domains = [{"$ref": _REF + name} for name in _fitting(node)]
        return _either(_about(node), [*values, _choice([*values, _ANY_DOMAIN]), *domains])

    def opened(self, node: Any) -> Any:
        """`node` with what lies below it left open."""
        opened = {key: value for key, value in node.items() if key != "discriminator"}
        if "$ref" in opened:
            opened["$ref"] = f"{_REF}open{opened['$ref'].removeprefix(_REF)}"
        members = [*opened.pop("anyOf", ()), *opened.pop("oneOf", ())]
        if members:  # of a union, several members may fit once names are left open
            opened["anyOf"] = [self.opened(member) for member in members]
        if isinstance(opened.get("items"), Mapping):
            opened["items"] = self.place(opened["items"])
        if "prefixItems" in opened:
            opened["prefixItems"] = [self.place(item) for item in opened["prefixItems"]]
        if "properties" in opened:
            opened["properties"] = {
                key: value if key == "name" else self.place(value)
                for key, value in opened["properties"].items()
            }
        return opened

    def bare_names(self, node: Any) -> list[dict[str, Any]]:
        """Schemas of the names of the options allowed at `node`."""
        options = [each for each in self.index.alternatives(node) if self.index.name(each)]
        fields = [option["properties"]["name"] for option in options]
        names = sorted(field["const"] for field in fields if "const" in field)
        patterns = [_bare(field) for field in fields if "pattern" in field]
        return [*([{"enum": names}] if names else []), *patterns]


def _about(node: Any) -> dict[str, Any]:
    return {key: node[key] for key in _ABOUT if key in node}


def _bare(node: Any) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in _ABOUT}


def _either(about: dict[str, Any], members: list[Any]) -> dict[str, Any]:
    return {**about, "anyOf": members}


def _choice(options: list[Any]) -> dict[str, Any]:
    return _domain("choice", {"type": "array", "items": {"anyOf": options}, "minItems": 1})


def _fitting(node: Any) -> list[str]:
    """The domains other than `choice` whose values may stand at `node`."""
    types = set(_types(node))
    fitting = []
    if "number" in types:
        fitting += ["uniform", "loguniform"]
    if types & {"number", "integer"}:
        fitting += ["int", "logint"]
    if f"{_REF}Pair" in types:
        fitting.append("pairing")
    return fitting


def _types(node: Mapping[str, Any]) -> list[str]:
    found = [node["type"]] if isinstance(node.get("type"), str) else []
    if isinstance(node.get("items"), Mapping) and "$ref" in node["items"]:
        found.append(node["items"]["$ref"])
    for member in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        found += _types(member)
    return found


def _domain_definitions(pair: Any) -> dict[str, Any]:
    integers = {**_BOUNDS, "items": {"type": "integer"}}
    numbers = {**_BOUNDS, "items": {"type": "number"}}
    above = {"exclusiveMinimum": 0}
    definitions = {
        "uniform": _domain("uniform", numbers, {"type": "number", **above}),
        "loguniform": _domain("loguniform", {**_BOUNDS, "items": {"type": "number", **above}}),
        "int": _domain("int", integers, {"type": "integer", "minimum": 1}),
        "logint": _domain("logint", {**_BOUNDS, "items": {"type": "integer", "minimum": 1}}),
        "pairing": _domain("pairing", _pairing(pair)),
        "choice": _domain("choice", {"type": "array", "minItems": 1}),
    }
    names = [{"$ref": f"{_REF}{name}"} for name in DOMAINS]
    return {**definitions, "domain": {"anyOf": names}}


def _domain(kind: str, value: Any, step: Any = None) -> dict[str, Any]:
    properties = {kind: value} if step is None else {kind: value, "step": step}
    return {
        "type": "object",
        "properties": properties,
        "required": [kind],
        "additionalProperties": False,
    }


def _pairing(pair: Any) -> dict[str, Any]:
    """The pairing domain; `pair`: the open definition of a pair."""
    candidate = {
        "anyOf": [
            {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
            {"$ref": f"{_REF}Pair"},
        ]
    }
    candidates = {"type": "array", "items": candidate, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "hint": _LAYERS,
            "guided": _LAYERS,
            "pairs": candidates,
            "sets": {"type": "array", "items": candidates, "minItems": 1},
            "min": {"type": "integer", "minimum": 1, "default": 1},
            "max": {"type": "integer", "minimum": 1, "default": 1},
            "order": {"enum": [*ORDERS], "default": "monotone"},
            **{key: pair["properties"][key] for key in OWN},
        },
        "additionalProperties": False,
    }
