"""Domains: the values that a study leaves open.

`{choice: [...]}`, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{int: [a, b]}`, `{logint: [a, b]}`
and `{pairing: {...}}` (pairing.py); `uniform` and `int` may have a `step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raykd.study.space.sampling import Scalar, Suggest

if TYPE_CHECKING:
    from raykd.study.space.pairing import PairingDomain
    from raykd.study.yaml_file import Json, Place


NumberKind = Literal["uniform", "loguniform", "int", "logint"]

NUMBERS: tuple[NumberKind, ...] = ("uniform", "loguniform", "int", "logint")
DOMAINS = ("choice", *NUMBERS, "pairing")
STEPPED = ("uniform", "int")


class Malformed(ValueError):
    """A domain that is invalid."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


def domain_kind(value: Json) -> str | None:
    """Return the kind of domain that `value` describes; None for a plain value.

    Raises:
        Malformed: there are other keys next to that of the domain.
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
        raise Malformed(f"`{kinds[0]}` has no `step`", "only `uniform` and `int` have one")
    if company:
        keys = ", ".join(f"`{key}`" for key in company)
        fix = "a domain replaces a value; put keys of an option inside the domain"
        raise Malformed(f"`{kinds[0]}` and {keys} in one mapping", fix)
    return kinds[0]


@dataclass(frozen=True)
class Range:
    """A numeric domain.

    Attributes:
        kind: key in the study file.
        low, high: bounds, both included; `high` is a multiple of `step` above `low`.
        step: distance of the values; None: every value (whole numbers for `int` and `logint`).
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
        """Number of values; None: infinitely many."""
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
    """Read the numeric domain `{kind: bounds, step: step}`.

    Raises:
        Malformed: bounds that are not two numbers, are reversed or not allowed for the kind; a step
            that is not positive or greater than the range.
    """
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
        raise Malformed(
            f"`{kind}` must be two numbers; got {bounds!r}", f"write {{{kind}: [1, 16]}}"
        )
    low, high = bounds
    if low > high:
        fix = f"write {{{kind}: [{high}, {low}]}}"
        raise Malformed(f"reversed bounds {bounds}; the lower bound must come first", fix)
    if kind in ("int", "logint") and not all(isinstance(bound, int) for bound in bounds):
        fix = f"for other numbers write `{'uniform' if kind == 'int' else 'loguniform'}`"
        raise Malformed(f"`{kind}` must be whole numbers; got {bounds}", fix)
    if kind in ("loguniform", "logint") and low <= 0:
        fix = f"raise the lower bound, or write `{'uniform' if kind == 'loguniform' else 'int'}`"
        raise Malformed(f"bounds of `{kind}` must be > 0; got {bounds}", fix)
    if step is None:
        return Range(kind, low, high)
    return _with_step(Range(kind, low, high), step)


