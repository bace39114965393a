"""Growth of a space: a study may be extended only by points that it did not have before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
from raykd.study.space.pairing import Layers, PairingDomain
from raykd.study.space.reuse import lies_on
from raykd.study.yaml_file import Place, dotted


def lost_values(old: Node, new: Node, place: Place) -> Iterator[str]:
    """Yield the places whose values the new space does not have any more, with the values.

    There are none if every point of the old space is a point of the new one.

    Args:
        old: a part of the space of a study.
        new: the same part after a change.
        place: of both.
    """
    match old, new:
        case Choice(), _:
            yield from _lost_options(old, new, place)
        case _, Choice():
            if not _has_option(new, old, place):
                yield _difference(old, new, place)
        case Group(), Group():
            yield from _lost_keys(old, new, place)
        case Listing(), Listing() if len(old.items) == len(new.items):
            for number, (before, after) in enumerate(zip(old.items, new.items, strict=True)):
                yield from lost_values(before, after, (*place, number))
        case _:
            if not _contains(new, old):
                yield _difference(old, new, place)


def _contains(new: Node, old: Node) -> bool:
    """Return True if a node without others below it allows every value of another one."""
    match old, new:
        case Fixed(), Fixed():
            return old.value == new.value and isinstance(old.value, bool) == isinstance(
                new.value, bool
            )
        case Fixed(), Number():
            return lies_on(old.value, new.domain)
        case Number(), Number():
            return _range_contains(new.domain, old.domain)
        case Pairing(), Pairing():
            return _pairing_contains(new, old)
        case _:
            return False


def _lost_options(old: Choice, new: Node, place: Place) -> Iterator[str]:
    """Yield the options of a choice that a node does not allow."""
    for label, option in zip(old.labels, old.options, strict=True):
        allowed = (
            _has_option(new, option, place)
            if isinstance(new, Choice)
            else not any(lost_values(option, new, place))
        )
        if not allowed:
            yield f"{dotted(place)} without {label}"


def _has_option(choice: Choice, node: Node, place: Place) -> bool:
    return any(not any(lost_values(node, option, place)) for option in choice.options)


def _lost_keys(old: Group, new: Group, place: Place) -> Iterator[str]:
    for key in dict.fromkeys([*old.items, *new.items]):
        before = old.items.get(key, Fixed(place, None))
        yield from lost_values(before, new.items.get(key, Fixed(place, None)), (*place, key))


def _range_contains(new: Range, old: Range) -> bool:
    """Return True if every number of the old range is in the new one."""
    if new.kind != old.kind or not new.low <= old.low <= old.high <= new.high:
        return False
    if new.step is None:
        return True
    step = old.step if old.step is not None else 1 if old.whole else None
    if step is None:
        return old.low == old.high and lies_on(old.low, new)
    return lies_on(old.low, new) and (old.low == old.high or lies_on(new.low + step, new))


def _pairing_contains(new: Pairing, old: Pairing) -> bool:
    """Return True if every set of pairs of the old domain can be drawn from the new one."""
    groups = zip(old.settings, new.settings, strict=False)
    settings = len(old.settings) <= len(new.settings) and not any(
        any(lost_values(before, after, ())) for before, after in groups
    )
    return settings and _domain_contains(new.domain, old.domain)


def _domain_contains(new: PairingDomain, old: PairingDomain) -> bool:
    if new.min > old.min or new.max < old.max or new.order not in (old.order, "any"):
        return False
    if old.sets is not None or new.sets is not None:
        return old.sets is not None and {*old.sets} <= {*(new.sets or ())}
    if old.pairs is not None or new.pairs is not None:
        return old.pairs is not None and {*old.pairs} <= {*(new.pairs or ())}
    sides = zip(old.sides, new.sides, strict=True)
    return all(_layers_contain(after, before) for before, after in sides)


def _layers_contain(new: Layers, old: Layers) -> bool:
    """Return True for the same keyword, or for a list that has all layers in the same order."""
    if isinstance(old, str) or isinstance(new, str):
        return new == old
    return _is_subsequence(old, new)


def _is_subsequence(short: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in short)


def _difference(old: Node, new: Node, place: Place) -> str:
    return f"{dotted(place)}: {_text(old)} -> {_text(new)}"


def _text(node: Node) -> str:
    """Return a part of a space in short: a value, the options of a choice, the ends of a range."""
    match node:
        case Fixed():
            return str(label_of(node.value))
        case Number():
            return str(node.domain)
        case Choice():
            return " | ".join(map(str, node.labels))
        case Pairing():
            return "a pairing"
        case Listing():
            return f"[{', '.join(map(_text, node.items))}]"
        case Group():
            return _group_text(node.items)


def _group_text(items: Mapping[str, Node]) -> str:
    name = items.get("name")
    return _text(name) if name is not None else f"{{{', '.join(items)}}}"
