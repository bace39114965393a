"""How far a space extends: its parameters, and how many points it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from raykd.study.gates import Gate
from raykd.study.nodes import (
    Choice,
    Fixed,
    Group,
    Listing,
    Node,
    Number,
    Pairing,
    nodes_of,
)
from raykd.study.place import Place, dotted
from raykd.study.suggest import Scalar


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
            return node.domain.count


def _count_group(node: Group) -> int:
    if node.gate is None:
        return _product(_count(item) for item in node.items.values())
    gate = node.gate
    free = _product(
        _count(item) for key, item in node.items.items() if key != gate.on and key not in gate.keys
    )
    cases = _cases(node.items[gate.on], gate)
    return free * sum(
        times * _product(_count(node.items[key]) for key in opened if key in node.items)
        for opened, times in cases.items()
    )


def _cases(node: Node, gate: Gate) -> Counter[frozenset[str]]:
    """For each set of keys the gate may open, by how many values of `node` it does."""
    if isinstance(node, Choice):
        return sum((_cases(option, gate) for option in node.options), Counter())
    if isinstance(node, Group):
        name = node.items.get("name")
        value = {"name": name.value} if isinstance(name, Fixed) else {}
        return Counter({gate.opens(value): _count(node)})
    return Counter({gate.opens(node.value if isinstance(node, Fixed) else {}): _count(node)})


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
            condition = _condition(node.items[node.gate.on], node.gate, key)
            if condition is not None:
                yield from _dimensions(node.items[key], (*place, key), (*when, *condition))


def _condition(node: Node, gate: Gate, key: str) -> tuple[str, ...] | None:
    """When the gate on `node` opens for `key`; None: never."""
    if not isinstance(node, Choice):
        return () if any(key in opened for opened in _cases(node, gate)) else None
    opening = [
        str(label)
        for label, option in zip(node.labels, node.options, strict=True)
        if any(key in opened for opened in _cases(option, gate))
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
    domain, name = node.domain, node.parameter
    known = domain.hint is not None and domain.guided is not None
    most = domain.most if known else domain.max
    if most > 1:
        values, text = (1, most), f"1 to {most}"
        yield Dimension(f"{name}.count", dotted(place), "pairing", values, text, " and ".join(when))
    for i in range(most):
        later = when if i == 0 else (*when, f"{name}.count > {i}")
        for side, layers in zip(("hint", "guided"), domain.sides, strict=True):
            if layers is None or len(layers) > 1:
                text = "the model's stages" if layers is None else " | ".join(layers)
                path, condition = dotted((*place, i, side)), " and ".join(later)
                named = f"{name}[{i}].{side}"
                yield Dimension(named, path, "pairing", layers or (), text, condition)


def _either(one: str, other: str) -> str:
    """The condition that one of two holds; an empty one always does."""
    return f"{one} or {other}" if one and other and one != other else one and other
