"""Size of a space: its parameters and its number of points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from raykd.study.space.domains import (
    Choice,
    Condition,
    Fixed,
    Group,
    Listing,
    Node,
    Number,
    Pairing,
    name_of,
    nodes_of,
)
from raykd.study.space.sampling import Scalar
from raykd.study.yaml_file import Json, Place, dotted


@dataclass(frozen=True)
class Dimension:
    """A parameter of the space, as samplers see it.

    Attributes:
        name: of the parameter.
        path: dotted path of the place that it sets.
        kind: choice, uniform, loguniform, int, logint or pairing.
        values: the options, or the two bounds.
        text: `values` as text.
        when: condition under which it is drawn; "": always.
    """

    name: str
    path: str
    kind: str
    values: tuple[Scalar, ...]
    text: str
    when: str = ""


@dataclass(frozen=True)
class Size:
    """The size of a space.

    Attributes:
        combinations: number of points, without continuous values.
        continuous: number of continuous parameters.
    """

    combinations: int
    continuous: int

    @property
    def points(self) -> int | None:
        """Number of points; None: infinitely many."""
        return None if self.continuous else self.combinations


def size_of(root: Group) -> Size:
    """Return the size of the space below `root`."""
    continuous = {
        node.parameter
        for node in nodes_of(root)
        if isinstance(node, Number) and node.domain.count is None
    }
    return Size(_count(root), len(continuous))


def dimensions_of(root: Group) -> tuple[Dimension, ...]:
    """Return the parameters below `root` in the order of drawing."""
    merged: dict[str, Dimension] = {}
    for dimension in _dimensions(root, (), ()):
        earlier = merged.get(dimension.name)
        when = dimension.when if earlier is None else _either(earlier.when, dimension.when)
        merged[dimension.name] = replace(dimension, when=when)
    return tuple(merged.values())


def _count(node: Node) -> int:
    match node:
        case Fixed():
            return 1
        case Listing():
            return _product(_count(item) for item in node.items)
        case Group():
            return _count_group(node)
        case Choice():
            return sum(_count(option) for option in node.options)
        case Number():
            return node.domain.count or 1
        case Pairing():
            return _count_pairing(node, "")


def _count_group(node: Group) -> int:
    if node.condition is None:
        return _product(_count(item) for item in node.items.values())
    condition = node.condition
    free = _product(
        _count(item)
        for key, item in node.items.items()
        if key != condition.parent and key not in condition.keys
    )
    cases = _cases(node.items[condition.parent], condition)
    return free * sum(
        times
        * _product(_count_conditional(node.items[key], name) for key in active if key in node.items)
        for (active, name), times in cases.items()
    )


def _count_conditional(node: Node, name: str) -> int:
    return _count_pairing(node, name) if isinstance(node, Pairing) else _count(node)


def _count_pairing(node: Pairing, loss: str) -> int:
    """Count the sets of pairs under a loss, times the values of weights and losses of pairs."""
    each = _count(node.settings[0]) if node.settings else 1
    _, domain = node.of(loss)
    return sum(times * each**size for size, times in domain.sizes.items())


Case = tuple[frozenset[str], str]
"""The active keys of a condition, and the name of the option that activates them."""


def _cases(node: Node, condition: Condition) -> Counter[Case]:
    """For each case, the number of values of `node` that lead to it."""
    if isinstance(node, Choice):
        return sum((_cases(option, condition) for option in node.options), Counter())
    if isinstance(node, Group):
        name = node.items.get("name")
        value: Json = {"name": name.value} if isinstance(name, Fixed) else {}
    else:
        value = node.value if isinstance(node, Fixed) else {}
    return Counter({(condition.active(value), name_of(value)): _count(node)})


def _product(counts: Iterable[int]) -> int:
    total = 1
    for count in counts:
        total *= count
    return total


def _dimensions(node: Node, place: Place, when: tuple[str, ...]) -> Iterator[Dimension]:
    match node:
        case Listing():
            for i, item in enumerate(node.items):
                yield from _dimensions(item, (*place, i), when)
        case Group():
            yield from _group_dimensions(node, place, when)
        case Choice():
            yield from _choice_dimensions(node, place, when)
        case Number():
            ends = (node.domain.low, node.domain.high)
            text, condition = str(node.domain), " and ".join(when)
            yield Dimension(node.parameter, dotted(place), node.domain.kind, ends, text, condition)
        case Pairing():
            yield from _pairing_dimensions(node, place, when)
        case Fixed():
            return


def _group_dimensions(node: Group, place: Place, when: tuple[str, ...]) -> Iterator[Dimension]:
    conditional = node.condition.keys if node.condition is not None else frozenset()
    for key, item in node.items.items():
        if key not in conditional:
            yield from _dimensions(item, (*place, key), when)
    if node.condition is not None:
        for key in (key for key in node.items if key in conditional):
            yield from _conditional_dimensions(node, node.condition, key, place, when)


def _conditional_dimensions(
    node: Group, condition: Condition, key: str, place: Place, when: tuple[str, ...]
) -> Iterator[Dimension]:
    parent, child = node.items[condition.parent], node.items[key]
    if not isinstance(child, Pairing) or not child.by_loss:
        clause = _condition(parent, condition, key)
        if clause is not None:
            yield from _dimensions(child, (*place, key), (*when, *clause))
        return
    names = {name for active, name in _cases(parent, condition) if key in active}
    rest = names - child.by_loss.keys()
    for losses in (rest, *({loss} for loss in child.by_loss)):
        clause = _condition(parent, condition, key, losses) if losses else None
        if clause is not None:
            variant, conditions = _variant(child, min(losses)), (*when, *clause)
            yield from _pairing_dimensions(variant, (*place, key), conditions)


def _variant(node: Pairing, loss: str) -> Pairing:
    """Return the pairing as drawn under a loss; weights and losses of pairs are drawn under all."""
    parameter, domain = node.of(loss)
    return replace(node, parameter=parameter, domain=domain, by_loss={})


def _is_active(node: Node, condition: Condition, key: str, losses: Collection[str] | None) -> bool:
    """Return whether `key` can be active, under one of these losses if any are given."""
    names = [name for active, name in _cases(node, condition) if key in active]
    return any(losses is None or name in losses for name in names)


def _condition(
    node: Node, condition: Condition, key: str, losses: Collection[str] | None = None
) -> tuple[str, ...] | None:
    """Return the condition under which `key` is active; None: never.

    If `losses` are given, under one of them.
    """
    if not isinstance(node, Choice):
        return () if _is_active(node, condition, key, losses) else None
    opening = [
        str(label)
        for label, option in zip(node.labels, node.options, strict=True)
        if _is_active(option, condition, key, losses)
    ]
    if len(opening) == len(node.labels):
        return ()
    return (f"{node.parameter} = {' | '.join(opening)}",) if opening else None


def _choice_dimensions(node: Choice, place: Place, when: tuple[str, ...]) -> Iterator[Dimension]:
    if len(node.options) == 1:
        yield from _dimensions(node.options[0], place, when)
        return
    text = " | ".join(str(label) for label in node.labels)
    condition = " and ".join(when)
    yield Dimension(node.parameter, dotted(place), "choice", node.labels, text, condition)
    for label, option in zip(node.labels, node.options, strict=True):
        yield from _dimensions(option, place, (*when, f"{node.parameter} = {label}"))


def _pairing_dimensions(node: Pairing, place: Place, when: tuple[str, ...]) -> Iterator[Dimension]:
    domain, name, path = node.domain, node.parameter, dotted(place)
    is_known = domain.is_known
    least, most = (domain.least, domain.most) if is_known else (domain.min, domain.max)
    if domain.sets is not None and len(domain.whole_sets) > 1:
        labels = tuple(", ".join(map(str, pairs)) for pairs in domain.whole_sets)
        yield Dimension(name, path, "pairing", labels, " | ".join(labels), " and ".join(when))
    elif domain.sets is None and least < most:
        values, text = (least, most), f"{least} to {most}"
        yield Dimension(f"{name}.count", path, "pairing", values, text, " and ".join(when))
    for i in range(most):
        later = when if i < least or domain.sets is not None else (*when, f"{name}.count > {i}")
        if domain.sets is None:
            yield from _pair_dimensions(node, i, place, " and ".join(later))
        if node.settings:
            yield from _dimensions(node.settings[i], (*place, i), later)


def _pair_dimensions(node: Pairing, number: int, place: Place, when: str) -> Iterator[Dimension]:
    """Return the parameters of one pair's layers."""
    domain, name = node.domain, f"{node.parameter}[{number}]"
    if domain.is_known and not domain.is_crossed:
        labels = tuple(map(str, domain.candidates))
        if len(labels) > 1:
            path, text = dotted((*place, number)), " | ".join(labels)
            yield Dimension(name, path, "pairing", labels, text, when)
        return
    sides = domain.layers if domain.is_known else domain.sides
    for side, layers in zip(("hint", "guided"), sides, strict=True):
        if isinstance(layers, str) or len(layers) > 1:
            text = _WIDE[layers] if isinstance(layers, str) else " | ".join(layers)
            values = () if isinstance(layers, str) else layers
            path = dotted((*place, number, side))
            yield Dimension(f"{name}.{side}", path, "pairing", values, text, when)


_WIDE = {
    "auto": "the model's stages",
    "blocks": "the model's stages and blocks",
    "all": "every layer of the model",
}


def _either(first: str, second: str) -> str:
    """Return the disjunction of two conditions, where "" is always true."""
    return f"{first} or {second}" if first and second and first != second else first and second
