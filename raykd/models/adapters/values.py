"""Keyword arguments for other libraries, from a study file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, GetCoreSchemaHandler, PlainSerializer


class Values(Mapping[str, object]):
    """An immutable, hashable mapping of scalars, lists and mappings."""

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        self._values = {key: _frozen(value) for key, value in (values or {}).items()}

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self.plain())

    def plain(self) -> dict[str, object]:
        """Return the values as dictionaries and lists."""
        return {key: _plain(value) for key, value in self._values.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> object:
        values = Annotated[dict[str, object], AfterValidator(cls), PlainSerializer(cls.plain)]
        return handler.generate_schema(values)


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return Values(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: object) -> object:
    if isinstance(value, Values):
        return value.plain()
    return list(map(_plain, value)) if isinstance(value, tuple) else value
