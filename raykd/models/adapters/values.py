"""Keyword arguments for other libraries, from a study file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, GetCoreSchemaHandler, PlainSerializer

from raykd.frozen_mapping import FrozenMapping


class Values(FrozenMapping[object]):
    """An immutable, hashable mapping of scalars, lists and mappings."""

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        super().__init__({key: _frozen(value) for key, value in (values or {}).items()})

    def plain(self) -> dict[str, object]:
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
