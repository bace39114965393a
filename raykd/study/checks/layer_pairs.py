"""Layer pairs of a concrete study: defaults filled in, and checked before training."""

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
    """Layers that do not exist or that a loss cannot compare; `place` is their place in the
    study."""

    def __init__(self, place: Place, message: str, fix: str = "") -> None:
        super().__init__(f"{dotted(place)}: {message}")
        self.place = place
        self.message = message
        self.fix = fix


def stages_of(model_profile: ModelProfile) -> tuple[str, ...]:
    """Stage aliases of a model, shallow to deep."""
    stages = []
    while (name := f"stage{len(stages) + 1}") in model_profile.aliases:
        stages.append(name)
    return tuple(stages)


def resolve_pairs(
    study: Study,
    student: ModelProfile,
    teachers: Sequence[ModelProfile | None] = (),
    classes: int = 10,
    *,
    aligned: Sequence[bool] = (),
) -> Study:
    """Return `study` with the pairs of all terms written out and checked.

    Pairs that are null become the default of the loss, unless there are several teachers.  Each
    loss is built once for its shapes, on the meta device.

    Args:
        study: a concrete study.
        student: profile of its model.
        teachers: profiles of the networks that teach under its scheme; None for one that is
            unknown. If there are none and the scheme needs no teacher, the hint layers are the
            student's.
        classes: number of classes of the data.
        aligned: for each of `teachers`, whether equal positions of its input and of the student's
            show the same thing (`aligned_inputs`); (): all.

    Raises:
        PairError: a ValueError; a layer does not exist (with similar names), or a loss cannot
            compare a pair (with layers and shapes).
    """
    hints = list(teachers) or [None if study.scheme.needs_teacher else student]
    resolved = [
        tuple(
            _resolved(term, student, hint, PairFacts(classes, is_aligned), ("knowledge", number))
            for number, term in enumerate(study.knowledge)
        )
        for hint, is_aligned in zip(hints, aligned or (True,) * len(hints), strict=True)
    ]
    return study if len(hints) > 1 else replace(study, knowledge=resolved[0])


def aligned_inputs(study: Study, teacher_input: str | None) -> bool:
    """Return whether equal positions of two inputs show the same thing.

    Args:
        study: concrete.
        teacher_input: input of a network that teaches its student.
    """
    return study.data.aligned or teacher_input == study.student.input


@dataclass(frozen=True)
class PairFacts:
    """Facts of a student and a teacher besides the shapes of their layers.

    Attributes:
        classes: number of classes of the data.
        aligned: whether equal positions of their inputs show the same thing.
    """

    classes: int
    aligned: bool = True


