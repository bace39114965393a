"""Keys and option names that a study allows at each place, read from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raykd.option import Names
from raykd.study.place import Json, Place, value_at
from raykd.study.schema import study_adapter

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
        self._names: dict[int, tuple[str | None, Names | None]] = {}

    def target(self, node: Schema) -> Schema:
        """The definition that `node` refers to; `node` itself if it is no reference."""
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
        """Whether the option that `node` describes has this name."""
        own, names = self._names_of(node)
        return own is not None and (name == own if names is None else name in names)

    def _split(self, node: Schema) -> list[Schema]:
        if "$ref" in node:
            return self.alternatives(self.target(node))
        members = node.get("anyOf") or node.get("oneOf")
        if members:
            return [each for member in members for each in self.alternatives(member)]
        return [node]

    def _names_of(self, node: Schema) -> tuple[str | None, Names | None]:
        if id(node) not in self._names:
            names = Names.from_schema(node)
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
        """`data` with bare names written out: `scheme: offline` is `scheme: {name: offline}`."""
        return self._expanded_mapping(data, self._root)

    def keys(self, data: Json, place: Place) -> tuple[str, ...]:
        """The keys that a mapping at `place` may have."""
        objects = self._objects(self._at(data, place), _name_in(value_at(data, place)))
        keys = (
            [*node.get("properties", ()), *node.get("propertyNames", {}).get("enum", ())]
            for node in objects
        )
        return tuple(dict.fromkeys(key for each in keys for key in each))

    def names(self, data: Json, place: Place) -> tuple[str, ...]:
        """The options allowed at `place`, by name or by the form of their names."""
        names = (self._index.name(node) for node in self._at(data, place))
        return tuple(name for name in names if name is not None)

    def _at(self, data: Json, place: Place) -> list[Schema]:
        nodes, value = self._root, data
        for step in place:
            nodes, value = self._step(nodes, _name_in(value), step), value_at(value, (step,))
        return nodes

    def _step(self, nodes: list[Schema], name: str | None, step: str | int) -> list[Schema]:
        """The schemas one step below `nodes`, where an option called `name` is."""
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
        """The objects among `nodes`; if options are among them, the one called `name`."""
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


@lru_cache(maxsize=1)
def study_outline() -> Outline:
    """The outline of `Study`."""
    return Outline(study_adapter().json_schema())


def _item(array: Schema, index: int) -> Schema | None:
    first = array.get("prefixItems", ())
    return first[index] if index < len(first) else array.get("items")


def _name_in(value: Json) -> str | None:
    name = value.get("name") if isinstance(value, Mapping) else None
    return name if isinstance(name, str) else None
