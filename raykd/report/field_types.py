"""What a field of an option takes, read from its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_LIMITS = {
    "minimum": "min",
    "exclusiveMinimum": "exclusive_min",
    "maximum": "max",
    "exclusiveMaximum": "exclusive_max",
    "minItems": "min_items",
    "maxItems": "max_items",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
}

_PHRASES = {
    "min": ">= {}",
    "exclusive_min": "> {}",
    "max": "<= {}",
    "exclusive_max": "< {}",
    "min_items": "at least {}",
    "max_items": "at most {}",
    "min_length": "of {} or more characters",
    "max_length": "of at most {} characters",
    "pattern": "of the form {}",
}


@dataclass(frozen=True)
class FieldType:
    """What a field takes.

    Attributes:
        type: as JSON Schema calls it ("number", "integer or null", "list of numbers"); "option"
            for one of several options by name, or what such options are called ("model").
        text: type, choices and limits in words: "number > 0", "l2, l1, mmd", "integer or null".
        choices: the values, or the options, it is limited to; empty: not limited so.
        limits: bounds by name (`min`, `exclusive_min`, `max_items` ...); those of numbers hold for
            each item of a list.
    """

    type: str
    text: str
    choices: tuple[Any, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As plain data, what does not apply left out."""
        choices = {"choices": list(self.choices)} if self.choices else {}
        return {"type": self.type, **choices, **self.limits}


class Reader:
    """Reads fields.

    Args:
        definitions: what references in their schemas lead to.
        nouns: what a choice among all these options is called.
    """

    def __init__(self, definitions: Mapping[str, Any], nouns: Mapping[frozenset[str], str]) -> None:
        self.definitions = definitions
        self.nouns = nouns

    def read(self, node: Mapping[str, Any]) -> FieldType:
        """What the field with this JSON Schema takes."""
        if "$ref" in node:
            return self._definition(self.definitions[node["$ref"].rsplit("/", 1)[-1]])
        members = node.get("anyOf") or node.get("oneOf")
        if members:
            return self._union([self.read(member) for member in members])
        if "const" in node or "enum" in node:
            return _among(node.get("type", "string"), node.get("enum") or (node["const"],))
        if node.get("type") == "array":
            return self._list(node)
        kind = str(node.get("type", "any value")).replace("object", "mapping")
        limits = _limits(node)
        return FieldType(kind, " ".join([kind, *_phrases(limits)]), limits=limits)

    def _definition(self, node: Mapping[str, Any]) -> FieldType:
        if "properties" not in node:
            return self.read(node)
        name = node["properties"].get("name", {}).get("const")
        if name is not None:
            return _among("option", (name,))
        title = node["title"].lower()
        return FieldType(title, title)

    def _union(self, members: Sequence[FieldType]) -> FieldType:
        nothing = [member for member in members if member.type == "null"]
        rest = [member for member in members if member.type != "null"]
        if not nothing:
            return self._either(rest)
        one = self._either(rest)
        text = f"null or {one.text}" if one.type.startswith("list") else f"{one.text} or null"
        return replace(one, type=f"{one.type} or null", text=text)

    def _either(self, members: Sequence[FieldType]) -> FieldType:
        kinds = tuple(dict.fromkeys(member.type for member in members))
        if len(kinds) == 1 and all(member.choices for member in members):
            choices = tuple(choice for member in members for choice in member.choices)
            noun = self.nouns.get(frozenset(choices), "") if kinds[0] == "option" else ""
            return FieldType(noun, noun) if noun else _among(kinds[0], choices)
        return FieldType(
            " or ".join(kinds),
            " or ".join(member.text for member in members),
            limits={name: limit for member in members for name, limit in member.limits.items()},
        )

    def _list(self, node: Mapping[str, Any]) -> FieldType:
        places = [self.read(item) for item in node.get("prefixItems", ())]
        alike = len({place.text for place in places}) == 1
        items = places[0] if alike else self._union(places or [self.read(node.get("items", {}))])
        limits = _limits(node)
        count = f"{len(places)} " if places else ""
        head = f"list of {count}{_plural(items.type)}"
        if items.choices:
            head += ": " + ", ".join(map(str, items.choices))
        elif items.limits:
            head += ", each " + " and ".join(_phrases(items.limits))
        lengths = [] if places else _phrases(limits)
        return FieldType(
            f"list of {_plural(items.type)}",
            ", ".join([head, *lengths]),
            items.choices,
            {**items.limits, **limits},
        )


def _among(kind: str, choices: Sequence[Any]) -> FieldType:
    return FieldType(kind, ", ".join(map(str, choices)), tuple(choices))


def _limits(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: node[key] for key, name in _LIMITS.items() if key in node}


def _phrases(limits: Mapping[str, Any]) -> list[str]:
    if set(limits) == {"min", "max"}:
        return [f"from {limits['min']} to {limits['max']}"]
    if limits.get("min_length") == 1:
        limits = {name: limit for name, limit in limits.items() if name != "min_length"}
    phrases = [_PHRASES[name].format(limit) for name, limit in limits.items()]
    return [" and ".join(phrases)] if phrases else []


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")
