"""Conditional keys: parts of a study that are drawn only for some values of another key.

A term without a loss needs no weight and no pairs, a loss on logits no pairs, and a scheme without
knowledge no terms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from raykd.losses import LOSSES
from raykd.schemes import SCHEMES
from raykd.study.yaml_file import Json, Place


@dataclass(frozen=True)
class Condition:
    """Keys of a mapping that are drawn only for some values of another key (the parent).

    Attributes:
        parent: the key whose value decides.
        keys: the conditional keys.
        inactive: value of the parent -> the keys that are not drawn, or None for all of them.
    """

    parent: str
    keys: frozenset[str]
    inactive: Callable[[Json], frozenset[str] | None]

    def active(self, value: Json) -> frozenset[str]:
        """The conditional keys that are drawn for this value of the parent."""
        inactive = self.inactive(value)
        return frozenset() if inactive is None else self.keys - inactive


def condition_at(
    place: Place, keys: Collection[str], open_keys: Collection[str]
) -> Condition | None:
    """The condition of the mapping at `place`; None if no key is conditional.

    Keys without a domain are never conditional on a fixed parent: pairs of a loss on logits are an
    error to report.

    Args:
        place: of the mapping, in the concrete study.
        keys: the mapping's keys.
        open_keys: the keys whose values contain domains.
    """
    if not place and {"scheme", "knowledge"} <= set(keys) and "scheme" in open_keys:
        return Condition("scheme", frozenset({"knowledge"}), _inactive_under_scheme)
    if place[:1] == ("knowledge",) and len(place) == 2 and "loss" in keys:
        conditional = set(open_keys) - {"loss"}
        if "loss" in open_keys and "pairs" in keys:
            conditional.add("pairs")
        if conditional:
            return Condition("loss", frozenset(conditional), _inactive_under_loss)
    return None


def _inactive_under_scheme(scheme: Json) -> frozenset[str] | None:
    cls = SCHEMES.members.get(name_of(scheme))
    return frozenset() if cls is None or getattr(cls, "takes_knowledge", True) else None


def _inactive_under_loss(loss: Json) -> frozenset[str] | None:
    if loss is None:
        return None
    cls = LOSSES.members.get(name_of(loss))
    takes = cls is None or getattr(cls, "takes_pairs", True)
    return frozenset() if takes else frozenset({"pairs"})


def name_of(value: Json) -> str:
    """The name of an option written as a mapping or as its bare name; "" if it has none."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else ""
