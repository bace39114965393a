"""Keyword arguments for other libraries, as a study file writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler, PlainSerializer


class Values(Mapping[str, Any]):
    """A mapping of scalars, lists and mappings that never changes, so that it can be hashed."""

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._held = {key: _frozen(value) for key, value in (given or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __hash__(self) -> int:
        return hash(frozenset(self._held.items()))

    def __repr__(self) -> str:
        return repr(self.plain())

    def plain(self) -> dict[str, Any]:
        """The same as dictionaries and lists."""
        return {key: _plain(value) for key, value in self._held.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        held = Annotated[dict[str, Any], AfterValidator(cls), PlainSerializer(cls.plain)]
        return handler.generate_schema(held)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Values(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Values):
        return value.plain()
    return list(map(_plain, value)) if isinstance(value, tuple) else value
