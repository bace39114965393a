"""Pairings: the sets of layer pairs that a study leaves open, as a study file writes them.

`{pairing: {hint: auto, guided: auto, max: 2, order: monotone}}` pairs the layers of two lists;
`{pairing: {pairs: [[stage1, stage2], ...], max: 2}}` draws from pairs named one by one, and
`{pairing: {sets: [...]}}` from whole sets of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from raykd.errors import Infeasible
from raykd.study.space.domains import Malformed, domain_kind, label_of, near
from raykd.study.space.sampling import Suggest

Order = Literal["monotone", "any", "reverse"]
Wide = Literal["auto", "blocks", "all"]
Layers = tuple[str, ...] | Wide

ORDERS: tuple[Order, ...] = get_args(Order)
WIDE: tuple[Wide, ...] = get_args(Wide)
OWN = ("weight", "loss")
"""What a pair may have of its own."""

KEYS = ("hint", "guided", "pairs", "sets", "min", "max", "order", *OWN)


class LayerPair(NamedTuple):
    """A hint layer and a guided layer that may be paired.

    Attributes:
        own: what the pair has of its own (`weight`, `loss`), as JSON; empty: nothing.
    """

    hint: str
    guided: str
    own: str = ""

    @property
    def held(self) -> dict[str, Any]:
        return json.loads(self.own) if self.own else {}

    def __str__(self) -> str:
        own = ", ".join(f"{key}={label_of(value)}" for key, value in self.held.items())
        return f"{self.hint}>{self.guided}" + (f" ({own})" if own else "")


At = tuple[int, int]
"""A pair by the numbers of its layers, counted from the shallowest."""


@dataclass(frozen=True)
class PairingDomain:
    """Sets of layer pairs.

    Attributes:
        hint, guided: the teacher's and the student's layers to pair, shallow to deep; not yet
            known: `auto` (the model's stages), `blocks` (its stages and blocks), `all` (every
            layer).
        max, min: at most, and at least, so many pairs.
        order: "monotone": deeper guided layers learn from deeper hint layers; "reverse": from
            shallower ones; "any": any pairs.
        pairs: the candidates, where they are named one by one; else every hint layer with every
            guided one.
        sets: the sets, where they are named one by one.
        left_out: pairs of layers that are never drawn, because no loss can compare them.
    """

    hint: Layers = "auto"
    guided: Layers = "auto"
    max: int = 1
    order: Order = "monotone"
    min: int = 1
    pairs: tuple[LayerPair, ...] | None = None
    sets: tuple[tuple[LayerPair, ...], ...] | None = None
    left_out: frozenset[LayerPair] = frozenset()

    @property
    def sides(self) -> tuple[Layers, Layers]:
        return self.hint, self.guided

    @property
    def is_known(self) -> bool:
        """Whether its layers are all named."""
        return self.pairs is not None or self.sets is not None or not self.wide

    @property
    def wide(self) -> tuple[Wide, ...]:
        """What of its layers only the models tell."""
        if self.pairs is not None or self.sets is not None:
            return ()
        return tuple(side for side in self.sides if isinstance(side, str))

    def filled(
        self, hint: Mapping[Wide, Sequence[str]], guided: Mapping[Wide, Sequence[str]]
    ) -> PairingDomain:
        """The same with the layers named that the models tell."""
        if self.is_known:
            return self
        ours = self.guided if isinstance(self.guided, tuple) else tuple(guided[self.guided])
        theirs = self.hint if isinstance(self.hint, tuple) else tuple(hint[self.hint])
        return replace(self, hint=theirs, guided=ours)

    def without(self, left_out: frozenset[LayerPair]) -> PairingDomain:
        """The same with further pairs of layers left out."""
        here = {one for one in left_out if any(one == bare(pair) for pair in self.named)}
        return replace(self, left_out=self.left_out | here) if here else self

    def written(self, side: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Every layer of a side ("hint", "guided") that the study names, with its place below the
        domain's."""
        if self.sets is not None:
            for i, one in enumerate(self.sets):
                for j, pair in enumerate(one):
                    yield ("sets", i, j), getattr(pair, side)
        elif self.pairs is not None:
            for i, pair in enumerate(self.pairs):
                yield ("pairs", i), getattr(pair, side)
        else:
            layers = getattr(self, side)
            for i, name in enumerate(layers if isinstance(layers, tuple) else ()):
                yield (side, i), name

    @cached_property
    def named(self) -> tuple[LayerPair, ...]:
        """Every pair it names, those that are left out included; () while it is not known."""
        if self.sets is not None:
            return tuple(dict.fromkeys(pair for one in self.sets for pair in one))
        if self.pairs is not None:
            return self.pairs
        if not self.is_known:
            return ()
        return tuple(LayerPair(h, g) for h in self.hint for g in self.guided)

    @cached_property
    def candidates(self) -> tuple[LayerPair, ...]:
        """The pairs it is made of."""
        return tuple(pair for pair in self.named if bare(pair) not in self.left_out)

    @cached_property
    def whole_sets(self) -> tuple[tuple[LayerPair, ...], ...]:
        """Those of `sets` of which nothing is left out and that are neither too small nor large."""
        known = set(self.candidates)
        fit = [one for one in self.sets or () if self.min <= len(one) <= self.max]
        return tuple(one for one in fit if known.issuperset(one))

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The hint and the guided layers that are left, shallow to deep.

        Where pairs are named one by one, in the order in which they are first named.
        """
        hints = dict.fromkeys(pair.hint for pair in self.candidates)
        guided = dict.fromkeys(pair.guided for pair in self.candidates)
        if self.pairs is not None or self.sets is not None:
            return tuple(hints), tuple(guided)
        lists = [side for side in self.sides if isinstance(side, tuple)]
        kept = (
            tuple(one for one in side if one in left)
            for side, left in zip(lists, (hints, guided), strict=False)
        )
        return tuple(kept) if len(lists) == 2 else ((), ())  # type: ignore[return-value]

    @property
    def is_crossed(self) -> bool:
        """Whether each of its hint layers may go with each of its guided layers."""
        if self.pairs is not None or self.sets is not None:
            return False
        hints, guided = self.layers
        return len(self.candidates) == len(hints) * len(guided)

    @cached_property
    def sizes(self) -> dict[int, int]:
        """How many sets there are of one pair, of two, ..., as far as there are any."""
        if self.sets is not None:
            lengths = [len(one) for one in self.whole_sets]
            return {length: lengths.count(length) for length in sorted(set(lengths))}
        if self.order == "any":
            count = len(self.candidates)
            found = {n: math.comb(count, n) for n in range(self.min, min(self.max, count) + 1)}
        else:
            chains = _chains(self._grid, self.max)
            found = {n: times for n, times in enumerate(chains, 1) if n >= self.min}
        return {size: times for size, times in found.items() if times}

    @property
    def least(self) -> int:
        """The smallest number of pairs in a set."""
        return min(self.sizes, default=1)

    @property
    def most(self) -> int:
        """The largest number of pairs in a set."""
        return max(self.sizes, default=1)

    @property
    def count(self) -> int:
        """How many sets of pairs there are."""
        return sum(self.sizes.values())

    @property
    def _grid(self) -> list[list[int]]:
        """1 for each hint and guided layer that are a candidate; for "reverse", the guided layers
        deep to shallow."""
        hints, guided = self.layers
        columns = guided[::-1] if self.order == "reverse" else guided
        known = {(pair.hint, pair.guided) for pair in self.candidates}
        return [[int((h, g) in known) for g in columns] for h in hints]

    def __str__(self) -> str:
        span = f"{self.min} to {self.max}" if self.min > 1 else f"at most {self.max}"
        if self.sets is not None:
            return f"one of {len(self.sets)} sets"
        if self.pairs is not None:
            return f"{span} of {len(self.pairs)} pairs, {self.order}"
        sides = (side if isinstance(side, str) else _listed(side) for side in self.sides)
        return f"{' -> '.join(sides)}, {span}, {self.order}"

    # Drawing

    def draw(self, suggest: Suggest, name: str) -> tuple[LayerPair, ...]:
        """One set of pairs, shallow to deep; `name` is the parameter's.

        Raises:
            Infeasible: there are none, or what was drawn makes no set.
        """
        if not self.sizes:
            raise Infeasible(f"{name}: {self.lacks}")
        if self.sets is not None:
            return _one_of(suggest, name, {_listed(map(str, one)): one for one in self.whole_sets})
        count = self.least
        if self.least < self.most:
            count = suggest.suggest_int(f"{name}.count", self.least, self.most)
        if self.is_crossed:
            drawn = self._crossed(suggest, name, count)
        else:
            known = {str(pair): pair for pair in self.candidates}
            drawn = [_one_of(suggest, f"{name}[{i}]", known) for i in range(count)]
        return self._in_order(drawn, name)

    @property
    def lacks(self) -> str:
        """Why there is nothing to draw."""
        if not self.named:
            return "there are no stages to pair"
        if not self.candidates or (self.sets is not None and not self.whole_sets):
            return "none of its pairs can be compared"
        return f"its layers make no {self.min} pairs in the order '{self.order}'"

    def _crossed(self, suggest: Suggest, name: str, count: int) -> list[LayerPair]:
        hints, guided = self.layers
        drawn = [
            (
                _number(suggest, f"{name}[{i}].hint", hints),
                _number(suggest, f"{name}[{i}].guided", guided),
            )
            for i in range(count)
        ]
        return [LayerPair(hints[h], guided[g]) for h, g in self._exchanged(drawn)]

    def _exchanged(self, drawn: Sequence[At]) -> list[At]:
        """The same layers paired in the domain's order."""
        if self.order == "any":
            return sorted(drawn)
        hints, guided = zip(*drawn, strict=True)
        backwards = self.order == "reverse"
        return list(zip(sorted(hints), sorted(guided, reverse=backwards), strict=True))

    def _in_order(self, drawn: Sequence[LayerPair], name: str) -> tuple[LayerPair, ...]:
        """The pairs, shallow to deep.

        Where they go against the order they exchange their partners, if that gives candidates.
        """
        hints, guided = self.layers
        places = sorted((hints.index(pair.hint), guided.index(pair.guided)) for pair in drawn)
        wanted = [LayerPair(hints[h], guided[g]) for h, g in self._exchanged(places)]
        if len({*wanted}) < len(wanted) or len({*places}) < len(places):
            raise Infeasible(f"{name}: the same pair was drawn twice")
        known = {bare(pair): pair for pair in self.candidates}
        exchanged = {*wanted} != {*map(bare, drawn)}
        if (exchanged and self.pairs is not None) or not known.keys() >= {*wanted}:
            said = _listed(map(str, drawn))
            raise Infeasible(f"{name}: {said} are not in the order '{self.order}'")
        return tuple(known[pair] for pair in wanted)

    def params_of(
        self, pairs: Sequence[LayerPair], name: str
    ) -> tuple[dict[str, Any], tuple[LayerPair, ...]]:
        """The parameters with which these pairs are drawn (`name` as in `draw`), and the pairs as
        they then are.

        Raises:
            Infeasible: they are not of the domain; says why.
        """
        wanted = _in_set(pairs, self.whole_sets) if self.sets else self._checked(pairs, name)
        asked: dict[str, Any] = {}
        return asked, self.draw(_Answers(wanted, name, asked), name)

    def _checked(self, pairs: Sequence[LayerPair], name: str) -> tuple[LayerPair, ...]:
        """The candidates for the layers of `pairs`."""
        known = {bare(pair): pair for pair in self.candidates}
        for pair in pairs:
            if bare(pair) not in known:
                raise Infeasible(f"{bare(pair)} is none of its pairs")
        if len(pairs) not in self.sizes:
            raise Infeasible(f"{len(pairs)} pairs; it takes {self.least} to {self.most}")
        wanted = [known[bare(pair)] for pair in pairs]
        found = self._in_order(wanted, name)
        if {*found} != {*wanted}:
            raise Infeasible(f"{_listed(map(str, pairs))} are not in the order '{self.order}'")
        return found


