"""Immutable mapping as a value of an option."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)


class FrozenMapping(Mapping[str, T_co]):
    """Base class of immutable, hashable mappings of hashable values, in the order given.

    Args:
        values: by key.
    """

    def __init__(self, values: Mapping[str, T_co]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> T_co:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self.plain())

    @abstractmethod
    def plain(self) -> dict[str, object]:
        """Return the values as lists and dictionaries."""
