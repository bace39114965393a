"""Checks of the values that options are constructed with in Python.

A study file is checked by pydantic as it is read.  An option that is constructed in Python gets the
same checks, field by field, when its `__init__` is called.  Nested options are checked by their
class alone, because each was checked when it was constructed itself.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from inspect import get_annotations
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from raykd.errors import Problem, StudyError

STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
"""Text is not a number, 8.0 and True are not integers, and NaN is not allowed anywhere."""

_TYPES = {
    "bool_type": "True or False",
    "dict_type": "a dict",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "none_required": "None",
    "string_type": "a string",
    "tuple_type": "a tuple",
}

LIMITS = {
    "greater_than": ("> {gt:g}", "gt"),
    "greater_than_equal": (">= {ge:g}", "ge"),
    "less_than": ("< {lt:g}", "lt"),
    "less_than_equal": ("<= {le:g}", "le"),
}
"""Pydantic's error types for numbers out of range, with their text."""


def near(word: Any, words: Sequence[str]) -> str:
    """Return `did you mean ...?` for a misspelled word; "" if no word is close."""
    close = get_close_matches(str(word), words, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields of `cls` in the types of the fields, with defaults.

    Lists become tuples, paths become strings, NumPy scalars become Python numbers, and integers
    become floats where a float is declared.

    Raises:
        StudyError: a ValueError; names every field that is unknown, missing or out of range.
    """
    try:
        return _validated(cls, values)
    except ValidationError as error:
        natural = {name: _natural(value) for name, value in values.items()}
        if all(natural[name] is values[name] for name in values):
            raise StudyError(tuple(_problems(cls, values, error))) from None
    try:
        return _validated(cls, natural)
    except ValidationError as error:
        raise StudyError(tuple(_problems(cls, natural, error))) from None


def _validated(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return vars(_checked_class(cls)(**values))


@cache
def _checked_class(cls: type) -> type:
    """Return a pydantic dataclass with the fields of `cls`.

    It is a separate class because pydantic would check nested options down to their last field,
    would load the options of all plugins for that, and would refuse options that are not
    registered.
    """
    annotations = _annotations(cls)
    members: dict[str, Any] = {"__annotations__": {}}
    for field in dataclasses.fields(cls):
        if field.init:
            members["__annotations__"][field.name] = _shallow(annotations[field.name])
            members[field.name] = dataclasses.field(
                default=field.default, default_factory=field.default_factory
            )
    return dataclass(type(cls.__name__, (), members), config=STRICT, kw_only=True)


@cache
def _annotations(cls: type) -> dict[str, Any]:
    """Return the types of the fields, each resolved in the module that declares the field."""
    annotations: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        home = next(base for base in cls.__mro__ if field.name in get_annotations(base))
        alone = types.SimpleNamespace(__annotations__={field.name: field.type})
        names = {**vars(sys.modules[home.__module__]), **vars(home)}
        annotations |= get_type_hints(alone, names, include_extras=True)
    return annotations


@dataclasses.dataclass(frozen=True)
class _Instance:
    """Marks a type as checked by its class.

    `pydantic.InstanceOf` would build the schema of all fields as well.
    """

    cls: type

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "is-instance", "cls": self.cls}


def _shallow(annotation: Any) -> Any:
    """Return the annotation with an instance check in place of each option class or registry."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base = next(filter(None, map(_base_of, inner[1:])), None)
        if base is not None:
            return Annotated[Any, _Instance(base)]
        extras = [extra for extra in inner[1:] if getattr(extra, "discriminator", None) is None]
        if any(isinstance(extra, AfterValidator) for extra in extras):
            extras.append(Field(validate_default=True))  # such a rule reads other fields
        shallow = _shallow(inner[0])
        return Annotated[(shallow, *extras)] if extras else shallow
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_shallow, inner))]  # noqa: UP007
    if origin in (tuple, dict):
        parts = tuple(part if part is ... else _shallow(part) for part in inner)
        return types.GenericAlias(origin, parts)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Annotated[Any, _Instance(annotation)]
    if hasattr(annotation, "__get_pydantic_core_schema__"):  # reads itself from plain data
        return Union[Annotated[Any, _Instance(annotation)], annotation]  # noqa: UP007
    return annotation


