"""Validation errors of pydantic as sentences about a study."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from raykd.arguments import LIMITS, near
from raykd.models import MODELS
from raykd.models.adapters import models_of_libraries
from raykd.registry import name_pattern_of
from raykd.study.config import NAME_PATTERN, REGISTER_PATTERN, Study, read_study
from raykd.study.json_schema import study_outline
from raykd.study.space.domains import DOMAINS
from raykd.study.yaml_file import Json, Place, dotted, value_at

_NOUNS = {
    "augment": "augmentation",
    "data": "data source",
    "loss": "loss",
    "model": "model",
    "optimizer": "optimizer",
    "sampler": "sampler",
    "schedule": "schedule",
    "scheduler": "scheduler",
    "scheme": "scheme",
    "proxy": "proxy",
}

_TYPES = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "none_required": "null",
    "string_type": "text",
    "tuple_type": "a list",
}

_PATTERNS = {
    REGISTER_PATTERN: "a name without `/` and `:`",
    NAME_PATTERN: "letters, digits, `.`, `_` or `-`, the first a letter or a digit",
}


@dataclass(frozen=True)
class Issue:
    """A problem at one place of a concrete study."""

    place: Place
    message: str
    fix: str = ""

    def __str__(self) -> str:
        path = dotted(self.place)
        return f"{path}: {self.message}" if path else self.message


class InvalidStudy(ValueError):
    """Plain data that are not a valid study.

    Attributes:
        issues: one for each invalid place.
        data: the validated data, with bare names written out.
    """

    def __init__(self, issues: Sequence[Issue], data: Json) -> None:
        super().__init__("; ".join(map(str, issues)))
        self.issues = issues
        self.data = data


def parse_study(data: Mapping[str, Json]) -> Study:
    """Return the concrete study that plain data describe; bare names of options are allowed.

    Raises:
        InvalidStudy: with all issues.
    """
    expanded = study_outline().expanded(data)
    try:
        return read_study(expanded)
    except ValidationError as error:
        raise InvalidStudy(validation_errors(error, expanded), expanded) from None


@dataclass(frozen=True)
class _Error:
    """An error of pydantic, with its place in the data."""

    type: str
    place: Place
    value: Json
    context: Mapping[str, Any]
    message: str


def validation_errors(error: ValidationError, data: Json) -> list[Issue]:
    """One issue for each invalid place; `data` was validated."""
    errors = error.errors(include_url=False)
    errors = [
        _Error(
            each["type"],
            _place(each["loc"], data, may_be_new=each["type"] in _NEW_KEYS),
            each.get("input"),
            each.get("ctx") or {},
            each["msg"],
        )
        for each in errors
    ]
    errors = [error for error in errors if not _is_misspelt_elsewhere(error, errors)]
    errors = [error for error in errors if not _is_short_of_the_faulty(error, errors)]
    by_place = groupby(sorted(errors, key=_sort_key), key=_sort_key)
    return [_issue(list(each), data) for _, each in by_place]


_NEW_KEYS = ("missing", "unexpected_keyword_argument", "extra_forbidden")


def _is_short_of_the_faulty(error: _Error, errors: Sequence[_Error]) -> bool:
    """Return whether a list is only too short because of invalid items in it."""
    length = len(error.place)
    within = (other.place for other in errors if len(other.place) > length)
    return error.type == "too_short" and any(place[:length] == error.place for place in within)


def _is_misspelt_elsewhere(error: _Error, errors: Sequence[_Error]) -> bool:
    """Return whether a key is only missing because it is misspelled next to it."""
    if error.type != "missing" or not isinstance(error.place[-1], str):
        return False
    strange = [
        str(other.place[-1])
        for other in errors
        if other.type == "unexpected_keyword_argument" and other.place[:-1] == error.place[:-1]
    ]
    return bool(near(error.place[-1], strange))


def _sort_key(error: _Error) -> tuple[tuple[int, str], ...]:
    steps = error.place
    return tuple((step, "") if isinstance(step, int) else (-1, step) for step in steps)


def _place(loc: Sequence[str | int], data: Json, *, may_be_new: bool) -> Place:
    """Pydantic's location without steps that are not in the data: names of options, members of
    unions."""
    place: list[str | int] = []
    value, past_name = data, False
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        chosen_by = value.get("name") if isinstance(value, Mapping) and place else None
        if not past_name and _names_option(step, chosen_by):
            past_name = True
        elif isinstance(value, Mapping) and (step in value or (last and may_be_new)):
            place.append(step)
            value, past_name = value.get(str(step)), False
        elif isinstance(value, list) and isinstance(step, int):
            place.append(step)
            value, past_name = (value[step] if step < len(value) else None), False
        elif place and step == place[-1] and not last:
            continue  # pydantic repeats the key for a union
        else:
            break
    return tuple(place)


def _names_option(step: str | int, name: Json) -> bool:
    """Return whether this step of pydantic's location is the name of the chosen option."""
    cls = MODELS.forms.get(step) if isinstance(step, str) else None
    names = name_pattern_of(cls) if cls is not None else None
    return name is not None and (name == step or (names is not None and name in names))