def _in_set(
    pairs: Sequence[LayerPair], sets: Sequence[tuple[LayerPair, ...]]
) -> tuple[LayerPair, ...]:
    for one in sets:
        if {*map(bare, one)} == {*map(bare, pairs)}:
            return one
    raise Infeasible(f"{_listed(map(str, pairs))} is none of its sets")


class _Answers:
    """Answers so that given pairs are drawn, and writes down what it was asked."""

    def __init__(self, pairs: Sequence[LayerPair], name: str, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.known: dict[str, Any] = {name: _listed(map(str, pairs)), f"{name}.count": len(pairs)}
        for i, pair in enumerate(pairs):
            self.known[f"{name}[{i}]"] = str(pair)
            self.known[f"{name}[{i}].hint"] = pair.hint
            self.known[f"{name}[{i}].guided"] = pair.guided

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._asked(name)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return self._asked(name)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._asked(name)

    def _asked(self, name: str) -> Any:
        self.asked[name] = self.known[name]
        return self.asked[name]


def bare(pair: LayerPair) -> LayerPair:
    """The layers of a pair alone."""
    return LayerPair(pair.hint, pair.guided)


def _one_of(suggest: Suggest, name: str, known: Mapping[str, Any]) -> Any:
    labels = tuple(known)
    return known[labels[0] if len(labels) == 1 else suggest.suggest_categorical(name, labels)]


def _number(suggest: Suggest, name: str, layers: Sequence[str]) -> int:
    """The drawn layer's number, from shallow to deep."""
    return 0 if len(layers) == 1 else layers.index(suggest.suggest_categorical(name, layers))


def _chains(grid: Sequence[Sequence[int]], most: int) -> list[int]:
    """Sets of 1, 2, ... `most` distinct pairs in which neither side steps back.

    Args:
        grid: 1 for each hint and guided layer that may be paired, else 0.
    """
    ending = [list(row) for row in grid]
    found = [sum(map(sum, ending))]
    while len(found) < most and found[-1]:
        before = _sums(ending)
        ending = [
            [held * (before[h][g] - ending[h][g]) for g, held in enumerate(row)]
            for h, row in enumerate(grid)
        ]
        found.append(sum(map(sum, ending)))
    return found


def _sums(grid: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each place, the sum of all that lie above and left of it, itself included."""
    sums: list[list[int]] = []
    for row in grid:
        along, total = [], 0
        for column, value in enumerate(row):
            total += value
            along.append(total + (sums[-1][column] if sums else 0))
        sums.append(along)
    return sums


# Reading


def read_pairing(value: Any) -> PairingDomain:
    """The domain `{pairing: value}`; what a pair has of its own is not looked at.

    Raises:
        Malformed: an unknown key, a list of layers that is empty or no list of names, pairs that
            are none, a `min` or `max` that is not above 0, an unknown order.
    """
    if not isinstance(value, Mapping):
        fix = "write {pairing: {hint: auto, guided: auto, max: 1, order: monotone}}"
        raise Malformed(f"`pairing` takes a mapping; got {value!r}", fix)
    for key in value:
        if key not in KEYS:
            message = f"`pairing` has no key `{key}`; it has {_listed(KEYS)}"
            raise Malformed(message, near(key, KEYS))
    _refuse_company(value)
    if "sets" in value:
        sets = _sets(value["sets"])
        return PairingDomain(sets=sets, max=max(map(len, sets)), order="any")
    pairs = _pairs("pairs", value["pairs"]) if "pairs" in value else None
    least, most = _span(value)
    domain = PairingDomain(
        _layers("hint", value),
        _layers("guided", value),
        most,
        _order(value, "monotone" if pairs is None else "any"),
        least,
        pairs,
    )
    if domain.is_known and not domain.sizes:
        message = (
            f"its {len(domain.candidates)} pairs make no {least} in the order '{domain.order}'"
        )
        raise Malformed(message, "lower `min`, name more layers, or write `order: any`")
    return domain


def _refuse_company(value: Mapping[str, Any]) -> None:
    """See that the three ways to write a pairing are not mixed."""
    way = next((key for key in ("sets", "pairs") if key in value), None)
    strange = {
        "sets": ("hint", "guided", "pairs", "min", "max", "order"),
        "pairs": ("hint", "guided"),
    }
    company = [key for key in strange.get(way or "", ()) if key in value]
    if company:
        others = _listed(f"`{key}`" for key in company)
        fix = f"remove {others}, or remove `{way}`"
        raise Malformed(f"`{way}` names what is drawn and stands beside {others}", fix)


def _order(value: Mapping[str, Any], usual: Order) -> Order:
    order = value.get("order", usual)
    if order not in ORDERS:
        what = f"`order` is 'monotone', 'any' or 'reverse'; got {order!r}"
        raise Malformed(what, near(str(order), ORDERS))
    return order


def _span(value: Mapping[str, Any]) -> tuple[int, int]:
    least, most = value.get("min", 1), value.get("max", max(1, _whole(value.get("min"))))
    for key, count in (("min", least), ("max", most)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            fix = "write 1 or more; for trials without pairs, let `loss` be a choice with null"
            raise Malformed(f"`{key}` is a whole number from 1; got {count!r}", fix)
    if least > most:
        raise Malformed(f"`min` {least} is greater than `max` {most}", "exchange them")
    return least, most


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _layers(side: str, value: Mapping[str, Any]) -> Layers:
    names = value.get(side, "auto")
    if names in WIDE:
        return names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = f"write `{side}: auto` or `{side}: [stage1, stage2]`"
        if isinstance(names, str):
            fix = near(names, WIDE) or f"write `{side}: [{names}]`"
        message = f"`{side}` is auto, blocks, all or a list of layers; got {names!r}"
        raise Malformed(message, fix)
    if not names:
        raise Malformed(f"`{side}` is an empty list; name layers, or write auto")
    if len(set(names)) < len(names):
        raise Malformed(f"`{side}` names a layer twice: {_listed(names)}", "name each once")
    return tuple(names)


def _sets(value: Any) -> tuple[tuple[LayerPair, ...], ...]:
    fix = "write `sets: [[[stage1, stage1]], [[stage1, stage2], [stage2, stage3]]]`"
    if not isinstance(value, list) or not value:
        raise Malformed(f"`sets` is a list of lists of pairs; got {value!r}", fix)
    sets = tuple(_pairs(f"sets[{i}]", one) for i, one in enumerate(value))
    for i, one in enumerate(sets):
        if one in sets[:i]:
            raise Malformed(f"`sets[{i}]` appears twice: {_listed(map(str, one))}", "remove one")
    return sets


def _pairs(key: str, value: Any) -> tuple[LayerPair, ...]:
    if not isinstance(value, list) or not value:
        fix = "write [[stage1, stage2], ...], hint layer first"
        message = f"`{key}` is a list of pairs" if value != [] else f"`{key}` is an empty list"
        raise Malformed(f"{message}; got {value!r}", fix)
    pairs = tuple(_pair(f"{key}[{i}]", one) for i, one in enumerate(value))
    bare_pairs = [bare(pair) for pair in pairs]
    for i, pair in enumerate(bare_pairs):
        if pair in bare_pairs[:i]:
            raise Malformed(f"`{key}` names the pair {pair} twice", "remove one of them")
    return pairs


def _pair(key: str, value: Any) -> LayerPair:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
        return LayerPair(*value)
    fix = "write [HINT, GUIDED] or {hint: HINT, guided: GUIDED}"
    if not isinstance(value, Mapping):
        raise Malformed(f"`{key}` is no pair of layers; got {value!r}", fix)
    for side in ("hint", "guided"):
        if not isinstance(value.get(side), str):
            raise Malformed(f"`{key}` is a pair without `{side}`; got {dict(value)!r}", fix)
    known = ("hint", "guided", *OWN)
    for strange in (held for held in value if held not in known):
        message = f"`{key}` has no key `{strange}`; a pair has {_listed(known)}"
        raise Malformed(message, near(strange, known))
    own = {held: value[held] for held in OWN if held in value}
    if _is_open(own):
        fix = "put it beside the list of pairs, where it is drawn for each pair"
        raise Malformed(f"`{key}` holds a domain; a candidate is closed", fix)
    return LayerPair(value["hint"], value["guided"], json.dumps(own) if own else "")


def _is_open(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_open, value))
    if not isinstance(value, Mapping):
        return False
    return domain_kind(value) is not None or any(map(_is_open, value.values()))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
