"""What pydantic finds wrong with a study, in plain sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from raykd.arguments import LIMITS
from raykd.models import MODELS
from raykd.registry import names_of
from raykd.study.config import NAME_PATTERN, REGISTER_PATTERN, Study, read_study
from raykd.study.json_schema import study_outline
from raykd.study.space.domains import DOMAINS, near
from raykd.study.yaml_file import Place, dotted, value_at

_NOUNS = {
    "augment": "augmentation",
    "data": "data source",
    "loss": "loss",
    "model": "model",
    "optimizer": "optimizer",
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
class Finding:
    """Something wrong at one place of a concrete study."""

    place: Place
    message: str
    fix: str = ""

    def __str__(self) -> str:
        path = dotted(self.place)
        return f"{path}: {self.message}" if path else self.message


class InvalidStudy(ValueError):
    """Plain data that are no valid study.

    Attributes:
        findings: one for each faulty place.
        data: what was validated, bare names written out.
    """

    def __init__(self, findings: Sequence[Finding], data: Any) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = findings
        self.data = data


def parse_study(data: Mapping[str, Any]) -> Study:
    """The concrete study that plain data describe; bare names of options are allowed.

    Raises:
        InvalidStudy: with all that is wrong.
    """
    expanded = study_outline().expanded(data)
    try:
        return read_study(expanded)
    except ValidationError as error:
        raise InvalidStudy(complaints(error, expanded), expanded) from None


@dataclass(frozen=True)
class _Fault:
    """One of pydantic's errors, with its place in the data."""

    type: str
    place: Place
    found: Any
    context: Mapping[str, Any]
    message: str


def complaints(error: ValidationError, data: Any) -> list[Finding]:
    """One finding a place; `data` is what was validated."""
    errors = error.errors(include_url=False)
    faults = [
        _Fault(
            found["type"],
            _place(found["loc"], data, may_be_new=found["type"] in _NEW_KEYS),
            found.get("input"),
            found.get("ctx") or {},
            found["msg"],
        )
        for found in errors
    ]
    faults = [fault for fault in faults if not _is_misspelt_elsewhere(fault, faults)]
    faults = [fault for fault in faults if not _is_short_of_the_faulty(fault, faults)]
    by_place = groupby(sorted(faults, key=_sort_key), key=_sort_key)
    return [_finding(list(found), data) for _, found in by_place]


_NEW_KEYS = ("missing", "unexpected_keyword_argument", "extra_forbidden")


def _is_short_of_the_faulty(fault: _Fault, faults: Sequence[_Fault]) -> bool:
    """Whether a list is called too short only because items in it are faulty themselves."""
    length = len(fault.place)
    within = (other.place for other in faults if len(other.place) > length)
    return fault.type == "too_short" and any(place[:length] == fault.place for place in within)


def _is_misspelt_elsewhere(fault: _Fault, faults: Sequence[_Fault]) -> bool:
    """Whether a key is missing because an unknown one beside it was meant."""
    if fault.type != "missing" or not isinstance(fault.place[-1], str):
        return False
    strange = [
        str(other.place[-1])
        for other in faults
        if other.type == "unexpected_keyword_argument" and other.place[:-1] == fault.place[:-1]
    ]
    return bool(near(fault.place[-1], strange))


def _sort_key(fault: _Fault) -> tuple[tuple[int, str], ...]:
    steps = fault.place
    return tuple((step, "") if isinstance(step, int) else (-1, step) for step in steps)


def _place(loc: Sequence[str | int], data: Any, *, may_be_new: bool) -> Place:
    """Pydantic's location without what is no key of the data: options' names, unions' members."""
    place: list[str | int] = []
    value, past_name = data, False
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        chosen_by = value.get("name") if isinstance(value, Mapping) and place else None
        if not past_name and _names_option(step, chosen_by):
            past_name = True
        elif isinstance(value, Mapping) and (step in value or (last and may_be_new)):
            place.append(step)
            value, past_name = value.get(step), False
        elif isinstance(value, list) and isinstance(step, int):
            place.append(step)
            value, past_name = (value[step] if step < len(value) else None), False
        elif place and step == place[-1] and not last:
            continue  # a union of a name and values, tagged with its own key
        else:
            break
    return tuple(place)


def _names_option(step: str | int, name: Any) -> bool:
    """Whether pydantic says by this step which option was chosen: its name, or its names' form."""
    cls = MODELS.forms.get(step) if isinstance(step, str) else None
    names = names_of(cls) if cls is not None else None
    return name is not None and (name == step or (names is not None and name in names))