def _resolved(
    term: Term, student: ModelProfile, teacher: ModelProfile | None, facts: PairFacts, place: Place
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
        problem = _pairs_mismatch(part, shapes, facts)
        if problem:
            raise PairError(place if term.pairs is None else (*place, "pairs"), problem)
    return resolved


def _pairs_mismatch(
    term: Term, shapes: Mapping[tuple[str, str], tuple[Shape, Shape]], facts: PairFacts
) -> str:
    """Return the reason why the loss of a term cannot compare its pairs; "" if it can."""
    assert term.loss is not None
    pairs = term.pairs or ()
    guided, hint = (
        tuple(shapes[pair.hint, pair.guided][side] for pair in pairs) for side in (0, 1)
    )
    return _problem(term.loss, pairs, guided, hint, facts)


def mismatch(loss: Loss, pair: Pair, guided: Shape, hint: Shape, facts: PairFacts) -> str:
    """Return the reason why a loss cannot compare two layers of these shapes; "" if it can."""
    count = loss.least_pairs
    anonymous = (Pair(hint="hint", guided="guided"),) * count
    if not _problem(loss, anonymous, (guided,) * count, (hint,) * count, facts):
        return ""
    return _problem(loss, (pair,) * count, (guided,) * count, (hint,) * count, facts)


def _problem(
    loss: Loss,
    pairs: tuple[Pair, ...],
    guided: tuple[Shape, ...],
    hint: tuple[Shape, ...],
    facts: PairFacts,
) -> str:
    """Return the reason why a loss cannot compare layers; "" if it can.

    A loss that cannot compare layers of different numbers of positions compares them position by
    position; then equal positions must show the same thing.
    """
    problem = _dry_run(loss, pairs, guided, hint, facts.classes)
    if facts.aligned:
        return problem
    shapes = list(zip(guided, hint, strict=True))
    equal = tuple(_with_positions(theirs, ours) for ours, theirs in shapes)
    longer = tuple(_with_positions(theirs, _longer(ours)) for ours, theirs in shapes)
    fits = [not _dry_run(loss, pairs, guided, each, facts.classes) for each in (equal, longer)]
    if fits != [True, False]:
        return problem
    return (
        f"{loss.name} compares its layers position by position, and the positions of two inputs "
        "of a sample do not correspond: pair layers without positions, such as `embedding`, or "
        "give teacher and student the same `input`"
    )


def _longer(shape: Shape) -> Shape:
    """Return the shape of a layer with one position more: (N, D), (C, H, W); (D,) as it is."""
    if len(shape) == 2:
        return (shape[0] + 1, shape[1])
    return (*shape[:1], *(side + 1 for side in shape[1:]))


def _with_positions(shape: Shape, other: Shape) -> Shape:
    """Return the shape with the positions of another one, if both have as many dimensions."""
    if len(shape) != len(other):
        return shape
    return (other[0], shape[1]) if len(shape) == 2 else (*shape[:1], *other[1:])


def _default_pairs(
    loss: Loss, student: ModelProfile, teacher: ModelProfile, place: Place
) -> Sequence[Pair]:
    if loss.default_pairs == "none":
        return ()
    if loss.default_pairs == "embedding":
        return (Pair(hint="embedding", guided="embedding"),)
    hints, guided = stages_of(teacher), stages_of(student)
    for stages, role in ((hints, "teacher"), (guided, "student")):
        if not stages:
            message = f"the {role} has no stages that {loss.name} could pair; name the `pairs`"
            raise PairError(place, message)
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
        role = "student" if side == "guided" else "teacher"
        fix = other_side_hint(side) if other is not None and name in other.layers else ""
        raise PairError(place, f"{role}: {error}", fix) from None


def other_side_hint(side: str) -> str:
    """Fix for a layer that only the network of the other side has."""
    other = "teacher" if side == "guided" else "student"
    return f"the {other} has this layer: `hint` names the teacher's, `guided` the student's"


@lru_cache(maxsize=4096)
def _dry_run(
    loss: Loss,
    pairs: tuple[Pair, ...],
    guided: tuple[Shape, ...],
    hint: tuple[Shape, ...],
    classes: int,
) -> str:
    """Return the reason why a loss cannot be built for these layers; "" if it can."""
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
"""Losses that can compare the pairs of a term: variants by the name of the term's loss."""


@dataclass(frozen=True)
class ExcludedPair:
    """A pair of layers that is never drawn.

    Attributes:
        parameter: of the pairing.
        loss: name of the loss that cannot compare the layers; "": none of the losses of pairs can.
        pair: the layers.
        reason: in words.
    """

    parameter: str
    loss: str
    pair: LayerPair
    reason: str


@dataclass(frozen=True)
class Impossible:
    """A pairing from which nothing can be drawn; `place` is its place in the study file."""

    place: Place
    message: str
    fix: str = ""


@dataclass(frozen=True)
class FilteredSpace:
    """A space whose pairings contain only layers that a loss can compare."""

    space: Space
    excluded: tuple[ExcludedPair, ...] = ()
    impossible: tuple[Impossible, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The excluded pairs with reasons, one line for each pairing and loss."""
        groups: dict[tuple[str, str], list[ExcludedPair]] = {}
        for pair in self.excluded:
            groups.setdefault((pair.parameter, pair.loss), []).append(pair)
        return tuple(_line(*group, pairs) for group, pairs in groups.items())


def _line(parameter: str, loss: str, excluded: Sequence[ExcludedPair]) -> str:
    pairs = [str(each.pair) for each in excluded]
    names = ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
    under = f" under {loss}" if loss else ""
    return f"{parameter} excludes {names}{under}: {excluded[0].reason}"


@dataclass(frozen=True)
class SpaceModels:
    """The models and losses of a space.

    Attributes:
        students, teachers: profiles of their models, each once.
        losses: by the place of the pairing in the study file.
        classes: number of classes of the data.
        aligned: whether equal positions of the inputs of two networks show the same thing.
    """

    students: Sequence[ModelProfile]
    teachers: Sequence[ModelProfile]
    losses: Mapping[Place, Losses]
    classes: int
    aligned: bool = True
    _shapes: dict[tuple[bool, str], set[Shape]] = field(default_factory=dict)

    def shapes(self, name: str, *, guided: bool) -> set[Shape]:
        """Shapes of a layer in the models of one side; empty if no model has it."""
        models = self.students if guided else self.teachers
        if (guided, name) not in self._shapes:
            shapes = {tuple(profile.layers[name]) for profile in models if name in profile.layers}
            self._shapes[guided, name] = shapes
        return self._shapes[guided, name]


def layers_for(models: Sequence[ModelProfile]) -> dict[Wide, tuple[str, ...]]:
    """Layer names that `auto`, `blocks` and `all` stand for in the models of model side, shallow to
    deep.

    `auto`: the stages of the model with the most stages.  `blocks` and `all`: the stages and
        blocks,
    or all layers, that every model has, in the order of the first; the last layer of a stage is
    called by its alias.
    """
    most: tuple[str, ...] = max(map(stages_of, models), key=len, default=())
    layers: dict[Wide, tuple[str, ...]] = dict.fromkeys(WIDE, most)
    for wide in ("blocks", "all"):
        named = [_named(model, blocks=wide == "blocks") for model in models]
        shared = set(named[0]).intersection(*named[1:]) if named else set()
        layers[wide] = tuple(name for name in named[0] if name in shared) if named else ()
    return layers


def _named(model_profile: ModelProfile, *, blocks: bool) -> list[str]:
    """Names of its blocks, or of all its layers, without the classifier and without the last layer
    of a sequence."""
    layers = [layer for layer in model_profile.ordered_layers if not layer.overwritten]
    by_name = {layer.module: layer for layer in layers if layer.side == "output"}
    parents = {name.rpartition(".")[0] for name in by_name}
    embedding = next((layer for layer in layers if layer.side == "input"), None)
    names = []
    for layer in layers:
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


def filter_pairs(space: Space, models: SpaceModels) -> FilteredSpace:
    """Return the space without the layer pairs that its losses cannot compare.

    Args:
        space: the layers of its pairings named.
        models: its models and losses.
    """
    excluded: list[ExcludedPair] = []
    impossible: list[Impossible] = []

    def filtered(node: Pairing) -> Pairing:
        losses = models.losses.get(node.source, {})
        if not node.domain.named or not losses:
            return node
        result = _filter_node(node, _groups(node, losses), models)
        excluded.extend(result.excluded)
        impossible.extend(result.impossible)
        return result.node

    return FilteredSpace(space.with_pairings(filtered), tuple(excluded), tuple(impossible))


@dataclass(frozen=True)
class _FilteredNode:
    node: Pairing
    excluded: tuple[ExcludedPair, ...]
    impossible: tuple[Impossible, ...]


def _filter_node(node: Pairing, losses: Losses, models: SpaceModels) -> _FilteredNode:
    reasons = {name: _reasons(node.domain, variants, models) for name, variants in losses.items()}
    domains = {
        name: _spanned(node.domain.without(frozenset(pairs)), losses[name])
        for name, pairs in reasons.items()
    }
    excluded = tuple(
        ExcludedPair(node.parameter, name, pair, reason)
        for name, pairs in reasons.items()
        for pair, reason in pairs.items()
    )
    if len(domains) == 1:
        (domain,) = domains.values()
        by_loss: dict[str, PairingDomain] = {}
    else:
        domain = node.domain.without(frozenset.intersection(*map(frozenset, reasons.values())))
        by_loss = {name: each for name, each in domains.items() if each != domain}
    changed = replace(node, domain=domain, by_loss=by_loss)
    if any(each.sizes for each in domains.values()):
        return _FilteredNode(changed, excluded, ())
    message, fix = _no_sets(node, losses, reasons)
    return _FilteredNode(changed, excluded, (Impossible(node.source, message, fix),))


def _groups(node: Pairing, losses: Losses) -> Losses:
    """Return the losses that can compare a pair; a single group if pairs have separate losses."""
    if any("loss" in pair.settings for pair in node.domain.named) or any(
        "loss" in group.items for group in node.settings
    ):
        return {"": frozenset().union(*losses.values())}
    return losses


def _reasons(
    domain: PairingDomain, losses: Iterable[Loss], models: SpaceModels
) -> dict[LayerPair, str]:
    """Return the pairs that none of the losses can compare in any of the models, with reasons."""
    variants = sorted(losses, key=repr)
    pairs = dict.fromkeys(map(bare, domain.named))
    return {pair: reason for pair in pairs if (reason := _reason(pair, variants, models))}


def _reason(pair: LayerPair, losses: Sequence[Loss], models: SpaceModels) -> str:
    """Return the reason why no loss can compare two layers; "" if one can, or no model has them."""
    first, layers = "", Pair(hint=pair.hint, guided=pair.guided)
    facts = PairFacts(models.classes, models.aligned)
    for loss in losses:
        for guided in sorted(models.shapes(pair.guided, guided=True)):
            for hint in sorted(models.shapes(pair.hint, guided=False)):
                reason = mismatch(loss, layers, guided, hint, facts)
                if not reason:
                    return ""
                first = first or reason
    return first


def _spanned(domain: PairingDomain, losses: Iterable[Loss]) -> PairingDomain:
    """Return the domain without sets of fewer or more pairs than the losses take."""
    least = max(domain.min, min(loss.least_pairs for loss in losses))
    most = max(loss.most_pairs or domain.max for loss in losses)
    return replace(domain, min=least, max=min(domain.max, most))


def _no_sets(
    node: Pairing, losses: Losses, reasons: Mapping[str, Mapping[LayerPair, str]]
) -> tuple[str, str]:
    """Message and fix for a pairing from which nothing can be drawn, for its first loss."""
    name, variants = next(iter(losses.items()))
    domain, loss = _spanned(node.domain, variants), next(iter(variants))
    if domain.min > domain.max:
        if loss.least_pairs > node.domain.max:
            message = f"loss '{name}' needs at least {loss.least_pairs} pairs"
            return f"{message} and `max` is {node.domain.max}", f"write `max: {loss.least_pairs}`"
        return f"loss '{name}' takes at most {domain.max} pair(s)", "lower `min`"
    count = len(node.domain.named)
    if reasons[name]:
        reason = next(iter(reasons[name].values()))
        some = len(reasons[name])
        which = "none of its pairs can" if some == count else f"{some} of {count} pairs cannot"
        message = f"{which} be compared: {reason}"
        return message, "name other layers, or use another loss; `raykd layers` shows shapes"
    message = f"its {count} pairs allow no set of {domain.min} in the order '{domain.order}'"
    return message, "lower `min`, name more layers, or write `order: any`"