def _issue(errors: list[_Error], data: Json) -> Issue:
    first = errors[0]
    if first.type == "missing":
        return _missing(first, data)
    if first.type in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(first, data)
    if first.type == "union_tag_not_found" and not isinstance(first.value, Mapping):
        return _unknown_name(first.place, None, data, f"got {quoted(first.value)}")
    if first.type in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_name(first.place, first.context.get("tag"), data)
    if first.type == "literal_error" and len(first.place) > 1 and first.place[-1] == "name":
        return _unknown_name(first.place[:-1], first.value, data)
    if first.type in ("value_error", "assertion_error"):
        return Issue(first.place, first.message.split(", ", 1)[-1])
    if first.type == "literal_error" and first.value != value_at(data, first.place):
        return _unknown_key(first, data)
    if _takes_options(first, data):
        names = study_outline().names(data, first.place)
        return _unknown_name(first.place, None, data, f"got {quoted(first.value)}", names)
    return _wrong_value(errors)


def _missing(error: _Error, data: Json) -> Issue:
    *parent, key = error.place
    if isinstance(key, int):
        return Issue(tuple(parent), f"too short: item {key + 1} is missing")
    return Issue(tuple(parent), f"`{key}` is missing")


def _unknown_key(error: _Error, data: Json) -> Issue:
    *parent, key = error.place
    keys = study_outline().keys(data, tuple(parent))
    path = dotted(parent)
    value = value_at(data, tuple(parent))
    name = value.get("name") if parent and isinstance(value, Mapping) else None
    called = f"{_noun(tuple(parent))} '{name}'" if isinstance(name, str) else path or "a study"
    message = f"unknown key `{key}`; {called} has {', '.join(keys)}"
    return Issue((*parent, key), message, near(key, keys))


def _unknown_name(
    place: Place,
    name: Json,
    data: Json,
    problem: str = "",
    names: Sequence[str] = (),
) -> Issue:
    names = names or study_outline().names(data, place)
    noun = _noun(place)
    if name is None:
        fix = f"write {{name: {names[0]}, ...}}" if names else ""
        problem = problem or "`name` is missing"
        return Issue(place, f"{problem}; `name` must be one of {', '.join(sorted(names))}", fix)
    message = f"unknown {noun} {quoted(name)}; must be one of {', '.join(sorted(names))}"
    return Issue((*place, "name"), message, _other_name(noun, name, names))


def _other_name(noun: str, name: Json, names: Sequence[str]) -> str:
    """Return the fix for a name that is not one of `names`: other names that may be meant."""
    if noun == "model" and isinstance(name, str):
        same = [each for each in names if each.lower() == name.lower()]
        if same := [*same, *models_of_libraries(name)]:
            return f"write {' or '.join(same)}"
    return near(name, names)


def _takes_options(error: _Error, data: Json) -> bool:
    if error.type not in ("dict_type", "dataclass_type"):
        return False
    return bool(study_outline().names(data, error.place))


def _wrong_value(errors: Iterable[_Error]) -> Issue:
    errors = list(errors)
    first = errors[0]
    limits = [text for error in errors for text in _allowed(error)]
    if any(error.type in LIMITS for error in errors):
        # the types are right: only the limits of the numbers matter
        limits = [text for error in errors if error.type not in _TYPES for text in _allowed(error)]
    message = f"got {quoted(first.value)}; must be {' or '.join(dict.fromkeys(limits))}"
    return Issue(first.place, message, _mend(errors))


def _allowed(error: _Error) -> Iterator[str]:
    context = error.context
    if error.type in _TYPES:
        yield _TYPES[error.type]
    elif error.type in LIMITS:
        text, key = LIMITS[error.type]
        yield text.format(**{key: context[key]})
    elif error.type == "literal_error":
        yield str(context["expected"])
    elif error.type == "too_short":
        least = context["min_length"]
        yield "at least one" if least == 1 else f"at least {least} items"
    elif error.type == "too_long":
        yield f"at most {context['max_length']} items"
    elif error.type == "string_pattern_mismatch":
        yield _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
    elif error.type == "string_too_short":
        yield "text that is not empty"
    elif error.type == "string_too_long":
        yield f"at most {context['max_length']} characters"
    else:
        yield error.message.removeprefix("Input should be ")


def _mend(errors: Sequence[_Error]) -> str:
    value = errors[0].value
    if isinstance(value, list) and all(error.type == "dict_type" for error in errors):
        return "write `NAME: VALUE` for each"
    if isinstance(value, list) and not any(error.type.startswith("too_") for error in errors):
        return "for several values, write {choice: [...]}"
    if isinstance(value, Mapping):
        guesses = (near(key, (*DOMAINS, "step")) for key in value)
        return next((guess for guess in guesses if guess), "")
    if not isinstance(value, str):
        return ""
    numbers = any(error.type in ("int_type", "float_type") for error in errors)
    if numbers and (fix := _number_mend(value)):
        return fix
    literals = [error.context["expected"] for error in errors if error.type == "literal_error"]
    choices = [
        word.strip("'") for text in literals for word in text.replace(" or ", ", ").split(", ")
    ]
    return near(value, choices)


def _number_mend(text: str) -> str:
    """Fix for a number that was written as text."""
    odd = next((letter for letter in text if not letter.isascii()), "")
    if odd and any(letter.isdigit() for letter in text):
        return f"write plain digits: remove U+{ord(odd):04X}"
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text):
        return "write it without commas"
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        return f"write it with a decimal point: {text.replace(',', '.')}"
    if re.fullmatch(r"[-+]?0\d+", text):
        return "write it without leading zeros"
    try:
        return "write it without quotes" if math.isfinite(float(text)) else ""
    except ValueError:
        return ""


def quoted(value: Json) -> str:
    """Return a value as quoted in a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _noun(place: Place) -> str:
    key = next((step for step in reversed(place) if isinstance(step, str)), "")
    return _NOUNS.get(key, key or "name")
