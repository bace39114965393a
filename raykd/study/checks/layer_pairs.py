"""Layer pairs: which hint layer teaches which guided layer, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from raykd.losses import Loss, LossContext, Pair, Term
from raykd.losses.shapes import Shape
from raykd.models import ModelProfile
from raykd.models.introspection.layers import Layer
from raykd.study.config import Study
from raykd.study.space.domains import Pairing
from raykd.study.space.pairing import WIDE, LayerPair, PairingDomain, Wide, bare
from raykd.study.space.space import Space
from raykd.study.yaml_file import Place, dotted


class PairError(ValueError):
    """Layers that are not there, or that no connector bridges; `place` says where in the study."""

    def __init__(self, place: Place, message: str, fix: str = "") -> None:
        super().__init__(f"{dotted(place)}: {message}")
        self.place = place
        self.message = message
        self.fix = fix


def stages_of(model_profile: ModelProfile) -> tuple[str, ...]:
    """A model's stage aliases, shallow to deep."""
    stages = []
    while (name := f"stage{len(stages) + 1}") in model_profile.aliases:
        stages.append(name)
    return tuple(stages)


def resolve_pairs(
    study: Study,
    student: ModelProfile,
    teachers: Sequence[ModelProfile | None] = (),
    classes: int = 10,
) -> Study:
    """`study` with the pairs of each term that takes some written out and checked.

    Pairs left null become the loss's own default, unless several teachers each have their own.
    Each loss is made ready once for the shapes it would meet, without memory for its weights.

    Args:
        study: a concrete study.
        student: what its model is made of.
        teachers: the same of those who teach under its scheme; None: nothing is known of one.
            Where there is none, the student's own layers are the hint layers, if the scheme needs
            no teacher.
        classes: of the data.

    Raises:
        PairError: a ValueError; a layer that is not there (with what comes near), or a pair that
            cannot be bridged (with both layers and both shapes), and the place in the study.
    """
    hints = list(teachers) or [None if study.scheme.needs_teacher else student]
    resolved = [
        tuple(
            _resolved(term, student, hint, classes, ("knowledge", number))
            for number, term in enumerate(study.knowledge)
        )
        for hint in hints
    ]
    return study if len(hints) > 1 else replace(study, knowledge=resolved[0])


def _resolved(
    term: Term, student: ModelProfile, teacher: ModelProfile | None, classes: int, place: Place
) -> Term:
    loss = term.loss
    if loss is None or not term.active or not loss.takes_pairs:
        return term
    pairs = term.pairs
    if pairs is None:
        if teacher is None:
            return term
        pairs = _default_pairs(loss, student, teacher, place)
    guided = [
        _shape(student, teacher, pair.guided, "guided", (*place, "pairs", number, "guided"))
        for number, pair in enumerate(pairs)
    ]
    if teacher is None:
        return term
    hint = [
        _shape(teacher, student, pair.hint, "hint", (*place, "pairs", number, "hint"))
        for number, pair in enumerate(pairs)
    ]
    resolved = replace(term, pairs=tuple(pairs))
    shapes = {(p.hint, p.guided): (g, h) for p, g, h in zip(pairs, guided, hint, strict=True)}
    for part in resolved.parts:
        unfit = _unfit(part, shapes, classes)
        if unfit:
            raise PairError(place if term.pairs is None else (*place, "pairs"), unfit)
    return resolved


def _unfit(term: Term, shapes: Mapping[tuple[str, str], tuple[Shape, Shape]], classes: int) -> str:
    """Why a term's loss cannot be made ready for its pairs; empty where it can."""
    assert term.loss is not None
    pairs = term.pairs or ()
    guided, hint = (
        tuple(shapes[pair.hint, pair.guided][side] for pair in pairs) for side in (0, 1)
    )
    return _dry_run(term.loss, pairs, guided, hint, classes)


def why_not(loss: Loss, pair: Pair, guided: Shape, hint: Shape, classes: int) -> str:
    """Why a loss cannot compare two layers of these shapes; empty where it can."""
    count = loss.least_pairs
    anonymous = (Pair(hint="hint", guided="guided"),) * count
    if not _dry_run(loss, anonymous, (guided,) * count, (hint,) * count, classes):
        return ""
    return _dry_run(loss, (pair,) * count, (guided,) * count, (hint,) * count, classes)


def _default_pairs(
    loss: Loss, student: ModelProfile, teacher: ModelProfile, place: Place
) -> Sequence[Pair]:
    if loss.default_pairs == "none":
        return ()
    if loss.default_pairs == "embedding":
        return (Pair(hint="embedding", guided="embedding"),)
    hints, guided = stages_of(teacher), stages_of(student)
    for stages, who in ((hints, "teacher"), (guided, "student")):
        if not stages:
            what = f"no stages were found in the {who} for {loss.name} to pair; name the `pairs`"
            raise PairError(place, what)
    depth = 1 if loss.default_pairs == "last" else min(len(hints), len(guided))
    return [
        Pair(hint=hint, guided=guided)
        for hint, guided in zip(hints[-depth:], guided[-depth:], strict=True)
    ]


