"""An arm of a layer study, as plain data: read back without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raykd.study.pairings import LayerPair

Kind = Literal["none", "pair", "forward", "reverse", "random", "all_to_one", "semckd", "set"]
Pairs = tuple[LayerPair, ...]

NONE = "none"
"""The arm without hint, with which all others are compared."""


@dataclass(frozen=True)
class Arm:
    """One way of pairing, trained once under every seed.

    Attributes:
        id: "none", "stage1-to-stage2", "forward", "set-1" ...
        kind: what sort it is.
        pairs: its pairs; one entry where they are the same under every seed, else one a seed.
        why_not: why it is not trained; empty where it is.
    """

    id: str
    kind: Kind
    pairs: tuple[Pairs, ...] = ((),)
    why_not: str = ""

    def pairs_under(self, number: int) -> Pairs:
        """Its pairs under the seed of that number, counted from 0."""
        return self.pairs[number % len(self.pairs)]

    @property
    def is_one_set(self) -> bool:
        """Whether it is one set of pairs, compared by the study's own loss: one that can win."""
        return self.kind not in ("none", "random", "semckd") and not self.why_not

    def plain(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "pairs": [[[pair.hint, pair.guided] for pair in pairs] for pairs in self.pairs],
            "why_not": self.why_not,
        }

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Arm:
        pairs = tuple(tuple(LayerPair(h, g) for h, g in one) for one in told["pairs"])
        return cls(told["id"], told["kind"], pairs, told["why_not"])
