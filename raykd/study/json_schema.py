"""Keys and option names that a study allows at each place, read from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raykd.registry import NamePattern, Registry
from raykd.study.config import study_adapter
from raykd.study.space.domains import DOMAINS
from raykd.study.space.pairing import ORDERS, PAIR_KEYS, WIDE
from raykd.study.space.space import CLOSED
from raykd.study.yaml_file import Json, Place, value_at

Schema = Mapping[str, Any]
"""A JSON Schema, or a part of one."""


class SchemaIndex:
    """A JSON Schema with its references followed, its unions split and its options named.

    Args:
        schema: as pydantic writes it; its answers are cached by the identity of its parts, so it
            must not change.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._alternatives: dict[int, list[Schema]] = {}
        self._names: dict[int, tuple[str | None, NamePattern | None]] = {}

    def target(self, node: Schema) -> Schema:
        """Return the definition that `node` refers to; `node` itself if it is no reference."""
        return self.schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node

    def alternatives(self, node: Schema) -> list[Schema]:
        """All schemas that a value at `node` may follow, none a reference or a union."""
        if id(node) not in self._alternatives:
            self._alternatives[id(node)] = self._split(node)
        return self._alternatives[id(node)]

    def name(self, node: Schema) -> str | None:
        """Name of the option that `node` describes, or the form of its names; None if it is no
        option."""
        return self._names_of(node)[0]

    def answers(self, node: Schema, name: str | None) -> bool:
        """Return whether the option that `node` describes has this name."""
        single, names = self._names_of(node)
        return single is not None and (name == single if names is None else name in names)

    def _split(self, node: Schema) -> list[Schema]:
        if "$ref" in node:
            return self.alternatives(self.target(node))
        members = node.get("anyOf") or node.get("oneOf")
        if members:
            return [each for member in members for each in self.alternatives(member)]
        return [node]

    def _names_of(self, node: Schema) -> tuple[str | None, NamePattern | None]:
        if id(node) not in self._names:
            names = NamePattern.from_schema(node)
            name = node.get("properties", {}).get("name", {}).get("const")
            self._names[id(node)] = (name, None) if names is None else (names.form, names)
        return self._names[id(node)]


class Outline:
    """The keys and options that a study allows at each place."""

    def __init__(self, schema: Schema) -> None:
        self._index = SchemaIndex(schema)
        self._root = self._index.alternatives(schema)
        self._below: dict[tuple[int, str | None, str | int], list[Schema]] = {}

    def expanded(self, data: Mapping[str, Json]) -> dict[str, Json]:
        """Write out the bare names in `data`: `scheme: offline` is `scheme: {name: offline}`."""
        return self._expanded_mapping(data, self._root)

    def keys(self, data: Json, place: Place) -> tuple[str, ...]:
        """Return the keys that a mapping at `place` may have."""
        objects = self._objects(self._at(data, place), _name_in(value_at(data, place)))
        keys = (
            [*node.get("properties", ()), *node.get("propertyNames", {}).get("enum", ())]
            for node in objects
        )
        return tuple(dict.fromkeys(key for each in keys for key in each))

    def names(self, data: Json, place: Place) -> tuple[str, ...]:
        """Return the options allowed at `place`, by name or by the form of their names."""
        names = (self._index.name(node) for node in self._at(data, place))
        return tuple(name for name in names if name is not None)

    def _at(self, data: Json, place: Place) -> list[Schema]:
        nodes, value = self._root, data
        for step in place:
            nodes, value = self._step(nodes, _name_in(value), step), value_at(value, (step,))
        return nodes

    def _step(self, nodes: list[Schema], name: str | None, step: str | int) -> list[Schema]:
        """Return the schemas one step below `nodes`, where an option called `name` is."""
        # By identity: the index keeps the first list, and `_below` each list found here.
        key = (id(nodes), name, step)
        if key not in self._below:
            if isinstance(step, int):
                below = (_item(array, step) for array in nodes if array.get("type") == "array")
            else:
                below = (
                    node.get("properties", {}).get(step, node.get("additionalProperties"))
                    for node in self._objects(nodes, name)
                )
            self._below[key] = [
                each
                for node in below
                if isinstance(node, Mapping) and node
                for each in self._index.alternatives(node)
            ]
        return self._below[key]

    def _objects(self, nodes: list[Schema], name: str | None) -> list[Schema]:
        """Return the objects among `nodes`; if options are among them, the one called `name`."""
        objects = [node for node in nodes if node.get("type") == "object"]
        named = [node for node in objects if self._index.answers(node, name)]
        return named or objects

    def _expanded(self, value: Json, nodes: list[Schema]) -> Json:
        if isinstance(value, Mapping):
            return self._expanded_mapping(value, nodes)
        if isinstance(value, list):
            items = enumerate(value)
            return [self._expanded(item, self._step(nodes, None, i)) for i, item in items]
        text_fits = any(node.get("type") == "string" or "enum" in node for node in nodes)
        if isinstance(value, str) and not text_fits and any(map(self._index.name, nodes)):
            return {"name": value}
        return value

    def _expanded_mapping(self, value: Mapping[str, Json], nodes: list[Schema]) -> dict[str, Json]:
        name = _name_in(value)
        return {key: self._expanded(v, self._step(nodes, name, key)) for key, v in value.items()}


def study_outline() -> Outline:
    """Return the outline of `Study`."""
    return _outline_of(Registry.version)


@lru_cache(maxsize=1)
def _outline_of(version: int) -> Outline:
    return Outline(study_adapter().json_schema())


def _item(array: Schema, index: int) -> Schema | None:
    first = array.get("prefixItems", ())
    return first[index] if index < len(first) else array.get("items")


def _name_in(value: Json) -> str | None:
    name = value.get("name") if isinstance(value, Mapping) else None
    return name if isinstance(name, str) else None


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
        """Return the data sources, closed but for their augmentation."""
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
        """Return a definition without domains."""
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
    """Return the domains other than `choice` that are allowed at `node`."""
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
    types = [node["type"]] if isinstance(node.get("type"), str) else []
    if isinstance(node.get("items"), Mapping) and "$ref" in node["items"]:
        types.append(node["items"]["$ref"])
    for member in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        types += _types(member)
    return types


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
    """Return the pairing domain; `pair`: the open definition of a pair."""
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
            **{key: pair["properties"][key] for key in PAIR_KEYS},
        },
        "additionalProperties": False,
    }
