"""Named inputs of the samples of a data source, as a value of an option."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)

NAME = re.compile(r"\w[\w .+-]{0,63}")
"""Names of inputs: they become parts of file names."""


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

    @property
    def wrong_name(self) -> str:
        """Reason why a name cannot be used; "" if all can."""
        wrong = next((name for name in self if not NAME.fullmatch(name)), None)
        if wrong is None:
            return ""
        return (
            f"{wrong[:80]!r} is no name of an input in `inputs`; begin with a letter or digit, "
            "and use letters, digits, spaces and the characters _ . + -, at most 64"
        )

    def plain(self) -> dict[str, object]:
        """Return the inputs as lists and dictionaries."""
        raise NotImplementedError
