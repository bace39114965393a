"""Domains: the values a study leaves open, as a study file writes them.

`{choice: [...]}`, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{int: [a, b]}`, `{logint: [a, b]}`
and `{pairing: {...}}` (pairings.py); `uniform` and `int` may have a `step` beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raykd.arguments import near as near
from raykd.study.space.sampling import Scalar, Suggest
from raykd.study.yaml_file import Place

if TYPE_CHECKING:
    from raykd.study.space.conditions import Gate
    from raykd.study.space.pairing import PairingDomain


NumberKind = Literal["uniform", "loguniform", "int", "logint"]

NUMBERS: tuple[NumberKind, ...] = ("uniform", "loguniform", "int", "logint")
DOMAINS = ("choice", *NUMBERS, "pairing")
STEPPED = ("uniform", "int")


class Malformed(ValueError):
    """A domain that is not well written; `fix` says how to write it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


def domain_kind(value: Any) -> str | None:
    """The domain that `value` writes down; None for a plain value.

    Raises:
        Malformed: the domain's key has company.
    """
    if not isinstance(value, Mapping):
        return None
    kinds = [kind for kind in DOMAINS if kind in value]
    if not kinds:
        return None
    company = [key for key in value if key != kinds[0]]
    if kinds[0] in STEPPED and "step" in company:
        company.remove("step")
    if company == ["step"]:
        raise Malformed(f"`{kinds[0]}` takes no step", "only `uniform` and `int` take one")
    if company:
        others = ", ".join(f"`{key}`" for key in company)
        fix = "a domain stands in place of a value, alone; put what belongs to an option inside it"
        raise Malformed(f"`{kinds[0]}` stands beside {others}", fix)
    return kinds[0]


@dataclass(frozen=True)
class Range:
    """A numeric domain.

    Attributes:
        kind: as it is written.
        low, high: its ends, both of which it holds; `high` lies on the grid that `step` makes.
        step: the grid's distance; None: every value (whole numbers for `int` and `logint`).
    """

    kind: NumberKind
    low: float
    high: float
    step: float | None = None

    @property
    def whole(self) -> bool:
        return self.kind in ("int", "logint")

    @property
    def log(self) -> bool:
        return self.kind in ("loguniform", "logint")

    @property
    def count(self) -> int | None:
        """How many values it holds; None: infinitely many."""
        if self.low == self.high:
            return 1
        if self.step is None and not self.whole:
            return None
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def draw(self, suggest: Suggest, name: str) -> float:
        if not self.whole:
            drawn = suggest.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
            return float(drawn)
        low, high, step = int(self.low), int(self.high), int(self.step or 1)
        return int(suggest.suggest_int(name, low, high, step=step, log=self.log))

    def __str__(self) -> str:
        step = f", step {self.step:g}" if self.step is not None else ""
        return f"{self.low:g} to {self.high:g}{step}{', log' if self.log else ''}"


def read_range(kind: NumberKind, bounds: Any, step: Any = None) -> Range:
    """The numeric domain `{kind: bounds, step: step}`.

    Raises:
        Malformed: bounds that are not two numbers, are reversed, or do not fit the kind; a step
            that is not above 0 or does not fit between them.
    """
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
        raise Malformed(f"`{kind}` takes two numbers; got {bounds!r}", f"write {{{kind}: [1, 16]}}")
    low, high = bounds
    if low > high:
        fix = f"write {{{kind}: [{high}, {low}]}}"
        raise Malformed(f"reversed bounds {bounds}; the lower comes first", fix)
    if kind in ("int", "logint") and not all(isinstance(bound, int) for bound in bounds):
        fix = f"for other numbers write `{'uniform' if kind == 'int' else 'loguniform'}`"
        raise Malformed(f"`{kind}` takes whole numbers; got {bounds}", fix)
    if kind in ("loguniform", "logint") and low <= 0:
        fix = f"raise the lower bound, or write `{'uniform' if kind == 'loguniform' else 'int'}`"
        raise Malformed(f"`{kind}` needs bounds above 0; got {bounds}", fix)
    if step is None:
        return Range(kind, low, high)
    return _with_step(Range(kind, low, high), step)


def _with_step(domain: Range, step: Any) -> Range:
    if not _is_number(step) or step <= 0:
        raise Malformed(f"a step is a number above 0; got {step!r}")
    if domain.kind == "int" and not isinstance(step, int):
        raise Malformed(f"the step of `int` is a whole number; got {step}")
    if step > domain.high - domain.low:
        what = f"step {step} is greater than the range {domain.low:g} to {domain.high:g}"
        raise Malformed(what, "take a smaller step, or a wider range")
    steps = math.floor((domain.high - domain.low) / step + 1e-9)
    return Range(domain.kind, domain.low, domain.low + steps * step, step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label_of(value: Any) -> Scalar:
    """What an option of a choice is called: its `name`, or the scalar itself."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str):
            return name
        kind = next((kind for kind in DOMAINS if kind in value), None)
        return kind or _short(", ".join(_held(key, held) for key, held in value.items()))
    if isinstance(value, list):
        return _short("[" + ", ".join(str(label_of(held)) for held in value) + "]")
    return value


def _held(key: str, value: Any) -> str:
    """A value under its key; where it is open itself, the key alone."""
    return key if domain_kind(value) is not None else f"{key}={label_of(value)}"


def labels_of(options: Sequence[Any]) -> tuple[Scalar, ...]:
    """A label for each option, no two equal; stable while the options are."""
    labels = [label_of(option) for option in options]
    for label in {name for name in labels if isinstance(name, str) and labels.count(name) > 1}:
        same = [place for place, other in enumerate(labels) if other == label]
        for place in same:
            labels[place] = _told_apart(options[place], [options[other] for other in same], label)
    for place, label in enumerate(labels):
        not_equal_to_itself = isinstance(label, float) and math.isnan(label)
        if not_equal_to_itself or label in labels[:place]:  # 1 beside True, say
            text = str(label)
            labels[place] = text if text not in labels else f"{text}#{place + 1}"
    return tuple(labels)


def _told_apart(option: Any, same: Sequence[Any], label: str) -> str:
    """`label` with those of the option's own values in which it differs from its namesakes."""
    if not isinstance(option, Mapping):
        return label
    namesakes = [other for other in same if isinstance(other, Mapping)]
    telling = {
        key: value
        for key, value in option.items()
        if not isinstance(value, Mapping | list)
        and any(other.get(key) != value for other in namesakes)
    }
    held = ", ".join(f"{key}={label_of(value)}" for key, value in telling.items())
    return f"{label}({_short(held)})" if held else label


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


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
