"""What one study's space can draw again of a point of another's.

The other's concrete study is laid over the tree of this one: where a value is left open here and
the other's lies within, it is taken; branches are told by the names of their options.  So a found
student or distillation can begin a search on other data, or in a somewhat different space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raykd.errors import Infeasible
from raykd.study.space.conditions import name_of
from raykd.study.space.domains import (
    Choice,
    Fixed,
    Group,
    Listing,
    Node,
    Number,
    Pairing,
    Range,
    label_of,
)
from raykd.study.space.pairing import LayerPair, bare
from raykd.study.space.sampling import Scalar
from raykd.study.space.space import CLOSED, Space
from raykd.study.yaml_file import Place, dotted


@dataclass
class Transfer:
    """What was taken over.

    Attributes:
        params: the parameters of this space, by name.
        taken: the places of the other study that they come from, dotted.
        left: place -> why its value was not taken.
        known: the places that both studies have.
    """

    params: dict[str, Scalar] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def take(self, parameter: str, value: Scalar, place: Place) -> bool:
        self.params[parameter] = value
        self.taken.add(dotted(place))
        return True

    def leave(self, place: Place, why: str) -> bool:
        self.left.setdefault(dotted(place), why)
        return False

    def add(self, other: Transfer) -> None:
        self.params |= other.params
        self.taken |= other.taken
        self.known |= other.known
        self.left = {**other.left, **self.left}

    def reason(self, path: str) -> str:
        """Why the value at `path` was not taken; the nearest place around it that was left tells.

        Empty where it was taken, or where this study has just that value fixed.
        """
        if path in self.taken:
            return ""
        around = [place for place in self.left if _lies_in(path, place)]
        if around:
            return self.left[max(around, key=len)]
        return "" if path in self.known else "this study leaves nothing open there"


def transfer_values(space: Space, data: Mapping[str, Any]) -> Transfer:
    """What of a concrete study the space can draw again.

    Args:
        space: of the study to be begun, its pairings known.
        data: the other study as plain data; parts may be missing.
    """
    walk = _Walk()
    for key, node in space.root.items.items():
        if key in CLOSED or key not in data:
            continue
        if key == "data":  # the data may be others; what is done to them may be the same
            walk.augmentations(node, data[key])
        else:
            walk.fit(node, data[key], (key,))
    return walk.found


class _Walk:
    """Lays values over the tree."""

    def __init__(self) -> None:
        self.found = Transfer()

    def fit(self, node: Node, value: Any, place: Place) -> bool:
        """Take what fits at and below a place; returns whether the value as a whole is the
        node's, but for numbers that lie elsewhere."""
        self.found.known.add(dotted(place))
        match node:
            case Fixed():
                return _names(node, value) or self.found.leave(
                    place, f"this study has {label_of(node.value)} there"
                )
            case Number():
                return self._number(node, value, place)
            case Choice():
                return self._choice(node, value, place)
            case Listing():
                return self._listing(node, value, place)
            case Group():
                return self._group(node, value, place)
            case Pairing():
                return self._pairing(node, value, place, "")

    def augmentations(self, node: Node, value: Any) -> None:
        here = node.items if isinstance(node, Group) else {}
        there = value if isinstance(value, Mapping) else {}
        if "augment" in here and "augment" in there:
            self.fit(here["augment"], there["augment"], ("data", "augment"))

    def _number(self, node: Number, value: Any, place: Place) -> bool:
        if not _lies_on(node.domain, value):
            return self.found.leave(place, f"it is not within {node.domain}")
        value = int(value) if node.domain.whole else float(value)
        return self.found.take(node.parameter, value, place)

    def _choice(self, node: Choice, value: Any, place: Place) -> bool:
        options = list(_fitting(node, value, place))
        if not options:
            labels = " | ".join(map(str, node.labels))
            return self.found.leave(place, f"it is none of {labels}")
        label, inside = options[0]
        self.found.add(inside)
        if len(node.options) > 1:
            self.found.take(node.parameter, label, place)
        return True

    def _listing(self, node: Listing, value: Any, place: Place) -> bool:
        if not isinstance(value, list):
            return self.found.leave(place, "this study has a list there")
        if place == ("knowledge",):
            return self._terms(node, value)
        pairs = list(zip(node.items, value, strict=False))
        fits = [self.fit(item, held, (*place, i)) for i, (item, held) in enumerate(pairs)]
        return all(fits) and len(node.items) == len(value)

    def _terms(self, node: Listing, value: Sequence[Any]) -> bool:
        """Terms go by their losses: each takes over the other study's first one of such a loss,
        the one of its own number before others."""
        todo = {number for number, term in enumerate(value) if isinstance(term, Mapping)}
        for number, item in enumerate(node.items):
            fit = [other for other in todo if _has_loss(item, value[other])]
            if fit:
                other = number if number in fit else min(fit)
                todo.remove(other)
                self._moved(item, value[other], number, other)
        for other in todo:
            name = name_of(value[other].get("loss")) or "none"
            self.found.leave(("knowledge", other), f"no term here may have the loss '{name}'")
        return not todo

    def _moved(self, node: Node, value: Any, number: int, other: int) -> None:
        """Fit a term, and say its places by its number in the other study."""
        here, there = f"knowledge[{number}]", f"knowledge[{other}]"
        inside = _Walk()
        inside.fit(node, value, ("knowledge", number))

        def moved(place: str) -> str:
            return there + place.removeprefix(here)

        found = inside.found
        self.found.params |= found.params
        self.found.taken |= set(map(moved, found.taken))
        self.found.known |= set(map(moved, found.known))
        self.found.left |= {moved(place): why for place, why in found.left.items()}

    def _group(self, node: Group, value: Any, place: Place) -> bool:
        if not _names(node, value):
            return self.found.leave(place, f"this study has {_name(node) or 'a mapping'} there")
        if not isinstance(value, Mapping):
            return True
        on = node.gate.on if node.gate is not None else None
        fits = {
            key: self._below(node, key, value, place)
            for key in sorted(node.items, key=lambda key: key != on)
            if key in value
        }
        return all(fits.values())

    def _below(self, node: Group, key: str, value: Mapping[str, Any], place: Place) -> bool:
        inner, item = (*place, key), node.items[key]
        if isinstance(item, Pairing):
            return self._pairing(item, value[key], inner, name_of(value.get("loss")))
        return self.fit(item, value[key], inner)

    def _pairing(self, node: Pairing, value: Any, place: Place, loss: str) -> bool:
        self.found.known.add(dotted(place))
        if not value:
            return self.found.leave(place, "it names no pairs")
        name, domain = node.of(loss)
        held = {LayerPair(pair["hint"], pair["guided"]): pair for pair in value}
        try:
            params, pairs = domain.params_of([*held], name)
        except Infeasible as why:
            return self.found.leave(place, str(why))
        self.found.params |= params
        self.found.taken |= {dotted(place), *_inside(place, len(pairs))}
        for number, pair in enumerate(pairs if node.own else ()):
            self.fit(node.own[number], held[bare(pair)], (*place, number))
        return True


