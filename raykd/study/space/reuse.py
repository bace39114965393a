"""Transfer of a trial's values to the space of another study.

The concrete study of the trial is matched with the tree of the space.  Open values are taken over
if the space allows them; branches are matched by the names of their options.  So a search can begin
with a student or a distillation that was found on other data or in a different space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from raykd.errors import Infeasible
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
    name_of,
)
from raykd.study.space.pairing import LayerPair, bare
from raykd.study.space.sampling import Scalar
from raykd.study.space.space import CLOSED, Space
from raykd.study.yaml_file import Json, Place, dotted


@dataclass
class Transfer:
    """Values that were taken over.

    Attributes:
        params: the parameters of this space, by name.
        used: dotted places of the other study that they come from.
        rejected: dotted place -> reason why its value was not taken over.
        shared: dotted places that both studies have.
    """

    params: dict[str, Scalar] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def take(self, parameter: str, value: Scalar, place: Place) -> bool:
        self.params[parameter] = value
        self.used.add(dotted(place))
        return True

    def reject(self, place: Place, reason: str) -> bool:
        self.rejected.setdefault(dotted(place), reason)
        return False

    def add(self, other: Transfer) -> None:
        self.params |= other.params
        self.used |= other.used
        self.shared |= other.shared
        self.rejected = {**other.rejected, **self.rejected}

    def reason(self, path: str) -> str:
        """Return the reason why the value at `path` was not reused, or that of a parent.

        "" if it was reused, or if this study fixes the same value.
        """
        if path in self.used:
            return ""
        around = [place for place in self.rejected if _lies_in(path, place)]
        if around:
            return self.rejected[max(around, key=len)]
        return "" if path in self.shared else "this study leaves nothing open there"


def transfer_values(space: Space, data: Mapping[str, Json]) -> Transfer:
    """Match a concrete study with a space and take over the values that the space allows.

    Args:
        space: of the new study, the layers of its pairings named.
        data: the other study as plain data; parts may be missing.
    """
    walk = _Walk()
    for key, node in space.root.items.items():
        if key in CLOSED or key not in data:
            continue
        if key == "data":  # another data set may have the same augmentation
            walk.augmentations(node, data[key])
        else:
            walk.fit(node, data[key], (key,))
    return walk.result


class _Walk:
    """Matches values with the tree of a space."""

    def __init__(self) -> None:
        self.result = Transfer()

    def fit(self, node: Node, value: Json, place: Place) -> bool:
        """Take over the values at and below a place.

        Returns whether the whole value matches, apart from numbers out of range.
        """
        self.result.shared.add(dotted(place))
        match node:
            case Fixed():
                return _names(node, value) or self.result.reject(
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

    def augmentations(self, node: Node, value: Json) -> None:
        node_items = node.items if isinstance(node, Group) else {}
        value_items = value if isinstance(value, Mapping) else {}
        if "augment" in node_items and "augment" in value_items:
            self.fit(node_items["augment"], value_items["augment"], ("data", "augment"))

    def _number(self, node: Number, value: Json, place: Place) -> bool:
        if not lies_on(value, node.domain):
            return self.result.reject(place, f"it is outside {node.domain}")
        value = int(value) if node.domain.whole else float(value)
        return self.result.take(node.parameter, value, place)

    def _choice(self, node: Choice, value: Json, place: Place) -> bool:
        options = list(_fitting(node, value, place))
        if not options:
            labels = " | ".join(map(str, node.labels))
            return self.result.reject(place, f"it is not one of {labels}")
        label, result = options[0]
        self.result.add(result)
        if len(node.options) > 1:
            self.result.take(node.parameter, label, place)
        return True

    def _listing(self, node: Listing, value: Json, place: Place) -> bool:
        if not isinstance(value, list):
            return self.result.reject(place, "this study has a list there")
        if place == ("knowledge",):
            return self._terms(node, value)
        pairs = list(zip(node.items, value, strict=False))
        fits = [self.fit(item, each, (*place, i)) for i, (item, each) in enumerate(pairs)]
        return all(fits) and len(node.items) == len(value)

    def _terms(self, node: Listing, value: Sequence[Json]) -> bool:
        """Match terms by their losses: each takes the other study's term of the same number if it
        has such a loss, otherwise the first one that has."""
        todo = {number: term for number, term in enumerate(value) if isinstance(term, Mapping)}
        for number, item in enumerate(node.items):
            fit = [other for other in todo if _has_loss(item, todo[other])]
            if fit:
                other = number if number in fit else min(fit)
                self._moved(item, todo.pop(other), number, other)
        for other, term in todo.items():
            name = name_of(term.get("loss")) or "none"
            self.result.reject(("knowledge", other), f"no term here may have the loss '{name}'")
        return not todo

    def _moved(self, node: Node, value: Json, number: int, other: int) -> None:
        """Match a term, and record its places under its number in the other study."""
        new_place, old_place = f"knowledge[{number}]", f"knowledge[{other}]"
        walk = _Walk()
        walk.fit(node, value, ("knowledge", number))

        def moved(place: str) -> str:
            return old_place + place.removeprefix(new_place)

        nested = walk.result
        self.result.params |= nested.params
        self.result.used |= set(map(moved, nested.used))
        self.result.shared |= set(map(moved, nested.shared))
        self.result.rejected |= {moved(place): reason for place, reason in nested.rejected.items()}

    def _group(self, node: Group, value: Json, place: Place) -> bool:
        if not _names(node, value):
            return self.result.reject(place, f"this study has {_name(node) or 'a mapping'} there")
        if not isinstance(value, Mapping):
            return True
        parent = node.condition.parent if node.condition is not None else None
        fits = {
            key: self._below(node, key, value, place)
            for key in sorted(node.items, key=lambda key: key != parent)
            if key in value
        }
        return all(fits.values())

    def _below(self, node: Group, key: str, value: Mapping[str, Json], place: Place) -> bool:
        inner, item = (*place, key), node.items[key]
        if isinstance(item, Pairing):
            return self._pairing(item, value[key], inner, name_of(value.get("loss")))
        return self.fit(item, value[key], inner)

    def _pairing(self, node: Pairing, value: Any, place: Place, loss: str) -> bool:
        self.result.shared.add(dotted(place))
        if not value:
            return self.result.reject(place, "it has no pairs")
        name, domain = node.of(loss)
        by_layers = {LayerPair(pair["hint"], pair["guided"]): pair for pair in value}
        try:
            params, pairs = domain.params_of([*by_layers], name)
        except Infeasible as error:
            return self.result.reject(place, str(error))
        self.result.params |= params
        self.result.used |= {dotted(place), *_pair_places(place, len(pairs))}
        for number, pair in enumerate(pairs if node.settings else ()):
            self.fit(node.settings[number], by_layers[bare(pair)], (*place, number))
        return True


def _pair_places(place: Place, count: int) -> Iterator[str]:
    for number in range(count):
        yield dotted((*place, number))
        yield from (dotted((*place, number, side)) for side in ("hint", "guided"))


def _fitting(node: Choice, value: Json, place: Place) -> Iterator[tuple[Scalar, Transfer]]:
    """Yield the options that match the value, with the values that they reuse; the best first.

    Among options of one name, the one with the same fixed values comes first.
    """
    matches: list[tuple[bool, int, Scalar, Transfer]] = []
    for number, (label, option) in enumerate(zip(node.labels, node.options, strict=True)):
        walk = _Walk()
        if not _names(option, value):
            continue
        whole = walk.fit(option, value, place)
        matches.append((not whole, number, label, walk.result))
    alone = len(matches) == 1 and not isinstance(node.options[matches[0][1]], Number)
    for less, _, label, result in sorted(matches, key=lambda match: match[:2]):
        if not less or alone:
            yield label, result


def _names(node: Node, value: Json) -> bool:
    """Return whether the value matches the node, by its name or as a scalar."""
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
    name = group.items.get("name")
    return str(name.value) if isinstance(name, Fixed) else ""


def _has_loss(term: Node, other: Mapping[str, Json]) -> bool:
    """Return whether a term of this study allows the loss of another study's term."""
    if isinstance(term, Choice):
        return any(_has_loss(option, other) for option in term.options)
    if not isinstance(term, Group) or "loss" not in term.items:
        return False
    return _names(term.items["loss"], other.get("loss"))


def params_for_pairs(space: Space, pairs: Sequence[LayerPair]) -> dict[str, Scalar]:
    """Return the parameters with which a term (the first that can) draws these pairs; else {}."""
    for node in space.pairings:
        try:
            return node.domain.params_of(pairs, node.parameter)[0]
        except Infeasible:
            continue
    return {}


def open_paths(space: Space) -> tuple[str, ...]:
    """Return the open places of a space in the order of drawing; a pairing counts as one."""
    paths: dict[str, None] = {}
    for dimension in space.dimensions:
        pairs, is_pair, _ = dimension.path.partition(".pairs[")
        paths[f"{pairs}.pairs" if is_pair else pairs] = None
    return tuple(paths)


def _lies_in(path: str, place: str) -> bool:
    return path == place or (path.startswith(place) and path[len(place)] in ".[") or not place


def lies_on(value: Json, domain: Range) -> TypeGuard[float]:
    """Return True if a value is a number of the domain."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if not domain.low <= value <= domain.high or (domain.whole and value != int(value)):
        return False
    steps = (value - domain.low) / domain.step if domain.step is not None else 0.0
    return abs(steps - round(steps)) < 1e-8
