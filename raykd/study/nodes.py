"""The tree of a study: plain values and, in place of some, domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raykd.study.domains import Range
from raykd.study.place import Place
from raykd.study.suggest import Scalar

if TYPE_CHECKING:
    from raykd.study.gates import Gate
    from raykd.study.pairings import PairingDomain


@dataclass(frozen=True)
class Fixed:
    """A scalar."""

    source: Place
    value: Scalar


@dataclass(frozen=True)
class Listing:
    """A list."""

    source: Place
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Group:
    """A mapping; some of its values are drawn only if its gate opens for them."""

    source: Place
    items: Mapping[str, Node]
    gate: Gate | None = None


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    source: Place
    parameter: str
    labels: tuple[Scalar, ...]
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Number:
    """A number within a range."""

    source: Place
    parameter: str
    domain: Range


@dataclass(frozen=True)
class Pairing:
    """A set of layer pairs.

    Attributes:
        domain: of all losses that its term may have.
        own: for the first pair, the second ..., what is drawn for it alone.
        by_loss: narrower domains of some of these losses, by name.
    """

    source: Place
    parameter: str
    domain: PairingDomain
    own: tuple[Group, ...] = ()
    by_loss: Mapping[str, PairingDomain] = field(default_factory=dict)

    def of(self, loss: str) -> tuple[str, PairingDomain]:
        """The parameter and the domain under a loss; its name is part of a narrower one's."""
        if loss in self.by_loss:
            return f"{self.parameter}.{loss}", self.by_loss[loss]
        return self.parameter, self.domain


Node = Fixed | Listing | Group | Choice | Number | Pairing


def _inner(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Listing):
        return node.items
    if isinstance(node, Group):
        return tuple(node.items.values())
    if isinstance(node, Pairing):
        return node.own
    return node.options if isinstance(node, Choice) else ()


def nodes_of(node: Node) -> Iterator[Node]:
    """The node and all that lie below it."""
    yield node
    for inner in _inner(node):
        yield from nodes_of(inner)


def domains_of(node: Node) -> Iterator[Choice | Number | Pairing]:
    """Those of them that are domains."""
    for found in nodes_of(node):
        if isinstance(found, Choice | Number | Pairing):
            yield found


def is_open(node: Node) -> bool:
    """Whether there is a domain at or below the node."""
    return next(domains_of(node), None) is not None


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """The tree with `change` applied to each node, the inner ones first."""
    if isinstance(node, Listing):
        node = replace(node, items=tuple(rebuilt(item, change) for item in node.items))
    elif isinstance(node, Group):
        items = {key: rebuilt(item, change) for key, item in node.items.items()}
        node = replace(node, items=items)
    elif isinstance(node, Choice):
        node = replace(node, options=tuple(rebuilt(option, change) for option in node.options))
    elif isinstance(node, Pairing):
        own = tuple(group for one in node.own if isinstance(group := rebuilt(one, change), Group))
        node = replace(node, own=own)
    return change(node)
