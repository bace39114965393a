"""How far a space extends: its parameters, and how many points it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from raykd.study.space.conditions import Gate, name_of
from raykd.study.space.domains import (
    Choice,
    Fixed,
    Group,
    Listing,
    Node,
    Number,
    Pairing,
    nodes_of,
)
from raykd.study.space.sampling import Scalar
from raykd.study.yaml_file import Place, dotted


@dataclass(frozen=True)
class Dimension:
    """One parameter of the space, as a sampler sees it.

    Attributes:
        name: the parameter's name.
        path: the place it sets, dotted.
        kind: the domain: choice, uniform, loguniform, int, logint, pairing.
        values: the options, or the low and the high end.
        text: `values`, to be read.
        when: in which branches it is drawn; empty: always.
    """

    name: str
    path: str
    kind: str
    values: tuple[Scalar, ...]
    text: str
    when: str = ""


@dataclass(frozen=True)
class Size:
    """How large a space is.

    Attributes:
        combinations: number of points, continuous values not counted.
        continuous: number of continuous parameters.
    """

    combinations: int
    continuous: int

    @property
    def points(self) -> int | None:
        """Number of points; None: infinitely many."""
        return None if self.continuous else self.combinations


def size_of(root: Group) -> Size:
    """How large the space below `root` is."""
    continuous = {
        node.parameter
        for node in nodes_of(root)
        if isinstance(node, Number) and node.domain.count is None
    }
    return Size(_count(root), len(continuous))


def dimensions_of(root: Group) -> tuple[Dimension, ...]:
    """The parameters below `root`, in the order in which they are drawn."""
    merged: dict[str, Dimension] = {}
    for found in _dimensions(root, (), ()):
        known = merged.get(found.name)
        when = found.when if known is None else _either(known.when, found.when)
        merged[found.name] = replace(found, when=when)
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
    if node.gate is None:
        return _product(_count(item) for item in node.items.values())
    gate = node.gate
    free = _product(
        _count(item) for key, item in node.items.items() if key != gate.on and key not in gate.keys
    )
    cases = _cases(node.items[gate.on], gate)
    return free * sum(
        times * _product(_count_gated(node.items[key], name) for key in opened if key in node.items)
        for (opened, name), times in cases.items()
    )


def _count_gated(node: Node, name: str) -> int:
    return _count_pairing(node, name) if isinstance(node, Pairing) else _count(node)


def _count_pairing(node: Pairing, loss: str) -> int:
    """The sets of pairs under a loss, each with what may be drawn for its pairs alone."""
    each = _count(node.own[0]) if node.own else 1
    _, domain = node.of(loss)
    return sum(times * each**size for size, times in domain.sizes.items())


Case = tuple[frozenset[str], str]
"""The keys that a gate opens, and the name of the option for which it does."""


def _cases(node: Node, gate: Gate) -> Counter[Case]:
    """For each case, by how many values of `node` it comes about."""
    if isinstance(node, Choice):
        return sum((_cases(option, gate) for option in node.options), Counter())
    if isinstance(node, Group):
        name = node.items.get("name")
        value: Any = {"name": name.value} if isinstance(name, Fixed) else {}
    else:
        value = node.value if isinstance(node, Fixed) else {}
    return Counter({(gate.opens(value), name_of(value)): _count(node)})


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
    gated = node.gate.keys if node.gate is not None else frozenset()
    for key, item in node.items.items():
        if key not in gated:
            yield from _dimensions(item, (*place, key), when)
    if node.gate is not None:
        for key in (key for key in node.items if key in gated):
            yield from _gated_dimensions(node, node.gate, key, place, when)


def _gated_dimensions(
    node: Group, gate: Gate, key: str, place: Place, when: tuple[str, ...]
) -> Iterator[Dimension]:
    on, held = node.items[gate.on], node.items[key]
    if not isinstance(held, Pairing) or not held.by_loss:
        condition = _condition(on, gate, key)
        if condition is not None:
            yield from _dimensions(held, (*place, key), (*when, *condition))
        return
    names = {name for opened, name in _cases(on, gate) if key in opened}
    rest = names - held.by_loss.keys()
    for losses in (rest, *({loss} for loss in held.by_loss)):
        condition = _condition(on, gate, key, losses) if losses else None
        if condition is not None:
            variant, inside = _variant(held, min(losses)), (*when, *condition)
            yield from _pairing_dimensions(variant, (*place, key), inside)


def _variant(node: Pairing, loss: str) -> Pairing:
    """The pairing as it is drawn under a loss; what its pairs have of their own, under all."""
    parameter, domain = node.of(loss)
    return replace(node, parameter=parameter, domain=domain, by_loss={})


def _opens(node: Node, gate: Gate, key: str, losses: Collection[str] | None) -> bool:
    """Whether the gate opens for `key`, for one of these names if any are given."""
    names = [name for opened, name in _cases(node, gate) if key in opened]
    return any(losses is None or name in losses for name in names)


def _condition(
    node: Node, gate: Gate, key: str, losses: Collection[str] | None = None
) -> tuple[str, ...] | None:
    """When the gate on `node` opens for `key`, for one of these names if any are given; None:
    never."""
    if not isinstance(node, Choice):
        return () if _opens(node, gate, key, losses) else None
    opening = [
        str(label)
        for label, option in zip(node.labels, node.options, strict=True)
        if _opens(option, gate, key, losses)
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
    known = domain.is_known
    least, most = (domain.least, domain.most) if known else (domain.min, domain.max)
    if domain.sets is not None and len(domain.whole_sets) > 1:
        labels = tuple(", ".join(map(str, one)) for one in domain.whole_sets)
        yield Dimension(name, path, "pairing", labels, " | ".join(labels), " and ".join(when))
    elif domain.sets is None and least < most:
        values, text = (least, most), f"{least} to {most}"
        yield Dimension(f"{name}.count", path, "pairing", values, text, " and ".join(when))
    for i in range(most):
        later = when if i < least or domain.sets is not None else (*when, f"{name}.count > {i}")
        if domain.sets is None:
            yield from _pair_dimensions(node, i, place, " and ".join(later))
        if node.own:
            yield from _dimensions(node.own[i], (*place, i), later)


def _pair_dimensions(node: Pairing, number: int, place: Place, when: str) -> Iterator[Dimension]:
    """Those of one pair's layers."""
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


def _either(one: str, other: str) -> str:
    """The condition that one of two holds; an empty one always does."""
    return f"{one} or {other}" if one and other and one != other else one and other
