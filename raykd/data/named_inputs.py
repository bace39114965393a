"""Named inputs of the samples of a data source, as a value of an option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)


class NamedInputs(Mapping[str, T_co]):
    """An immutable, hashable mapping of names to inputs, in the order of the study file.

    Args:
        inputs: by name.
    """

    def __init__(self, inputs: Mapping[str, T_co]) -> None:
        self._inputs = dict(inputs)

    def __getitem__(self, name: str) -> T_co:
        return self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def __hash__(self) -> int:
        return hash(frozenset(self._inputs.items()))

    def __repr__(self) -> str:
        return repr(self.plain())

    def plain(self) -> dict[str, object]:
        """Return the inputs as lists and dictionaries."""
        raise NotImplementedError