def _with_step(domain: Range, step: Any) -> Range:
    if not _is_number(step) or step <= 0:
        raise Malformed(f"`step` must be a number > 0; got {step!r}")
    if domain.kind == "int" and not isinstance(step, int):
        raise Malformed(f"`step` of `int` must be a whole number; got {step}")
    if step > domain.high - domain.low:
        message = f"`step` {step} is greater than the range {domain.low:g} to {domain.high:g}"
        raise Malformed(message, "use a smaller step, or a wider range")
    steps = math.floor((domain.high - domain.low) / step + 1e-9)
    return Range(domain.kind, domain.low, domain.low + steps * step, step)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label_of(value: Json) -> Scalar:
    """Label of an option of a choice: its `name`, or the scalar itself."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str):
            return name
        kind = next((kind for kind in DOMAINS if kind in value), None)
        return kind or _short(", ".join(_key_label(key, item) for key, item in value.items()))
    if isinstance(value, list):
        return _short("[" + ", ".join(str(label_of(item)) for item in value) + "]")
    return value


def _key_label(key: str, value: Json) -> str:
    """Return a value with its key, or the key alone for a domain."""
    return key if domain_kind(value) is not None else f"{key}={label_of(value)}"


def labels_of(options: Sequence[Json]) -> tuple[Scalar, ...]:
    """Labels of options, no two equal; the same for the same options."""
    labels = [label_of(option) for option in options]
    for label in {name for name in labels if isinstance(name, str) and labels.count(name) > 1}:
        same = [place for place, other in enumerate(labels) if other == label]
        for place in same:
            labels[place] = _distinct_label(
                options[place], [options[other] for other in same], label
            )
    for place, label in enumerate(labels):
        not_equal_to_itself = isinstance(label, float) and math.isnan(label)
        if not_equal_to_itself or label in labels[:place]:  # 1 beside True, say
            text = str(label)
            labels[place] = text if text not in labels else f"{text}#{place + 1}"
    return tuple(labels)


def _distinct_label(option: Json, same: Sequence[Json], label: str) -> str:
    """`label` with the values in which the option differs from others of the same label."""
    if not isinstance(option, Mapping):
        return label
    namesakes = [other for other in same if isinstance(other, Mapping)]
    telling = {
        key: value
        for key, value in option.items()
        if not isinstance(value, Mapping | list)
        and any(other.get(key) != value for other in namesakes)
    }
    values = ", ".join(f"{key}={label_of(value)}" for key, value in telling.items())
    return f"{label}({_short(values)})" if values else label


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


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
class Condition:
    """Keys of a mapping that are drawn only for some values of another key (the parent).

    Attributes:
        parent: the key whose value decides.
        keys: the conditional keys.
        inactive: value of the parent -> the keys that are not drawn, or None for all of them.
    """

    parent: str
    keys: frozenset[str]
    inactive: Callable[[Json], frozenset[str] | None]

    def active(self, value: Json) -> frozenset[str]:
        """Return the conditional keys that are drawn for this value of the parent."""
        inactive = self.inactive(value)
        return frozenset() if inactive is None else self.keys - inactive


@dataclass(frozen=True)
class Group:
    """A mapping; some of its keys may be conditional."""

    source: Place
    items: Mapping[str, Node]
    condition: Condition | None = None


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
        domain: for all losses of its term.
        settings: domains of the pairs' weights and losses, one group for each pair.
        by_loss: narrower domains of some losses, by name.
    """

    source: Place
    parameter: str
    domain: PairingDomain
    settings: tuple[Group, ...] = ()
    by_loss: Mapping[str, PairingDomain] = field(default_factory=dict)

    def of(self, loss: str) -> tuple[str, PairingDomain]:
        """Parameter and domain under a loss; the parameter of a narrower domain contains its
        name."""
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
        return node.settings
    return node.options if isinstance(node, Choice) else ()


def nodes_of(node: Node) -> Iterator[Node]:
    """Return the node and all nodes below it."""
    yield node
    for inner in _inner(node):
        yield from nodes_of(inner)


def domains_of(node: Node) -> Iterator[Choice | Number | Pairing]:
    """Return the domains at and below the node."""
    for each in nodes_of(node):
        if isinstance(each, Choice | Number | Pairing):
            yield each


def is_open(node: Node) -> bool:
    """Return whether there is a domain at or below the node."""
    return next(domains_of(node), None) is not None


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """Return the tree with `change` applied to each node, inner nodes first."""
    if isinstance(node, Listing):
        node = replace(node, items=tuple(rebuilt(item, change) for item in node.items))
    elif isinstance(node, Group):
        items = {key: rebuilt(item, change) for key, item in node.items.items()}
        node = replace(node, items=items)
    elif isinstance(node, Choice):
        node = replace(node, options=tuple(rebuilt(option, change) for option in node.options))
    elif isinstance(node, Pairing):
        groups = (rebuilt(group, change) for group in node.settings)
        settings = tuple(group for group in groups if isinstance(group, Group))
        node = replace(node, settings=settings)
    return change(node)


def name_of(value: Json) -> str:
    """Return the name of an option written as a mapping or as its bare name; "" if it has none."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else ""
