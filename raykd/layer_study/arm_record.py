"""Arm of a layer study, as plain data, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raykd.study.space.pairing import LayerPair

Kind = Literal["none", "pair", "forward", "reverse", "random", "all_to_one", "semckd", "set"]
Pairs = tuple[LayerPair, ...]

NONE = "none"
"""Baseline arm without hint, with which all others are compared."""


@dataclass(frozen=True)
class Arm:
    """One way of pairing, trained once under every seed.

    Attributes:
        id: "none", "stage1-to-stage2", "forward", "set-1" ...
        kind: of pairing.
        pairs: one entry if the pairs are the same under every seed, else one entry per seed.
        why_not: reason why it is not trained; "" if it is.
    """

    id: str
    kind: Kind
    pairs: tuple[Pairs, ...] = ((),)
    why_not: str = ""

    def pairs_under(self, number: int) -> Pairs:
        """Return its pairs under a seed, by number from 0."""
        return self.pairs[number % len(self.pairs)]

    @property
    def is_one_set(self) -> bool:
        """True for a trained set of pairs under the study's own loss, which can be the best."""
        return self.kind not in ("none", "random", "semckd") and not self.why_not

    def plain(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "pairs": [[[pair.hint, pair.guided] for pair in pairs] for pairs in self.pairs],
            "why_not": self.why_not,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Arm:
        pairs = tuple(tuple(LayerPair(h, g) for h, g in each) for each in data["pairs"])
        return cls(data["id"], data["kind"], pairs, data["why_not"])
