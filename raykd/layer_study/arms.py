"""Arms of a layer study: every single pair, and the baselines to compare them with."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from raykd.layer_study.design import NOT_NAMED, LayerStudyDesign
from raykd.layer_study.plan import NONE, Arm, Kind, Pairs
from raykd.losses import LOSSES, Pair, Term
from raykd.models.introspection.layers import Layer
from raykd.study.config import PairStudy, Study
from raykd.study.space.pairing import LayerPair

MAX_DRAWS = 200
"""Maximum number of attempts to draw a set or a random pairing."""


def build_arms(design: LayerStudyDesign, settings: PairStudy) -> tuple[Arm, ...]:
    """Return all arms, "none" first.  Arms that cannot be trained have a `skip_reason`.

    - single pairs: every hint layer with every guided layer;
    - "forward": every guided layer learns from the hint layer at the same relative depth;
      "reverse": from the one at the mirrored depth;
    - "random": from a random one, drawn per seed; no hint layer twice if there are enough;
    - "all_to_one": all guided layers learn from the deepest hint layer;
    - "semckd": all hint and guided layers under the learned attention of Chen 2021
      (arXiv:2012.03236), with that loss's default weight;
    - "set": drawn from the pairs that the loss can compare.
    """
    singles = [_single(design, pair) for pair in design.all_pairs]
    possible = [arm.pairs[0][0] for arm in singles if not arm.skip_reason]
    arms = [Arm(NONE, "none"), *singles]
    for name in settings.arms:
        arms.append(_distinct(_null_arm(design, name, settings.seeds), arms))
    return (*arms, *_sampled(design, possible, settings.sets, arms))


def build_arm_study(design: LayerStudyDesign, arm: Arm, number: int) -> Study:
    """Return the concrete study of an arm under a seed, by number from 0."""
    if arm.kind == "none":
        study = design.baseline
    else:
        study = design.with_term(_term(design, arm.kind, arm.pairs_under(number)))
    return replace(study, seed=design.study.seed + number)


def term_pairs(pairs: Iterable[LayerPair]) -> tuple[Pair, ...]:
    """Return pairs as a term of `knowledge` takes them."""
    return tuple(Pair(hint=pair.hint, guided=pair.guided) for pair in pairs)


def _single(design: LayerStudyDesign, pair: LayerPair) -> Arm:
    name = f"{pair.hint}-to-{pair.guided}"
    is_named = design.named_pairs is None or (pair.hint, pair.guided) in design.named_pairs
    skip_reason = _objection(design, "pair", (pair,)) if is_named else NOT_NAMED
    return Arm(name, "pair", ((pair,),), skip_reason)


def _term(design: LayerStudyDesign, kind: Kind, pairs: Pairs) -> Term:
    term = replace(design.loss, pairs=term_pairs(pairs))
    is_semckd = term.loss is not None and term.loss.name == "semckd"
    if kind == "semckd" and not is_semckd:
        return replace(term, loss=LOSSES["semckd"](), weight=None)
    return term


def _objection(design: LayerStudyDesign, kind: Kind, pairs: Pairs) -> str:
    return design.objection(_term(design, kind, pairs))


def _null_arm(design: LayerStudyDesign, kind: Kind, seeds: int) -> Arm:
    hints, guided = design.hints, design.guided
    if kind == "random":
        return _random(design, seeds)
    if kind == "semckd":
        longest = max(len(hints), len(guided))
        layers = [(_layer_at(hints, i), _layer_at(guided, i)) for i in range(longest)]
    elif kind == "all_to_one":
        layers = [(hints[-1], layer) for layer in guided]
    else:
        ordered = hints[::-1] if kind == "reverse" else hints
        layers = [
            (_aligned_layer(ordered, i, len(guided)), layer) for i, layer in enumerate(guided)
        ]
    pairs = _layer_pairs(layers)
    return Arm(kind, kind, (pairs,), _objection(design, kind, pairs))


def _aligned_layer(hints: tuple[Layer, ...], position: int, count: int) -> Layer:
    """Return the layer at the same relative place in `hints`; the last one if `count` is 1."""
    if count == 1:
        return hints[-1]
    return hints[round(position * (len(hints) - 1) / (count - 1))]


def _layer_at(layers: tuple[Layer, ...], position: int) -> Layer:
    return layers[min(position, len(layers) - 1)]


def _layer_pairs(matched: Iterable[tuple[Layer, Layer]]) -> Pairs:
    return tuple(LayerPair(hint.name, guided.name) for hint, guided in matched)


def _random(design: LayerStudyDesign, seeds: int) -> Arm:
    pairings = [_matching(design, design.study.seed + number) for number in range(seeds)]
    possible = tuple(pairs for pairs in pairings if pairs is not None)
    if len(possible) < seeds:
        return Arm(
            "random", "random", skip_reason=f"none of {MAX_DRAWS} random pairings can be compared"
        )
    return Arm("random", "random", possible)


def _matching(design: LayerStudyDesign, seed: int) -> Pairs | None:
    rng = random.Random(f"raykd pairs {seed}")
    hints, guided = list(design.hints), design.guided
    for _ in range(MAX_DRAWS):
        rng.shuffle(hints)
        repeated = (hints * len(guided))[: len(guided)]
        pairs = _layer_pairs(zip(repeated, guided, strict=True))
        if not _objection(design, "random", pairs):
            return pairs
    return None


def _distinct(arm: Arm, arms: Iterable[Arm]) -> Arm:
    """Return the arm; it is not trained if another arm has the same pairs."""
    if arm.skip_reason or arm.kind in ("random", "semckd"):
        return arm
    for other in arms:
        if other.can_be_best and {*other.pairs[0]} == {*arm.pairs[0]}:
            return replace(arm, skip_reason=f"the same pairs as {other.id}")
    return arm


def _sampled(
    design: LayerStudyDesign, possible: list[LayerPair], count: int, arms: Iterable[Arm]
) -> Iterator[Arm]:
    """Yield at most `count` distinct sets of several pairs that are not arms yet."""
    rng = random.Random(f"raykd sets {design.study.seed}")
    existing = {frozenset(arm.pairs[0]) for arm in arms if arm.can_be_best}
    number = 0
    for _ in range(MAX_DRAWS * count):
        if number == count:
            return
        size = rng.randint(design.min_pairs, max(design.min_pairs, design.max_pairs))
        if size > len(possible):
            continue
        pairs = _in_order(design, rng.sample(possible, size))
        if pairs is None or frozenset(pairs) in existing or _objection(design, "set", pairs):
            continue
        existing.add(frozenset(pairs))
        number += 1
        yield Arm(f"set-{number}", "set", (pairs,))


def _in_order(design: LayerStudyDesign, pairs: list[LayerPair]) -> Pairs | None:
    """Return the pairs, shallow to deep; None if they break the study's order."""
    hints = [layer.name for layer in design.hints]
    guided = [layer.name for layer in design.guided]
    places = sorted((hints.index(pair.hint), guided.index(pair.guided)) for pair in pairs)
    order = [place[1] for place in places]
    allowed = {"any": order, "monotone": sorted(order), "reverse": sorted(order)[::-1]}
    if order != allowed[design.order]:
        return None
    return tuple(LayerPair(hints[h], guided[g]) for h, g in places)
