"""Field types of an option, read from its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from raykd.study.json_schema import Schema, SchemaIndex

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
    """Type of the values that a field accepts.

    Attributes:
        type: the JSON Schema type ("number", "integer or null", "list of numbers"); "option" for
            one of several options by name, or the noun for such options ("model").
        text: type, choices and limits in words: "number > 0", "l2, l1, mmd", "integer or null".
        choices: the allowed values or options; empty if any value is allowed.
        limits: bounds by name (`min`, `exclusive_min`, `max_items` ...); bounds of numbers apply to
            each item of a list.
        nested: the nested mappings and options that are not documented elsewhere.
    """

    type: str
    text: str
    choices: tuple[Any, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    nested: tuple[NestedOption, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return plain data without fields that do not apply."""
        choices = {"choices": list(self.choices)} if self.choices else {}
        nested = {"of": [option.plain() for option in self.nested]} if self.nested else {}
        return {"type": self.type, **choices, **self.limits, **nested}


@dataclass(frozen=True)
class Parameter:
    """One key of an option.

    Attributes:
        required: True if a study must set it; otherwise `default` is its default as plain data.
        brief: the default in the form used in a study file.
        type: type of its values.
        description: its purpose.
    """

    name: str
    required: bool
    default: Any
    brief: Any
    type: FieldType
    description: str

    @property
    def default_text(self) -> str:
        """Format the default as text."""
        return "required" if self.required else yaml_text(self.brief)

    def plain(self) -> dict[str, Any]:
        """Return plain data without fields that do not apply."""
        default = {} if self.required else {"default": self.default}
        return {
            "name": self.name,
            **self.type.plain(),
            "required": self.required,
            **default,
            "description": self.description,
        }


@dataclass(frozen=True)
class NestedOption:
    """A mapping or an option nested in an option.

    Attributes:
        name: name of the mapping or the option.
        summary: the first sentence of its documentation.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...]

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        parameters = [parameter.plain() for parameter in self.parameters]
        return {"name": self.name, "summary": self.summary, "parameters": parameters}


class Reader:
    """Reads the fields of an option.

    Args:
        schema: JSON Schema of the option.
        nouns: the noun for a choice among a set of options.
        documented: titles of the definitions that are documented elsewhere.
    """

    def __init__(
        self,
        schema: Schema,
        nouns: Mapping[frozenset[str], str],
        documented: Collection[str] = (),
    ) -> None:
        self.schema = schema
        self.index = SchemaIndex(schema)
        self.nouns = nouns
        self.documented = documented

    def parameters(self, schema: Schema | None = None) -> Iterator[Parameter]:
        """Yield the keys of the option, or of a nested mapping with this schema, without `name`."""
        schema = self.index.target(schema or self.schema)  # recursive options are references
        required = schema.get("required", ())
        for name, node in schema.get("properties", {}).items():
            if name != "name":
                default = node.get("default")
                yield Parameter(
                    name,
                    name in required,
                    default,
                    self.brief(default, node),
                    self.type(node),
                    node.get("description", ""),
                )

    def type(self, node: Schema) -> FieldType:
        """Return the type of the field with this schema."""
        if "$ref" in node:
            return self._definition(self.index.target(node))
        members = node.get("anyOf") or node.get("oneOf")
        if members:
            return self._union([self.type(member) for member in members])
        if "const" in node or "enum" in node:
            return _among(node.get("type", "string"), node.get("enum") or (node["const"],))
        if "pattern" in node and "examples" in node:  # many names of one form
            return _among(node.get("type", "string"), node["examples"])
        if node.get("type") == "array":
            return self._list(node)
        kind = str(node.get("type", "any value")).replace("object", "mapping")
        limits = _limits(node)
        return FieldType(kind, " ".join([kind, *_phrases(limits)]), limits=limits)

    def brief(self, value: Any, node: Schema) -> Any:
        """Return a default in the form used in a study file, without nested defaults."""
        if isinstance(value, Mapping):
            return self._brief_mapping(value, node)
        if isinstance(value, list):
            arrays = [
                schema for schema in self.index.alternatives(node) if schema.get("type") == "array"
            ]
            items = arrays[0].get("items", {}) if arrays else {}
            return [self.brief(item, items) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def _brief_mapping(self, value: Schema, node: Schema) -> Any:
        fitting = [
            properties
            for schema in self.index.alternatives(node)
            if (properties := schema.get("properties", {}))
            and properties.get("name", {}).get("const") == value.get("name")
        ]
        properties = fitting[0] if fitting else {}
        changed = {
            key: self.brief(item, properties.get(key, {}))
            for key, item in value.items()
            if key == "name" or item != properties.get(key, {}).get("default", ...)
        }
        return changed["name"] if list(changed) == ["name"] else changed

    def _definition(self, node: Schema) -> FieldType:
        if "properties" not in node:
            return self.type(node)
        name = self.index.name(node)
        if name is not None:
            return replace(_among("option", (name,)), nested=self._nested(name, node))
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", node["title"]).lower()
        return FieldType(words, words, nested=self._nested(words, node))

    def _nested(self, name: str, node: Schema) -> tuple[NestedOption, ...]:
        if node["title"] in self.documented:
            return ()
        summary = " ".join(node.get("description", "").partition("\n\n")[0].split())
        return (NestedOption(name, summary, tuple(self.parameters(node))),)

    def _union(self, members: Sequence[FieldType]) -> FieldType:
        union = self._either([member for member in members if member.type != "null"])
        if all(member.type != "null" for member in members):
            return union
        text = f"null or {union.text}" if union.type.startswith("list") else f"{union.text} or null"
        return replace(union, type=f"{union.type} or null", text=text)

    def _either(self, members: Sequence[FieldType]) -> FieldType:
        kinds = tuple(dict.fromkeys(member.type for member in members))
        nested = tuple(option for member in members for option in member.nested)
        if len(kinds) == 1 and all(member.choices for member in members):
            choices = tuple(choice for member in members for choice in member.choices)
            noun = self.nouns.get(frozenset(choices), "") if kinds[0] == "option" else ""
            return FieldType(noun, noun) if noun else _among(kinds[0], choices, nested)
        return FieldType(
            " or ".join(kinds),
            " or ".join(dict.fromkeys(member.text for member in members)),
            limits={name: limit for member in members for name, limit in member.limits.items()},
            nested=nested,
        )

    def _list(self, node: Schema) -> FieldType:
        places = [self.type(item) for item in node.get("prefixItems", ())]
        alike = len({place.text for place in places}) == 1
        items = places[0] if alike else self._union(places or [self.type(node.get("items", {}))])
        limits = _limits(node)
        kinds = " or ".join(map(_plural, items.type.split(" or ")))
        text = f"list of {len(places)} {kinds}" if places else f"list of {kinds}"
        if items.choices:
            text += ": " + ", ".join(map(str, items.choices))
        elif items.limits:
            text += ", each " + " and ".join(_phrases(items.limits))
        lengths = [] if places else _phrases(limits)
        return FieldType(
            f"list of {kinds}",
            ", ".join([text, *lengths]),
            items.choices,
            {**items.limits, **limits},
            items.nested,
        )


def yaml_text(value: Any) -> str:
    """Format a value in one line as YAML, without quotes."""
    if isinstance(value, str) and value:
        return value
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip()[1:-1]


def _among(kind: str, choices: Sequence[Any], nested: tuple[NestedOption, ...] = ()) -> FieldType:
    return FieldType(kind, ", ".join(map(str, choices)), tuple(choices), nested=nested)


def _limits(node: Schema) -> dict[str, Any]:
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
