"""Plan of a layer study: its arms and layers, as plain data, without importing torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raykd.study.space.pairing import LayerPair
from raykd.tracking.events import ArmsPlanned

Kind = Literal["none", "pair", "forward", "reverse", "random", "all_to_one", "semckd", "set"]
Pairs = tuple[LayerPair, ...]

NONE = "none"
"""Baseline arm without hint, with which all other arms are compared."""


@dataclass(frozen=True)
class Arm:
    """One way of pairing, trained once under every seed.

    Attributes:
        id: "none", "stage1-to-stage2", "forward", "set-1" ...
        kind: kind of pairing.
        pairs: one entry if the pairs are the same under every seed, else one entry per seed.
        skip_reason: reason why it is not trained; "" if it is.
    """

    id: str
    kind: Kind
    pairs: tuple[Pairs, ...] = ((),)
    skip_reason: str = ""

    def pairs_under(self, number: int) -> Pairs:
        """Return its pairs under a seed, by number from 0."""
        return self.pairs[number % len(self.pairs)]

    @property
    def can_be_best(self) -> bool:
        """True for a trained set of pairs that is the same under every seed.

        It is compared under the study's own loss, unlike "semckd".
        """
        return self.kind not in (NONE, "random", "semckd") and not self.skip_reason

    def plain(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "pairs": [[[pair.hint, pair.guided] for pair in pairs] for pairs in self.pairs],
            "why_not": self.skip_reason,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Arm:
        pairs = tuple(tuple(LayerPair(h, g) for h, g in each) for each in data["pairs"])
        return cls(data["id"], data["kind"], pairs, data["why_not"])


@dataclass(frozen=True)
class LayerInfo:
    """A layer: name, shape without the batch dimension, and depth from 0 to 1."""

    name: str
    shape: tuple[int, ...]
    depth: float

    @property
    def shape_text(self) -> str:
        return "x".join(map(str, self.shape))


@dataclass(frozen=True)
class StudyLayers:
    """Layers of a layer study, shallow to deep.

    Attributes:
        hints, guided: layers of teacher and student to pair.
        cka_hints, cka_guided: layers of teacher and student in the CKA maps.
    """

    hints: tuple[LayerInfo, ...]
    guided: tuple[LayerInfo, ...]
    cka_hints: tuple[LayerInfo, ...]
    cka_guided: tuple[LayerInfo, ...]


@dataclass(frozen=True)
class LayerStudyPlan:
    """Plan of a layer study, read from its journal.

    Attributes:
        arms: all arms, including those that are not trained.
        layers: layers of teacher and student.
        seeds: seeds under which every arm is trained.
        term: index of the term in the study's knowledge whose pairs are compared.
        loss: loss of that term, as plain data.
        weight: weight of that term.
    """

    arms: tuple[Arm, ...]
    layers: StudyLayers
    seeds: tuple[int, ...]
    term: int
    loss: Mapping[str, Any]
    weight: float

    @classmethod
    def from_event(cls, event: ArmsPlanned) -> LayerStudyPlan:
        layers = {
            side: tuple(LayerInfo(each["name"], tuple(each["shape"]), each["depth"]) for each in of)
            for side, of in event.layers.items()
        }
        return cls(
            arms=tuple(map(Arm.from_plain, event.arms)),
            layers=StudyLayers(
                hints=layers["hints"],
                guided=layers["guided"],
                cka_hints=layers["shown_hint"],
                cka_guided=layers["shown_guided"],
            ),
            seeds=tuple(event.seeds),
            term=event.term,
            loss=event.loss,
            weight=float(event.weight),
        )

    @property
    def trained_arms(self) -> list[Arm]:
        """The arms that are trained."""
        return [arm for arm in self.arms if not arm.skip_reason]


def format_pairs(pairs: Iterable[LayerPair]) -> str:
    """Return pairs as text: "stage1>stage2 stage3>stage3"."""
    return " ".join(f"{pair.hint}>{pair.guided}" for pair in pairs)