def _registries(annotation: Any) -> Iterator[Any]:
    """Yield the registries of options inside an annotation."""
    for part in get_args(annotation):
        if _base_of(part) is not None:
            yield part
        yield from _registries(part)


def _base_of(extra: Any) -> type | None:
    base = getattr(extra, "base", None)
    return base if isinstance(base, type) else None


def _natural(value: Any) -> Any:
    """Return a value in the types of a study file; the same object if it has them already."""
    if isinstance(value, list):
        return tuple(map(_natural, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _problems(cls: type, values: Mapping[str, Any], error: ValidationError) -> Iterator[Problem]:
    """Yield one problem for each invalid place in the values."""
    names = [field.name for field in dataclasses.fields(cls) if field.init and field.name != "name"]
    unknown = [name for name in values if name not in names and name != "name"]
    places: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False):
        name, inner = str(fault["loc"][0]), fault["loc"][1:]
        if fault["type"] == "missing" and not inner:
            if not near(name, unknown):  # else it is present, misspelled
                yield Problem(f"`{name}` is missing", path=cls.__name__)
        elif fault["type"] == "unexpected_keyword_argument" and not inner:
            fields = f"has {', '.join(names)}" if names else "takes no arguments"
            message = f"unknown argument `{name}`; {cls.__name__} {fields}"
            yield Problem(message, path=cls.__name__, fix=near(name, names))
        else:
            place = f"{cls.__name__}.{name}{_within(values.get(name), inner)}"
            places.setdefault(place, []).append(fault)
    for place, faults in places.items():
        yield _wrong_value(place, faults, _field_registries(cls, str(faults[0]["loc"][0])))


def _wrong_value(
    place: str, faults: Sequence[Mapping[str, Any]], registries: Sequence[Any]
) -> Problem:
    value = faults[0]["input"]
    if faults[0]["type"] == "value_error":
        return Problem(_allowed(faults[0]), path=place)
    limits = [fault for fault in faults if fault["type"] in LIMITS]
    allowed = dict.fromkeys(map(_allowed, limits or faults))
    message = f"got {quoted(value)}; must be {' or '.join(allowed)}"
    return Problem(message, path=place, fix=_suggestion(value, faults, registries))


def _field_registries(cls: type, name: str) -> list[Any]:
    return list(_registries(_annotations(cls).get(name)))


def _within(value: Any, location: Sequence[Any]) -> str:
    """Return the part of pydantic's location that leads into the value, as text."""
    text = ""
    for step in location:
        inside = isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
        if inside or (isinstance(value, Mapping) and step in value):
            value = value[step]
            text += f"[{step!r}]"
    return text


def _allowed(fault: Mapping[str, Any]) -> str:
    kind, context = fault["type"], fault.get("ctx") or {}
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in LIMITS:
        text, key = LIMITS[kind]
        return text.format(**{key: context[key]})
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "is_instance_of":
        return f"{context['class']}(...)"
    if kind == "too_short":
        return f"at least {context['min_length']} item(s)"
    if kind == "missing":
        return "longer"
    if kind == "too_long":
        return f"at most {context['max_length']} item(s)"
    if kind == "string_pattern_mismatch":
        return f"a string of the form {context['pattern']}"
    return fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _suggestion(value: Any, faults: Sequence[Mapping[str, Any]], registries: Sequence[Any]) -> str:
    """Return a fix for a value that should be an option or one of some words; "" if none."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return ""
    for registry in registries:
        cls = registry.find(name) if hasattr(registry, "find") else None
        if cls is not None:
            return f"pass {cls.__name__}(...)"
    expected = [str(f["ctx"]["expected"]) for f in faults if f["type"] == "literal_error"]
    words = [
        word.strip("'") for text in expected for word in text.replace(" or ", ", ").split(", ")
    ]
    return near(name, words)


def quoted(value: Any) -> str:
    """Return a value as messages quote it, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
