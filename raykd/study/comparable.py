"""Which layers the models of a space have, and which pairs of them its losses cannot compare.

What no loss can compare in any model of the space is left out of a pairing before anything is
drawn, with the reason; what only some models lack is found when such a model is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raykd.architecture import Anatomy
from raykd.architecture.layers import Layer
from raykd.knowledge import Loss, Pair
from raykd.knowledge.shapes import Shape
from raykd.study.nodes import Pairing
from raykd.study.pairing import stages_of, why_not
from raykd.study.pairings import WIDE, LayerPair, PairingDomain, Wide, bare
from raykd.study.place import Place
from raykd.study.space import Space

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
    what: str
    mend: str = ""


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

    students: Sequence[Anatomy]
    teachers: Sequence[Anatomy]
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


def layers_for(models: Sequence[Anatomy]) -> dict[Wide, tuple[str, ...]]:
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


def _named(anatomy: Anatomy, *, blocks: bool) -> list[str]:
    """Its blocks, or all its layers, without the classifier and what ends just where its
    sequence does."""
    kept = [layer for layer in anatomy.found if not layer.overwritten]
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
    what, mend = _why_impossible(node, losses, reasons)
    return _Narrow(changed, left_out, (Impossible(node.source, what, mend),))


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
