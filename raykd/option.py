"""Options: the named, typed values a study file may hold.

Every loss, scheme, model, data source, optimiser ... is one frozen dataclass whose fields are
its configuration.  A `Family` is the closed union of the options that may stand at one place of
a study; the union is the registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar, Union, dataclass_transform

from pydantic import ConfigDict, Field

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that refuses keys it does not know."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def option_name(cls: type) -> str:
    """The `name` under which a study file asks for this option."""
    for field in dataclasses.fields(cls):
        if field.name == "name" and isinstance(field.default, str):
            return field.default
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no `name: Literal[...] = ...` field")


class Family:
    """The options that may stand at one place of a study, by name.

    Args:
        noun: what an option is called in messages ("loss", "scheme", ...).
        members: raykd's own options.
        group: the entry-point group through which other packages add theirs; each entry point
            names one option class.

    Raises:
        ValueError: two options bear the same name.
    """

    def __init__(self, noun: str, members: Sequence[type], group: str) -> None:
        self.noun = noun
        self.group = group
        self._own = tuple(members)

    @cached_property
    def members(self) -> dict[str, type]:
        """Option classes by name, raykd's own first."""
        found: dict[str, type] = {}
        plugins = [point.load() for point in sorted(entry_points(group=self.group))]
        for cls in (*self._own, *plugins):
            name = option_name(cls)
            if name in found and found[name] is not cls:
                raise ValueError(
                    f"two {self.noun} options are called {name!r}: "
                    f"{found[name].__module__}.{found[name].__qualname__} and "
                    f"{cls.__module__}.{cls.__qualname__}; rename one of them"
                )
            found[name] = cls
        return found

    def __iter__(self) -> Iterator[type]:
        return iter(self.members.values())

    def __getitem__(self, name: str) -> type:
        return self.members[name]

    @cached_property
    def annotation(self) -> Any:
        """The type to put on a dataclass field: a union discriminated by `name`."""
        members = tuple(self.members.values())
        if len(members) == 1:
            return members[0]
        return Annotated[Union[members], Field(discriminator="name")]  # noqa: UP007
