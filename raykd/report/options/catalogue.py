"""Catalogue of the options of a study, the data of `raykd list` and the options page."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from raykd.arguments import near
from raykd.compat.packages import launcher
from raykd.data import AUGMENTATIONS, SOURCES
from raykd.errors import Problem, StudyError
from raykd.losses import LOSSES
from raykd.models import MODELS
from raykd.models.adapters import models_of_libraries
from raykd.models.proxies import PROXIES
from raykd.registry import BUILT_IN, Registry, option_name
from raykd.report.options.fields import NestedOption, Parameter, Reader, yaml_text
from raykd.schemes import SCHEMES
from raykd.study.samplers import SAMPLERS
from raykd.study.schedulers import SCHEDULERS
from raykd.tasks import TASKS
from raykd.train_config import OPTIMIZERS, SCHEDULES

Part = Literal[
    "tasks",
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
    "tasks": TASKS,
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
    "tasks": ("kind", "train_metric"),
    "losses": ("knowledge", "kinds", "default_weight", "weight_source", "default_pairs"),
    "schemes": ("kinds", "needs_teacher", "takes_knowledge"),
    "samplers": ("several_objectives", "learns", "when"),
    "schedulers": ("several_objectives", "stops_early", "when"),
    "proxies": ("needs_teacher", "takes_text"),
}
"""Class attributes that are shown for each option of a part."""


IN_STUDY_FILE_PAGE = ("Pair", "Teacher", "Term", "Train")
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
    package: str = BUILT_IN
    parameters: tuple[Parameter, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labeled(self) -> dict[str, str]:
        """Attributes of the option other than its parameters, as text by label."""
        package = "" if self.package == BUILT_IN else self.package
        facts = {"paper": self.paper, **self.facts, "package": package}
        return {
            name.replace("_", " "): _fact_text(value)
            for name, value in facts.items()
            if value != ""
        }

    @property
    def paragraphs(self) -> list[str]:
        """Paragraphs of the details, one line each; lists and indented text are unchanged."""
        paragraphs = [text for text in self.details.split("\n\n") if text.strip()]
        return [text if _is_laid_out(text) else " ".join(text.split()) for text in paragraphs]

    @property
    def nested(self) -> list[NestedOption]:
        """Nested mappings and options not documented elsewhere, each once, outer before inner."""
        options: dict[str, NestedOption] = {}
        todo = [nested for parameter in self.parameters for nested in parameter.type.nested]
        while todo:
            nested = todo.pop(0)
            if nested.name not in options:
                options[nested.name] = nested
                todo += [
                    inner for parameter in nested.parameters for inner in parameter.type.nested
                ]
        return list(options.values())

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


def find_entries(part: str | None = None, name: str | None = None) -> dict[Part, list[Entry]]:
    """Return the options of all parts, of one part, or the option of a part with a given name.

    Raises:
        StudyError: there is no such part or option (similar names are suggested), or two options
            have the same name.
    """
    parts: list[Part] = [each for each in PARTS if part is None or part == each]
    if not parts:
        raise StudyError(_no_part(part))
    if name is not None:
        return {parts[0]: [find_entry(parts[0], name)]}
    return {each: list_entries(each) for each in parts}


def _no_part(word: str | None) -> Problem:
    matching = [part for part in PARTS for cls, _ in _listed(part) if option_name(cls) == word]
    fix = f"{launcher()}raykd list {matching[0]} {word}" if matching else near(word, PARTS)
    return Problem(f"unknown part {word!r}; must be one of {', '.join(PARTS)}", fix=fix)


def list_entries(part: Part) -> list[Entry]:
    """Return all options of a part, those of raykd first; without the user code of a study.

    Raises:
        StudyError: two options have the same name.
    """
    noun = FAMILIES[part].noun
    return [_entry(part, noun, cls, package) for cls, package in _listed(part)]


def _listed(part: Part) -> Iterator[tuple[type, str]]:
    """Yield the options of a part, without the user code of a study, each with its package."""
    family = FAMILIES[part]
    origins = family.origins
    for name, cls in {**family.members, **family.forms}.items():
        if name in origins:
            yield cls, origins[name]


def find_entry(part: Part, name: str) -> Entry:
    """Return the option with the given name.

    Raises:
        StudyError: there is no such option; similar names are suggested.
    """
    noun = FAMILIES[part].noun
    for cls, package in _listed(part):
        if option_name(cls) == name:
            return _entry(part, noun, cls, package)
    names = [option_name(cls) for cls, _ in _listed(part)]
    message = f"unknown {noun} {name!r}; must be one of {', '.join(sorted(names))}"
    same = models_of_libraries(name) if part == "models" else []
    fix = f"{' or '.join(same)} is a model of another library" if same else near(name, names)
    raise StudyError(Problem(message, fix=fix))


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
    documented = {cls.__name__ for named in options.values() for cls in named.values()}
    defaults = {
        field_.name: TypeAdapter(Any).dump_python(field_.default_factory(), mode="json")
        for field_ in dataclasses.fields(cls)
        if field_.default_factory is not dataclasses.MISSING
    }
    for parameter in Reader(schema, nouns, documented | {*IN_STUDY_FILE_PAGE}).parameters():
        if parameter.name in defaults:  # a default from a factory is not in the schema
            yield dataclasses.replace(
                parameter, default=defaults[parameter.name], brief=defaults[parameter.name]
            )
        else:
            yield parameter


def _fact_text(fact: Any) -> str:
    if isinstance(fact, bool):
        return ("no", "yes")[fact]
    return ", ".join(fact) if isinstance(fact, tuple) else yaml_text(fact)


def _is_laid_out(text: str) -> bool:
    return any(line.startswith((" ", "-", "*", "|")) for line in text.splitlines())
