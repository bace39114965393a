"""Which parts of a study hang on others, so that nothing is drawn that could not matter.

A term without a loss needs no weight and no pairs, a loss on logits no pairs, and a scheme that
takes no knowledge no terms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from raykd.losses import LOSSES
from raykd.schemes import SCHEMES
from raykd.study.yaml_file import Place


@dataclass(frozen=True)
class Gate:
    """Keys of a mapping that are drawn only for some values of another.

    Attributes:
        on: the key whose value decides.
        keys: the keys that hang on it.
        closes: value of `on` -> the keys that are not drawn, or None for all of them.
    """

    on: str
    keys: frozenset[str]
    closes: Callable[[Any], frozenset[str] | None]

    def opens(self, value: Any) -> frozenset[str]:
        """Those of `keys` that are drawn for this value of `on`."""
        closed = self.closes(value)
        return frozenset() if closed is None else self.keys - closed


def gate_of(place: Place, keys: Collection[str], open_keys: Collection[str]) -> Gate | None:
    """The gate of the mapping at `place`; None where nothing hangs on anything.

    Args:
        place: of the mapping, in the concrete study.
        keys: the mapping's keys.
        open_keys: those whose values hold domains.

    What a study writes out without a domain in sight is never dropped: pairs given to a loss on
    logits are a mistake to be told.
    """
    if not place and {"scheme", "knowledge"} <= set(keys) and "scheme" in open_keys:
        return Gate("scheme", frozenset({"knowledge"}), closed_by_scheme)
    if place[:1] == ("knowledge",) and len(place) == 2 and "loss" in keys:
        hanging = set(open_keys) - {"loss"}
        if "loss" in open_keys and "pairs" in keys:
            hanging.add("pairs")
        return Gate("loss", frozenset(hanging), closed_by_loss) if hanging else None
    return None


def closed_by_scheme(scheme: Any) -> frozenset[str] | None:
    cls = SCHEMES.members.get(name_of(scheme))
    return frozenset() if cls is None or getattr(cls, "takes_knowledge", True) else None


def closed_by_loss(loss: Any) -> frozenset[str] | None:
    if loss is None:
        return None
    cls = LOSSES.members.get(name_of(loss))
    takes = cls is None or getattr(cls, "takes_pairs", True)
    return frozenset() if takes else frozenset({"pairs"})


def name_of(value: Any) -> str:
    """The name of an option written as a mapping or as its bare name; empty where it has none."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else ""
