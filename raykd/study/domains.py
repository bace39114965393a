"""Domains: the values a study leaves open, as a study file writes them.

`{choice: [...]}`, `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{int: [a, b]}`, `{logint: [a, b]}`
and `{pairing: {...}}`; `uniform` and `int` may have a `step` beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from raykd.study.suggest import Scalar, Suggest

NumberKind = Literal["uniform", "loguniform", "int", "logint"]
Order = Literal["monotone", "any"]

NUMBERS: tuple[NumberKind, ...] = ("uniform", "loguniform", "int", "logint")
DOMAINS = ("choice", *NUMBERS, "pairing")
STEPPED = ("uniform", "int")


class Malformed(ValueError):
    """A domain that is not well written; `mend` says how to write it."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.mend = mend


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
        mend = "a domain stands in place of a value, alone; put what belongs to an option inside it"
        raise Malformed(f"`{kinds[0]}` stands beside {others}", mend)
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
        return f"{self.low:g} to {self.high:g}{step}"


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
        mend = f"write {{{kind}: [{high}, {low}]}}"
        raise Malformed(f"reversed bounds {bounds}; the lower comes first", mend)
    if kind in ("int", "logint") and not all(isinstance(bound, int) for bound in bounds):
        mend = f"for other numbers write `{'uniform' if kind == 'int' else 'loguniform'}`"
        raise Malformed(f"`{kind}` takes whole numbers; got {bounds}", mend)
    if kind in ("loguniform", "logint") and low <= 0:
        mend = f"raise the lower bound, or write `{'uniform' if kind == 'loguniform' else 'int'}`"
        raise Malformed(f"`{kind}` needs bounds above 0; got {bounds}", mend)
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


@dataclass(frozen=True)
class PairingDomain:
    """Sets of layer pairs.

    Attributes:
        hint, guided: the teacher's and the student's layers to pair, shallow to deep; None: the
            stages of the model, however many it has (`auto`).
        max: at most so many pairs.
        order: "monotone": deeper guided layers learn from deeper hint layers; "any": any pairs.
    """

    hint: tuple[str, ...] | None = None
    guided: tuple[str, ...] | None = None
    max: int = 1
    order: Order = "monotone"

    @property
    def most(self) -> int:
        """The largest number of pairs that differ and keep the order."""
        hints, guided = len(self.hint or ()), len(self.guided or ())
        fit = hints + guided - 1 if self.order == "monotone" else hints * guided
        return max(1, min(self.max, fit))

    @property
    def count(self) -> int:
        """How many sets of pairs there are."""
        hints, guided = len(self.hint or ()), len(self.guided or ())
        if self.order == "any":
            return sum(math.comb(hints * guided, size) for size in range(1, self.most + 1))
        return _chains(hints, guided, self.most)

    def __str__(self) -> str:
        hint, guided = ("auto" if side is None else _listed(side) for side in self.sides)
        return f"{hint} -> {guided}, at most {self.max}, {self.order}"

    @property
    def sides(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        return self.hint, self.guided


def read_pairing(value: Any) -> PairingDomain:
    """The domain `{pairing: value}`.

    Raises:
        Malformed: an unknown key, a list of layers that is empty or no list of names, a `max`
            that is not above 0, an unknown order.
    """
    known = ("hint", "guided", "max", "order")
    if not isinstance(value, Mapping):
        mend = "write {pairing: {hint: auto, guided: auto, max: 1, order: monotone}}"
        raise Malformed(f"`pairing` takes a mapping; got {value!r}", mend)
    for key in value:
        if key not in known:
            raise Malformed(
                f"`pairing` has no key `{key}`; it has {_listed(known)}", near(key, known)
            )
    most, order = value.get("max", 1), value.get("order", "monotone")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise Malformed(f"`max` is a whole number from 1; got {most!r}")
    if order not in ("monotone", "any"):
        what = f"`order` is 'monotone' or 'any'; got {order!r}"
        raise Malformed(what, near(order, ("monotone", "any")))
    hint, guided = _layers("hint", value), _layers("guided", value)
    return PairingDomain(hint, guided, most, order)


def _layers(side: str, value: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = value.get(side, "auto")
    if names == "auto":
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        mend = f"write `{side}: auto` or `{side}: [stage1, stage2]`"
        raise Malformed(f"`{side}` is auto or a list of layers; got {names!r}", mend)
    if not names:
        raise Malformed(f"`{side}` is an empty list; name layers, or write auto")
    if len(set(names)) < len(names):
        raise Malformed(f"`{side}` names a layer twice: {_listed(names)}", "name each once")
    return tuple(names)


def _chains(hints: int, guided: int, most: int) -> int:
    """Sets of up to `most` distinct pairs in which neither side steps back."""
    ending = {(h, g): 1 for h in range(hints) for g in range(guided)}
    total = sum(ending.values())
    for _ in range(1, most):
        ending = {
            (h, g): sum(n for (i, j), n in ending.items() if i <= h and j <= g and (i, j) != (h, g))
            for h, g in ending
        }
        total += sum(ending.values())
    return total


def label_of(value: Any) -> Scalar:
    """What an option of a choice is called: its `name`, or the scalar itself."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str):
            return name
        kind = next((kind for kind in DOMAINS if kind in value), None)
        return kind or _short(", ".join(f"{key}={label_of(held)}" for key, held in value.items()))
    if isinstance(value, list):
        return _short("[" + ", ".join(str(label_of(held)) for held in value) + "]")
    return value


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


def near(word: Any, known: Sequence[str]) -> str:
    """`did you mean ...?` for a misspelt word; empty where nothing comes near."""
    close = get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
