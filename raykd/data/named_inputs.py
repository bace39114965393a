"""Named inputs of the samples of a data source, as a value of an option."""

from __future__ import annotations

import re
from typing import TypeVar

from raykd.frozen_mapping import FrozenMapping

T_co = TypeVar("T_co", covariant=True)

NAME = re.compile(r"\w[\w .+-]{0,63}")
"""Names of inputs: they become parts of file names."""


class NamedInputs(FrozenMapping[T_co]):
    """Base class of inputs by name, in the order of the study file."""

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
