"""Catalogue of the options of a study, the data of `raykd list` and the options page."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from raykd.data import AUGMENTATIONS, SOURCES
from raykd.errors import Problem, StudyError
from raykd.losses import LOSSES
from raykd.models import MODELS
from raykd.models.proxies import PROXIES
from raykd.registry import OWN, Registry, option_name
from raykd.report.options.fields import Held, Parameter, Reader, shown
from raykd.schemes import SCHEMES
from raykd.study.samplers import SAMPLERS
from raykd.study.schedulers import SCHEDULERS
from raykd.study.space.domains import near
from raykd.train_config import OPTIMIZERS, SCHEDULES

Part = Literal[
    "losses",
    "schemes",
    "models",
    "data",
    "optimizers",
    "schedules",
    "samplers",
    "schedulers",
    "proxies",
    "augmentations",
]

FAMILIES: Mapping[Part, Registry] = {
    "losses": LOSSES,
    "schemes": SCHEMES,
    "models": MODELS,
    "data": SOURCES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "samplers": SAMPLERS,
    "schedulers": SCHEDULERS,
    "proxies": PROXIES,
    "augmentations": AUGMENTATIONS,
}

FACTS: Mapping[Part, Sequence[str]] = {
    "losses": ("knowledge", "default_weight", "weight_source", "default_pairs"),
    "schemes": ("needs_teacher", "takes_knowledge"),
    "samplers": ("several_objectives", "learns", "when"),
    "schedulers": ("several_objectives", "stops_early", "when"),
    "proxies": ("needs_teacher", "takes_text"),
}
"""Class attributes that are shown for each option of a part."""


TOLD_IN_STUDY_FILE = ("Pair", "Teacher", "Term", "Train")
"""Parts of a study whose keys are documented in docs/study-file.md."""


@dataclass(frozen=True)
class Entry:
    """One option of one part.

    Attributes:
        noun: its kind: "loss", "scheme", ...
        summary: the first sentence of its documentation.
        details: the paragraphs after the summary.
        package: its origin: "raykd", or another package with its version.
        facts: other attributes to show, by name.
    """

    part: Part
    noun: str
    name: str
    summary: str
    details: str
    paper: str
    package: str = OWN
    parameters: tuple[Parameter, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labelled(self) -> dict[str, str]:
        """Attributes of the option other than its parameters, as text by label."""
        package = "" if self.package == OWN else self.package
        held = {"paper": self.paper, **self.facts, "package": package}
        return {name.replace("_", " "): _said(value) for name, value in held.items() if value != ""}

    @property
    def paragraphs(self) -> list[str]:
        """Paragraphs of the details, one line each; lists and indented text are unchanged."""
        found = [text for text in self.details.split("\n\n") if text.strip()]
        return [text if _is_laid_out(text) else " ".join(text.split()) for text in found]

    @property
    def held(self) -> list[Held]:
        """Nested mappings and options not documented elsewhere, each once, outer before inner."""
        found: dict[str, Held] = {}
        todo = [held for one in self.parameters for held in one.type.held]
        while todo:
            held = todo.pop(0)
            if held.name not in found:
                found[held.name] = held
                todo += [inner for one in held.parameters for inner in one.type.held]
        return list(found.values())

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {
            "part": self.part,
            "name": self.name,
            "summary": self.summary,
            "details": self.details,
            "paper": self.paper,
            **self.facts,
            "package": self.package,
            "parameters": [parameter.plain() for parameter in self.parameters],
        }


PARTS: tuple[Part, ...] = get_args(Part)


def chosen(part: str | None = None, name: str | None = None) -> dict[Part, list[Entry]]:
    """Return the options of all parts, of one part, or the option of a part with a given name.

    Raises:
        StudyError: there is no such part or option (similar names are suggested), or two options
            have the same name.
    """
    parts: list[Part] = [known for known in PARTS if part is None or part == known]
    if not parts:
        raise StudyError(_no_part(part))
    if name is not None:
        return {parts[0]: [entry(parts[0], name)]}
    return {known: entries(known) for known in parts}


def _no_part(word: str | None) -> Problem:
    named = [part for part in PARTS for one in entries(part) if one.name == word]
    fix = f"raykd list {named[0]} {word}" if named else near(word, PARTS)
    return Problem(f"unknown part {word!r}; must be one of {', '.join(PARTS)}", fix=fix)


def entries(part: Part) -> list[Entry]:
    """Return all options of a part, those of raykd first.

    Raises:
        StudyError: two options have the same name.
    """
    family = FAMILIES[part]
    options = {**family.members, **family.forms}
    origins = family.origins
    return [_entry(part, family.noun, cls, origins[name]) for name, cls in options.items()]


def entry(part: Part, name: str) -> Entry:
    """Return the option with the given name.

    Raises:
        StudyError: there is no such option; similar names are suggested.
    """
    found = entries(part)
    for one in found:
        if one.name == name:
            return one
    names = [one.name for one in found]
    message = f"unknown {found[0].noun} {name!r}; must be one of {', '.join(sorted(names))}"
    raise StudyError(Problem(message, fix=near(name, names)))


def _entry(part: Part, noun: str, cls: type, package: str) -> Entry:
    summary, _, details = _documentation(cls).partition("\n\n")
    return Entry(
        part,
        noun,
        option_name(cls),
        " ".join(summary.split()),
        details.strip(),
        getattr(cls, "paper", ""),
        package,
        tuple(_parameters(cls)),
        {fact: getattr(cls, fact, "") for fact in FACTS.get(part, ())},
    )


def _documentation(cls: type) -> str:
    """Return the docstring of a class, or an empty string if `dataclass` generated it."""
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else text


def _parameters(cls: type) -> Iterator[Parameter]:
    schema = TypeAdapter(cls).json_schema()
    families = FAMILIES.values()
    options = {family.noun: {**family.members, **family.forms} for family in families}
    nouns = {frozenset(named): noun for noun, named in options.items()}
    told = {cls.__name__ for named in options.values() for cls in named.values()}
    made = {
        held.name: TypeAdapter(Any).dump_python(held.default_factory(), mode="json")
        for held in dataclasses.fields(cls)
        if held.default_factory is not dataclasses.MISSING
    }
    for one in Reader(schema, nouns, told | {*TOLD_IN_STUDY_FILE}).parameters():
        if one.name in made:  # a default from a factory is not in the schema
            yield dataclasses.replace(one, default=made[one.name], brief=made[one.name])
        else:
            yield one


def _said(fact: Any) -> str:
    return ("no", "yes")[fact] if isinstance(fact, bool) else shown(fact)


def _is_laid_out(text: str) -> bool:
    return any(line.startswith((" ", "-", "*", "|")) for line in text.splitlines())
