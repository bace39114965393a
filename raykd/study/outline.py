"""What may stand where in a study, read from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raykd.option import Names
from raykd.study.place import Place, value_at
from raykd.study.schema import study_adapter

Schema = Mapping[str, Any]


class Outline:
    """The keys, names and types a study allows at each place."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._taken_apart: dict[int, list[Schema]] = {}  # by identity: the schema never changes
        self._names: dict[int, tuple[str | None, Names | None]] = {}
        self._known: dict[tuple[int, str | None, str | int], list[Schema]] = {}

    def expanded(self, data: Any) -> Any:
        """`data` with bare names written out: `scheme: offline` is `scheme: {name: offline}`."""
        return self._expanded(data, self._alternatives(self.schema))

    def keys(self, data: Any, place: Place) -> tuple[str, ...]:
        """The keys a mapping at `place` may have."""
        objects = self._objects(self._at(data, place), _name_in(value_at(data, place)))
        found = (
            [*found.get("properties", ()), *found.get("propertyNames", {}).get("enum", ())]
            for found in objects
        )
        return tuple(dict.fromkeys(key for keys in found for key in keys))

    def names(self, data: Any, place: Place) -> tuple[str, ...]:
        """The options that may stand at `place`, by name or by the form of their names."""
        names = (self._name(found) for found in self._at(data, place))
        return tuple(name for name in names if name is not None)

    def _at(self, data: Any, place: Place) -> list[Schema]:
        found, value = self._alternatives(self.schema), data
        for step in place:
            found, value = self._below(found, _name_in(value), step), value_at(value, (step,))
        return found

    def _below(self, found: list[Schema], name: str | None, step: str | int) -> list[Schema]:
        """What may stand one step below `found`, where a value of this name stands."""
        # By identity: the first list is kept for good, and so is each list found here.
        known = (id(found), name, step)
        if known not in self._known:
            self._known[known] = self._looked_up(found, name, step)
        return self._known[known]

    def _looked_up(self, found: list[Schema], name: str | None, step: str | int) -> list[Schema]:
        if isinstance(step, int):
            below = (self._item(array, step) for array in found if array.get("type") == "array")
        else:
            below = (
                held.get("properties", {}).get(step, held.get("additionalProperties"))
                for held in self._objects(found, name)
            )
        return [node for held in below if held for node in self._alternatives(held)]

    @staticmethod
    def _item(array: Schema, index: int) -> Schema | None:
        first = array.get("prefixItems", ())
        return first[index] if index < len(first) else array.get("items")

    def _objects(self, found: list[Schema], name: str | None) -> list[Schema]:
        """The objects among `found`; where they have names, the one of this name."""
        objects = [node for node in found if node.get("type") == "object"]
        named = [node for node in objects if self._answers(node, name)]
        return named or objects

    def _name(self, node: Schema) -> str | None:
        """What the option that `node` describes is called; None where it has no name."""
        return self._names_of(node)[0]

    def _answers(self, node: Schema, name: Any) -> bool:
        """Whether the option that `node` describes answers to `name`."""
        own, names = self._names_of(node)
        return own is not None and (name == own if names is None else name in names)

    def _names_of(self, node: Schema) -> tuple[str | None, Names | None]:
        if id(node) not in self._names:
            self._names[id(node)] = _names_of(node)
        return self._names[id(node)]

    def _alternatives(self, node: Any) -> list[Schema]:
        """What `node` stands for: references followed, unions taken apart."""
        if not isinstance(node, Mapping):
            return []
        if id(node) not in self._taken_apart:
            self._taken_apart[id(node)] = self._apart(node)
        return self._taken_apart[id(node)]

    def _apart(self, node: Schema) -> list[Schema]:
        if "$ref" in node:
            return self._alternatives(self.schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
        members = node.get("anyOf") or node.get("oneOf")
        if members:
            return [found for member in members for found in self._alternatives(member)]
        return [node]

    def _expanded(self, value: Any, found: list[Schema]) -> Any:
        if isinstance(value, Mapping):
            name = _name_in(value)
            return {
                key: self._expanded(held, self._below(found, name, key))
                for key, held in value.items()
            }
        if isinstance(value, list):
            return [
                self._expanded(held, self._below(found, None, i)) for i, held in enumerate(value)
            ]
        text_fits = any(node.get("type") == "string" or "enum" in node for node in found)
        if isinstance(value, str) and not text_fits and any(self._name(node) for node in found):
            return {"name": value}
        return value


@lru_cache(maxsize=1)
def study_outline() -> Outline:
    """The outline of `Study`."""
    return Outline(study_adapter().json_schema())


def _name_in(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, Mapping) else None
    return name if isinstance(name, str) else None


def _names_of(node: Schema) -> tuple[str | None, Names | None]:
    """An option's name, or the form of its names, and the names themselves where it has many."""
    if node.get("type") != "object":
        return None, None
    names = Names.from_schema(node)
    name = node.get("properties", {}).get("name", {}).get("const")
    return (name, None) if names is None else (names.form, names)