def _finding(faults: list[_Fault], data: Any) -> Finding:
    first = faults[0]
    if first.type == "missing":
        return _missing(first, data)
    if first.type in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown_key(first, data)
    if first.type == "union_tag_not_found" and not isinstance(first.found, Mapping):
        return _unknown_name(first.place, None, data, f"got {shown(first.found)}")
    if first.type in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_name(first.place, first.context.get("tag"), data)
    if first.type == "literal_error" and len(first.place) > 1 and first.place[-1] == "name":
        return _unknown_name(first.place[:-1], first.found, data)
    if first.type in ("value_error", "assertion_error"):
        return Finding(first.place, first.message.split(", ", 1)[-1])
    if first.type == "literal_error" and first.found != value_at(data, first.place):
        return _unknown_key(first, data)
    if _takes_options(first, data):
        names = study_outline().names(data, first.place)
        return _unknown_name(first.place, None, data, f"got {shown(first.found)}", names)
    return _wrong_value(faults)


def _missing(fault: _Fault, data: Any) -> Finding:
    *parent, key = fault.place
    if isinstance(key, int):
        return Finding(tuple(parent), f"too short: item {key + 1} is missing")
    return Finding(tuple(parent), f"`{key}` is missing")


def _unknown_key(fault: _Fault, data: Any) -> Finding:
    *parent, key = fault.place
    keys = study_outline().keys(data, tuple(parent))
    here = dotted(parent)
    held = value_at(data, tuple(parent))
    name = held.get("name") if parent and isinstance(held, Mapping) else None
    called = f"{_noun(tuple(parent))} '{name}'" if isinstance(name, str) else here or "a study"
    what = f"unknown key `{key}`; {called} has {', '.join(keys)}"
    return Finding((*parent, key), what, near(key, keys))


def _unknown_name(
    place: Place,
    name: Any,
    data: Any,
    found: str = "",
    names: Sequence[str] = (),
) -> Finding:
    names = names or study_outline().names(data, place)
    noun = _noun(place)
    if name is None:
        fix = f"write {{name: {names[0]}, ...}}" if names else ""
        found = found or "`name` is missing"
        return Finding(place, f"{found}; `name` must be one of {', '.join(sorted(names))}", fix)
    message = f"unknown {noun} {shown(name)}; must be one of {', '.join(sorted(names))}"
    return Finding((*place, "name"), message, near(name, names))


def _takes_options(fault: _Fault, data: Any) -> bool:
    if fault.type not in ("dict_type", "dataclass_type"):
        return False
    return bool(study_outline().names(data, fault.place))


def _wrong_value(faults: Iterable[_Fault]) -> Finding:
    faults = list(faults)
    first = faults[0]
    limits = [text for fault in faults for text in _allowed(fault)]
    if any(fault.type in LIMITS for fault in faults):
        # the types are right, so what is left to say of the numbers is their limit
        limits = [text for fault in faults if fault.type not in _TYPES for text in _allowed(fault)]
    what = f"got {shown(first.found)}; must be {' or '.join(dict.fromkeys(limits))}"
    return Finding(first.place, what, _mend(faults))


def _allowed(fault: _Fault) -> Iterator[str]:
    context = fault.context
    if fault.type in _TYPES:
        yield _TYPES[fault.type]
    elif fault.type in LIMITS:
        text, key = LIMITS[fault.type]
        yield text.format(**{key: context[key]})
    elif fault.type == "literal_error":
        yield str(context["expected"])
    elif fault.type == "too_short":
        least = context["min_length"]
        yield "at least one" if least == 1 else f"at least {least} items"
    elif fault.type == "too_long":
        yield f"at most {context['max_length']} items"
    elif fault.type == "string_pattern_mismatch":
        yield _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
    elif fault.type == "string_too_long":
        yield f"at most {context['max_length']} characters"
    else:
        yield fault.message.removeprefix("Input should be ")


def _mend(faults: Sequence[_Fault]) -> str:
    found = faults[0].found
    if isinstance(found, list) and not any(fault.type.startswith("too_") for fault in faults):
        return "to try several values, write {choice: [...]}"
    if isinstance(found, Mapping):
        guesses = (near(key, (*DOMAINS, "step")) for key in found)
        return next((guess for guess in guesses if guess), "")
    if not isinstance(found, str):
        return ""
    numbers = any(fault.type in ("int_type", "float_type") for fault in faults)
    if numbers and (fix := _number_mend(found)):
        return fix
    literals = [fault.context["expected"] for fault in faults if fault.type == "literal_error"]
    known = [
        word.strip("'") for text in literals for word in text.replace(" or ", ", ").split(", ")
    ]
    return near(found, known)


def _number_mend(text: str) -> str:
    """How to write a number that was written as text."""
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


def shown(value: Any) -> str:
    """A value as a message quotes it."""
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