def _inside(place: Place, count: int) -> Iterator[str]:
    for number in range(count):
        yield dotted((*place, number))
        yield from (dotted((*place, number, side)) for side in ("hint", "guided"))


def _fitting(node: Choice, value: Any, place: Place) -> Iterator[tuple[Scalar, Transfer]]:
    """The options the value may be one of, with what is taken inside them; the best first.

    Of several options of one name, that which has the value's own fixed values.
    """
    found: list[tuple[bool, int, Scalar, Transfer]] = []
    for number, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
        inside = _Walk()
        if not _names(option, value):
            continue
        whole = inside.fit(option, value, place)
        found.append((not whole, number, label, inside.found))
    alone = len(found) == 1 and not isinstance(node.options[found[0][1]], Number)
    for less, _, label, inside in sorted(found, key=lambda one: one[:2]):
        if not less or alone:
            yield label, inside


def _names(node: Node, value: Any) -> bool:
    """Whether the value may be the node's, by its name or as a scalar."""
    if isinstance(node, Choice):
        return any(_names(option, value) for option in node.options)
    if isinstance(node, Number):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(node, Pairing | Listing):
        return isinstance(value, list)
    if isinstance(node, Group):
        return isinstance(value, Mapping | str) and _name(node) in ("", name_of(value))
    if isinstance(node.value, str) and isinstance(value, Mapping):
        return name_of(value) == node.value
    same = isinstance(node.value, bool) == isinstance(value, bool)
    return same and node.value == value


def _name(group: Group) -> str:
    held = group.items.get("name")
    return str(held.value) if isinstance(held, Fixed) else ""


def _has_loss(term: Node, other: Mapping[str, Any]) -> bool:
    """Whether a term of this study may have the loss of another's."""
    if isinstance(term, Choice):
        return any(_has_loss(option, other) for option in term.options)
    if not isinstance(term, Group) or "loss" not in term.items:
        return False
    return _names(term.items["loss"], other.get("loss"))


def params_for_pairs(space: Space, pairs: Sequence[LayerPair]) -> dict[str, Any]:
    """The parameters with which the first term that may draws these pairs; {} where none may."""
    for node in space.pairings:
        try:
            return node.domain.params_of(pairs, node.parameter)[0]
        except Infeasible:
            continue
    return {}


def open_paths(space: Space) -> tuple[str, ...]:
    """The places that a space leaves open, a pairing as a whole, in the order of drawing."""
    found: dict[str, None] = {}
    for dimension in space.dimensions:
        pairs, inside, _ = dimension.path.partition(".pairs[")
        found[f"{pairs}.pairs" if inside else pairs] = None
    return tuple(found)


def _lies_in(path: str, place: str) -> bool:
    return path == place or (path.startswith(place) and path[len(place)] in ".[") or not place


def _lies_on(domain: Range, value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if not domain.low <= value <= domain.high or (domain.whole and value != int(value)):
        return False
    steps = (value - domain.low) / domain.step if domain.step is not None else 0.0
    return abs(steps - round(steps)) < 1e-8