def _shape(
    model_profile: ModelProfile, other: ModelProfile | None, name: str, side: str, place: Place
) -> Shape:
    try:
        return tuple(model_profile.resolve([name])[0].shape)
    except ValueError as error:
        who = "student" if side == "guided" else "teacher"
        fix = of_the_other(side) if other is not None and name in other.layers else ""
        raise PairError(place, f"{who}: {error}", fix) from None


def of_the_other(side: str) -> str:
    """How to mend a layer that is not there, but in the network of the other side."""
    other = "teacher" if side == "guided" else "student"
    return f"the {other} has such a layer: `hint` names the teacher's, `guided` the student's"


@lru_cache(maxsize=4096)
def _dry_run(
    loss: Loss,
    pairs: tuple[Pair, ...],
    guided: tuple[Shape, ...],
    hint: tuple[Shape, ...],
    classes: int,
) -> str:
    """Why the loss cannot be made ready for these layers; empty where it can."""
    context = LossContext(
        pairs=pairs,
        guided_shapes=guided,
        hint_shapes=hint,
        classes=classes,
        train_size=2,
        data_size=2,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    loss.build(context)
            except RuntimeError:  # something in it needs real memory
                loss.build(context)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


Losses = Mapping[str, frozenset[Loss]]
"""What may compare the pairs of a term: by the name of the term's loss, its variants."""


@dataclass(frozen=True)
class LeftOut:
    """A pair of layers that is never drawn.

    Attributes:
        parameter: of the pairing.
        loss: the name of the loss that cannot compare them; empty: none of those of the pairs.
    """

    parameter: str
    loss: str
    pair: LayerPair
    why: str


@dataclass(frozen=True)
class Impossible:
    """A pairing none of whose sets can be drawn; `place` is where the study writes it."""

    place: Place
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Narrowed:
    """A space whose pairings hold what can be compared."""

    space: Space
    left_out: tuple[LeftOut, ...] = ()
    impossible: tuple[Impossible, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """What was left out and why, a line for each pairing and loss."""
        groups: dict[tuple[str, str], list[LeftOut]] = {}
        for one in self.left_out:
            groups.setdefault((one.parameter, one.loss), []).append(one)
        return tuple(_line(*group, found) for group, found in groups.items())


def _line(parameter: str, loss: str, found: Sequence[LeftOut]) -> str:
    pairs = [str(one.pair) for one in found]
    told = ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
    whose = f" under {loss}" if loss else ""
    return f"{parameter} leaves out {told}{whose}: {found[0].why}"


@dataclass(frozen=True)
class Met:
    """What the points of a space bring together.

    Attributes:
        students, teachers: what their models are made of, each once.
        losses: by the place at which a pairing is written.
        classes: of the data.
    """

    students: Sequence[ModelProfile]
    teachers: Sequence[ModelProfile]
    losses: Mapping[Place, Losses]
    classes: int
    _shapes: dict[tuple[bool, str], set[Shape]] = field(default_factory=dict)

    def shapes(self, name: str, *, guided: bool) -> set[Shape]:
        """The shapes a layer has in the models of one side; none where no model has it."""
        models = self.students if guided else self.teachers
        if (guided, name) not in self._shapes:
            found = {tuple(one.layers[name]) for one in models if name in one.layers}
            self._shapes[guided, name] = found
        return self._shapes[guided, name]


def layers_for(models: Sequence[ModelProfile]) -> dict[Wide, tuple[str, ...]]:
    """What `auto`, `blocks` and `all` stand for in the models of one side, shallow to deep.

    `auto`: the stages of the model that has most of them.  `blocks` and `all`: the stages and
    blocks, or all the layers, that every one of the models has, as named in the first; a layer
    that ends a stage goes by its alias.
    """
    most: tuple[str, ...] = max(map(stages_of, models), key=len, default=())
    found: dict[Wide, tuple[str, ...]] = dict.fromkeys(WIDE, most)
    for wide in ("blocks", "all"):
        named = [_named(one, blocks=wide == "blocks") for one in models]
        shared = set(named[0]).intersection(*named[1:]) if named else set()
        found[wide] = tuple(name for name in named[0] if name in shared) if named else ()
    return found


def _named(model_profile: ModelProfile, *, blocks: bool) -> list[str]:
    """Its blocks, or all its layers, without the classifier and what ends just where its
    sequence does."""
    kept = [layer for layer in model_profile.found if not layer.overwritten]
    by_name = {layer.module: layer for layer in kept if layer.side == "output"}
    parents = {name.rpartition(".")[0] for name in by_name}
    embedding = next((one for one in kept if one.side == "input"), None)
    names = []
    for layer in kept:
        whole = by_name.get(layer.module.rpartition(".")[0])
        if layer.side == "output" and whole is not None and _ends_sequence(layer, whole):
            continue
        after = embedding is not None and layer.depth > embedding.depth
        if (after and layer.side == "output") or not layer.shape:
            continue
        if not blocks or layer.stage or (layer.module in parents and layer.module[-1].isdigit()):
            names.append(layer.stage or layer.module)
    return names


def _ends_sequence(layer: Layer, whole: Layer) -> bool:
    same = (layer.depth, layer.macs, layer.shape) == (whole.depth, whole.macs, whole.shape)
    return same and whole.type == "Sequential"


def narrowed(space: Space, met: Met) -> Narrowed:
    """The space without the pairs of layers that its losses cannot compare.

    Args:
        space: the layers of its pairings all named.
        met: its models and losses.
    """
    left_out: list[LeftOut] = []
    impossible: list[Impossible] = []

    def narrow(node: Pairing) -> Pairing:
        losses = met.losses.get(node.source, {})
        if not node.domain.named or not losses:
            return node
        found = _narrow(node, _groups(node, losses), met)
        left_out.extend(found.left_out)
        impossible.extend(found.impossible)
        return found.node

    return Narrowed(space.with_pairings(narrow), tuple(left_out), tuple(impossible))


@dataclass(frozen=True)
class _Narrow:
    node: Pairing
    left_out: tuple[LeftOut, ...]
    impossible: tuple[Impossible, ...]


def _narrow(node: Pairing, losses: Losses, met: Met) -> _Narrow:
    reasons = {name: _reasons(node.domain, variants, met) for name, variants in losses.items()}
    domains = {
        name: _spanned(node.domain.without(frozenset(found)), losses[name])
        for name, found in reasons.items()
    }
    left_out = tuple(
        LeftOut(node.parameter, name, pair, why)
        for name, found in reasons.items()
        for pair, why in found.items()
    )
    if len(domains) == 1:
        (domain,) = domains.values()
        by_loss: dict[str, PairingDomain] = {}
    else:
        domain = node.domain.without(frozenset.intersection(*map(frozenset, reasons.values())))
        by_loss = {name: found for name, found in domains.items() if found != domain}
    changed = replace(node, domain=domain, by_loss=by_loss)
    if any(found.sizes for found in domains.values()):
        return _Narrow(changed, left_out, ())
    message, fix = _why_impossible(node, losses, reasons)
    return _Narrow(changed, left_out, (Impossible(node.source, message, fix),))


def _groups(node: Pairing, losses: Losses) -> Losses:
    """The losses that may compare a pair; where pairs have losses of their own, all as one."""
    owned = [pair for pair in node.domain.named if "loss" in pair.held]
    if owned or any("loss" in group.items for group in node.own):
        return {"": frozenset().union(*losses.values())}
    return losses


def _reasons(domain: PairingDomain, losses: Iterable[Loss], met: Met) -> dict[LayerPair, str]:
    """The pairs that none of the losses can compare in any of the models, and why."""
    variants = sorted(losses, key=repr)
    pairs = dict.fromkeys(map(bare, domain.named))
    return {pair: why for pair in pairs if (why := _reason(pair, variants, met))}


def _reason(pair: LayerPair, losses: Sequence[Loss], met: Met) -> str:
    """Why none of the losses can compare two layers; empty where one can, or no model has them."""
    first, layers = "", Pair(hint=pair.hint, guided=pair.guided)
    for loss in losses:
        for guided in sorted(met.shapes(pair.guided, guided=True)):
            for hint in sorted(met.shapes(pair.hint, guided=False)):
                why = why_not(loss, layers, guided, hint, met.classes)
                if not why:
                    return ""
                first = first or why
    return first


def _spanned(domain: PairingDomain, losses: Iterable[Loss]) -> PairingDomain:
    """The domain without sets of fewer or more pairs than all of the losses take."""
    least = max(domain.min, min(loss.least_pairs for loss in losses))
    most = max(loss.most_pairs or domain.max for loss in losses)
    return replace(domain, min=least, max=min(domain.max, most))


def _why_impossible(
    node: Pairing, losses: Losses, reasons: Mapping[str, Mapping[LayerPair, str]]
) -> tuple[str, str]:
    """Why nothing can be drawn, and how to mend it; said of the first loss."""
    name, variants = next(iter(losses.items()))
    domain, loss = _spanned(node.domain, variants), next(iter(variants))
    if domain.min > domain.max:
        if loss.least_pairs > node.domain.max:
            what = f"loss '{name}' needs at least {loss.least_pairs} pairs"
            return f"{what} and `max` is {node.domain.max}", f"write `max: {loss.least_pairs}`"
        return f"loss '{name}' takes at most {domain.max} pair(s)", "lower `min`"
    count = len(node.domain.named)
    if reasons[name]:
        why = next(iter(reasons[name].values()))
        some = len(reasons[name])
        which = "none of its pairs can" if some == count else f"{some} of {count} pairs cannot"
        what = f"{which} be compared: {why}"
        return what, "name layers that can, or take another loss; `raykd layers` shows their shapes"
    what = f"its {count} pairs make no {domain.min} in the order '{domain.order}'"
    return what, "lower `min`, name more layers, or write `order: any`"
