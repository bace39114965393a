"""Options: the named, typed values of a study.

Every loss, scheme, model, data source, optimizer ... is one frozen dataclass whose fields are
its configuration.  A `Registry` holds the options that one key of a study file accepts.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, TypeVar, Union, dataclass_transform

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    TypeAdapter,
)

from raykd.arguments import checked
from raykd.errors import Problem, StudyError

T = TypeVar("T")

BUILT_IN = "raykd"
"""Origin of the options that raykd itself provides."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose values are checked.

    A study file is checked by pydantic.  In Python, `cls(...)` and `dataclasses.replace` check the
    values by the same rules; unpickling and copying do not check again.  If the
    class has a method `conflicts() -> Iterable[Problem]`, Python construction also checks rules
    between fields with it.

    `cls(...)` raises:
        StudyError: a ValueError; names every field that is unknown, missing or out of range, its
            value, and the values that are allowed.
    """
    cls.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", allow_inf_nan=False
    )
    decorated = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    decorated.__init__ = _checking(decorated, decorated.__init__)  # type: ignore[misc]
    return decorated


def replaced_unchecked(option: T, **values: Any) -> T:
    """Return a copy of an option with other values, also with values that a study may not have.

    An example is a search without trials.
    """
    copied = copy.copy(option)
    vars(copied).update(values)
    return copied


def _checking(cls: type, init: Any) -> Any:
    """Return the `__init__` of a dataclass with a check of its arguments."""
    conflicts = getattr(cls, "conflicts", None)
    missing = any(
        field.default is field.default_factory for field in dataclasses.fields(cls) if field.init
    )

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **values: Any) -> None:
        if args:
            raise StudyError(
                Problem(f"got {args[0]!r} without a name; write NAME=VALUE", path=cls.__name__)
            )
        if not values and not missing:  # defaults need no check
            init(self)
            return
        try:
            init(self, **checked(cls, values))
        except StudyError:
            raise
        except ValueError as error:  # a rule of `__post_init__`
            raise StudyError(Problem(str(error), path=cls.__name__)) from None
        problems = [_of(cls, problem) for problem in conflicts(self)] if conflicts else ()
        if problems:
            raise StudyError(problems)

    return checking


def option_name(cls: type) -> str:
    """Return the `name` of an option in a study file."""
    for field in dataclasses.fields(cls):
        if field.name == "name" and isinstance(field.default, str):
            return field.default
    if (names := name_pattern_of(cls)) is not None:
        return names.form
    raise TypeError(f"{_path(cls)} has no `name: Literal[...] = ...` field")


def names_like(form: str, pattern: str) -> Any:
    """Declare the `name` of an option with many names: `name: Annotated[str, names_like(...)]`.

    Args:
        form: form of such a name in messages ("timm/NAME").
        pattern: regular expression of such names; the name of no other option matches it.
    """
    return Field(pattern=pattern, examples=[form])


def _of(cls: type, problem: Problem) -> Problem:
    """Return the problem of a field with the name of its class."""
    path = f"{cls.__name__}.{problem.path}" if problem.path else cls.__name__
    return dataclasses.replace(problem, path=path)


@dataclasses.dataclass(frozen=True)
class NamePattern:
    """Names of an option that has many, as declared by `names_like`."""

    form: str
    pattern: str

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and re.search(self.pattern, name) is not None

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any]) -> NamePattern | None:
        """Read the names of an option from its JSON Schema; None if it has one name."""
        name = schema.get("properties", {}).get("name", {})
        if "pattern" not in name or not name.get("examples"):
            return None
        return cls(name["examples"][0], name["pattern"])


@cache
def name_pattern_of(cls: type) -> NamePattern | None:
    """Return the names of an option that has many; None if it has one."""
    if any(f.name == "name" and f.default is dataclasses.MISSING for f in dataclasses.fields(cls)):
        return NamePattern.from_schema(TypeAdapter(cls).json_schema())
    return None


class Registry:
    """Options that a key of a study file accepts, by name.

    A registry is created empty, next to the base class of its options; the package that holds the
    options adds them.  Other packages add theirs by entry points, which are loaded when the options
    are first looked up, not when raykd is imported: a package may import raykd before raykd imports
    it.  An entry point that cannot be used is skipped, and raykd's logger says so once; only a
    study that names its option fails.

    Args:
        noun: name of one option in messages ("loss", "scheme", ...).
        base: base class of all options.
        entry_points: entry-point group of other packages; each entry point names one option class.

    Class attributes:
        all: all registries.
        version: number of options of user code that were registered; schemas of an older version
            lack some.
    """

    all: ClassVar[list[Registry]] = []
    version: ClassVar[int] = 0

    def __init__(self, noun: str, base: type, entry_points: str) -> None:
        self.noun = noun
        self.base = base
        self.group = entry_points
        self._builtin: tuple[type, ...] = ()
        self._user: dict[str, type] = {}
        self._loading = False
        Registry.all.append(self)

    def add(self, *options: type) -> None:
        """Add option classes of raykd itself, in the order in which they are listed."""
        self._builtin += options
        vars(self).pop("_entries", None)

    def add_user_option(self, name: str, cls: type) -> None:
        """Add an option of user code (`raykd.user_code`), or replace the one of this name."""
        self._user[name] = cls
        Registry.version += 1

    @property
    def members(self) -> dict[str, type]:
        """Option classes that have one name, by it; raykd's own first.

        Raises:
            StudyError: a ValueError; two options have the same name.
        """
        return {name: cls for name, cls in self._classes.items() if name_pattern_of(cls) is None}

    @property
    def forms(self) -> dict[str, type]:
        """Option classes that have many names, by the form of these ("timm/NAME")."""
        return {
            form: cls for form, cls in self._classes.items() if name_pattern_of(cls) is not None
        }

    def find(self, name: str) -> type | None:
        """Return the option of this name, or None."""
        return self._classes.get(self._tag_of(name))

    @property
    def origins(self) -> dict[str, str]:
        """Package of each option: "raykd", or another package with its version."""
        return {name: origin for name, (_, origin) in self._entries.items()}

    def __iter__(self) -> Iterator[type]:
        return iter(self.members.values())

    def __getitem__(self, name: str) -> type:
        """Return the option of this name.

        Raises:
            KeyError: there is none.
        """
        return self._classes[self._tag_of(name)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Build the schema of the union of all options, when pydantic first reads a study.

        `Annotated[Loss, LOSSES]` is the type of a field that holds one of `LOSSES`.
        """
        members = tuple(self)
        if len(members) == len(self._classes) == 1:
            return handler.generate_schema(members[0])
        if not self.forms:
            return handler.generate_schema(Annotated[Union[members], Field(discriminator="name")])  # noqa: UP007
        tagged = tuple(Annotated[cls, Tag(tag)] for tag, cls in self._classes.items())
        return handler.generate_schema(Annotated[Union[tagged], Discriminator(self._tag)])  # noqa: UP007

    @property
    def _classes(self) -> dict[str, type]:
        """Every option, by its name or by the form of its names."""
        if self._loading:  # a package that is being loaded looks up an option
            return {option_name(cls): cls for cls in self._builtin}
        return {name: cls for name, (cls, _) in self._entries.items()} | self._user

    def _tag(self, value: Any) -> str | None:
        """Return the tag of the member of the union that `value` belongs to."""
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        return None if name is None else self._tag_of(name)

    def _tag_of(self, name: Any) -> str:
        if name in self._user:
            return name
        forms = (form for form, cls in self.forms.items() if name in (name_pattern_of(cls) or ()))
        return next(forms, str(name))

    @cached_property
    def _entries(self) -> dict[str, tuple[type, str]]:
        """(class, package) of every option, by its name or by the form of its names."""
        entries: dict[str, tuple[type, str]] = {}
        for cls, origin in (*((cls, BUILT_IN) for cls in self._builtin), *self._plugins()):
            name = option_name(cls)
            first, first_origin = entries.setdefault(name, (cls, origin))
            if first is not cls:
                raise StudyError(
                    Problem(
                        f"two {self.noun} options are called {name!r}: {_path(first)} of "
                        f"{first_origin} and {_path(cls)} of {origin}",
                        fix=f"rename one of them, or uninstall {origin}",
                    )
                )
        return entries

    def _plugins(self) -> Iterator[tuple[type, str]]:
        self._loading = True
        try:
            for point in sorted(entry_points(group=self.group)):
                try:
                    yield self._load(point), _origin(point)
                except _UnusableOption as reason:
                    logging.getLogger(BUILT_IN).warning(
                        "raykd ignores the %s that %s provides as %s (entry point %s = %s): "
                        "%s\n    -> fix %s, or uninstall it",
                        *(self.noun, _origin(point), point.name, self.group, point.value),
                        *(reason, _origin(point)),
                    )
        finally:
            self._loading = False

    def _load(self, point: EntryPoint) -> type:
        try:
            cls = point.load()
        except (Exception, SystemExit) as error:  # the code of others may raise anything
            raise _UnusableOption(
                f"it cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(cls, type) or "__dataclass_fields__" not in vars(cls):
            raise _UnusableOption(
                f"{cls!r} is no option; it must name a class with @option above it"
            )
        if not issubclass(cls, self.base):
            raise _UnusableOption(
                f"{_path(cls)} is no {self.noun}; derive it from {_path(self.base)}"
            )
        try:
            option_name(cls)
            TypeAdapter(cls).json_schema()
        except Exception as error:  # pydantic's errors have no common base
            raise _UnusableOption(f"its fields cannot be read from a study: {error}") from error
        return cls


class _UnusableOption(Exception):
    """Reason why an entry point provides no option."""


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a package"
