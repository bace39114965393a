"""The arms of a layer study: every single pair, and what single pairs must be held against."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from raykd.architecture.layers import Layer
from raykd.knowledge import LOSSES, Pair, Term
from raykd.search.pairs.arm import NONE, Arm, Kind, Pairs
from raykd.search.pairs.question import NOT_ASKED, Question
from raykd.study.pairings import LayerPair
from raykd.study.schema import PairStudy, Study

DRAWS = 200
"""Tries to draw a set, or a random pairing, before there is said to be none."""


def arms_of(question: Question, how: PairStudy) -> tuple[Arm, ...]:
    """All arms, those that cannot be trained included with the reason; "none" is the first.

    - a single pair: every hint layer with every guided layer;
    - "forward": every guided layer learns from the hint layer at its own relative place;
      "reverse": from the one at the mirrored place;
    - "random": from one drawn at random, another under every seed; no hint layer twice where there
      are enough;
    - "all_to_one": all guided layers learn from the deepest hint layer;
    - "semckd": all hint and guided layers under Chen 2021's learned attention
      (arXiv:2012.03236), with that loss's own default weight;
    - "set": drawn from the pairs that can be compared.
    """
    singles = [_single(question, pair) for pair in question.crossed]
    possible = [arm.pairs[0][0] for arm in singles if not arm.why_not]
    found = [Arm(NONE, "none"), *singles]
    for name in how.arms:
        found.append(_distinct(_null_arm(question, name, how.seeds), found))
    return (*found, *_sampled(question, possible, how.sets, found))


def trained_under(question: Question, arm: Arm, number: int) -> Study:
    """The concrete study of an arm under the seed of that number, counted from 0."""
    if arm.kind == "none":
        study = question.without
    else:
        study = question.with_term(_term(question, arm.kind, arm.pairs_under(number)))
    return replace(study, seed=question.study.seed + number)


def label_of(pairs: Iterable[LayerPair]) -> str:
    """Pairs in short: "stage1>stage2 stage3>stage3"."""
    return " ".join(f"{pair.hint}>{pair.guided}" for pair in pairs)


def compared(pairs: Iterable[LayerPair]) -> tuple[Pair, ...]:
    """Pairs as a term of `knowledge` has them."""
    return tuple(Pair(hint=pair.hint, guided=pair.guided) for pair in pairs)


def _single(question: Question, pair: LayerPair) -> Arm:
    name = f"{pair.hint}-to-{pair.guided}"
    asked = question.asked is None or (pair.hint, pair.guided) in question.asked
    why_not = _why_not(question, "pair", (pair,)) if asked else NOT_ASKED
    return Arm(name, "pair", ((pair,),), why_not)


def _term(question: Question, kind: Kind, pairs: Pairs) -> Term:
    term = replace(question.loss, pairs=compared(pairs))
    own = term.loss is not None and term.loss.name == "semckd"
    if kind == "semckd" and not own:
        return replace(term, loss=LOSSES["semckd"](), weight=None)
    return term


def _why_not(question: Question, kind: Kind, pairs: Pairs) -> str:
    return question.why_not(_term(question, kind, pairs))


def _null_arm(question: Question, kind: Kind, seeds: int) -> Arm:
    hints, guided = question.hints, question.guided
    if kind == "random":
        return _random(question, seeds)
    if kind == "semckd":
        longest = max(len(hints), len(guided))
        matched = [(_at(hints, i), _at(guided, i)) for i in range(longest)]
    elif kind == "all_to_one":
        matched = [(hints[-1], one) for one in guided]
    else:
        theirs = hints[::-1] if kind == "reverse" else hints
        matched = [(_aligned(theirs, i, len(guided)), one) for i, one in enumerate(guided)]
    pairs = _pairs(matched)
    return Arm(kind, kind, (pairs,), _why_not(question, kind, pairs))


def _aligned(hints: tuple[Layer, ...], place: int, count: int) -> Layer:
    """The layer as far along `hints` as `place` is along `count`; of one place alone the last."""
    if count == 1:
        return hints[-1]
    return hints[round(place * (len(hints) - 1) / (count - 1))]


def _at(layers: tuple[Layer, ...], place: int) -> Layer:
    return layers[min(place, len(layers) - 1)]


def _pairs(matched: Iterable[tuple[Layer, Layer]]) -> Pairs:
    return tuple(LayerPair(hint.name, one.name) for hint, one in matched)


def _random(question: Question, seeds: int) -> Arm:
    drawn = [_matching(question, question.study.seed + number) for number in range(seeds)]
    possible = tuple(pairs for pairs in drawn if pairs is not None)
    if len(possible) < seeds:
        return Arm("random", "random", why_not=f"none of {DRAWS} random pairings can be compared")
    return Arm("random", "random", possible)


def _matching(question: Question, seed: int) -> Pairs | None:
    rng = random.Random(f"raykd pairs {seed}")
    hints, guided = list(question.hints), question.guided
    for _ in range(DRAWS):
        rng.shuffle(hints)
        dealt = (hints * len(guided))[: len(guided)]
        pairs = _pairs(zip(dealt, guided, strict=True))
        if not _why_not(question, "random", pairs):
            return pairs
    return None


def _distinct(arm: Arm, others: Iterable[Arm]) -> Arm:
    """The arm, not to be trained where another has the same pairs."""
    if arm.why_not or arm.kind in ("random", "semckd"):
        return arm
    for other in others:
        if other.is_one_set and {*other.pairs[0]} == {*arm.pairs[0]}:
            return replace(arm, why_not=f"the same pairs as {other.id}")
    return arm


def _sampled(
    question: Question, possible: list[LayerPair], count: int, others: Iterable[Arm]
) -> Iterator[Arm]:
    """At most `count` sets of several pairs, no two alike, none that is an arm already."""
    rng = random.Random(f"raykd sets {question.study.seed}")
    seen = {frozenset(arm.pairs[0]) for arm in others if arm.is_one_set}
    made = 0
    for _ in range(DRAWS * count):
        if made == count:
            return
        size = rng.randint(question.least, max(question.least, question.most))
        if size > len(possible):
            continue
        pairs = _in_order(question, rng.sample(possible, size))
        known = pairs is None or frozenset(pairs) in seen
        if pairs is None or known or _why_not(question, "set", pairs):
            continue
        seen.add(frozenset(pairs))
        made += 1
        yield Arm(f"set-{made}", "set", (pairs,))


def _in_order(question: Question, pairs: list[LayerPair]) -> Pairs | None:
    """The pairs, shallow to deep; None where they do not keep the study's order."""
    hints = [layer.name for layer in question.hints]
    guided = [layer.name for layer in question.guided]
    places = sorted((hints.index(pair.hint), guided.index(pair.guided)) for pair in pairs)
    theirs = [place[1] for place in places]
    wanted = {"any": theirs, "monotone": sorted(theirs), "reverse": sorted(theirs)[::-1]}
    if theirs != wanted[question.order]:
        return None
    return tuple(LayerPair(hints[h], guided[g]) for h, g in places)
