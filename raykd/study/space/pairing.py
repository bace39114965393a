"""Pairings: sets of layer pairs that a study leaves open.

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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from raykd.arguments import near
from raykd.errors import Infeasible
from raykd.study.space.domains import Malformed, domain_kind, label_of
from raykd.study.space.sampling import Scalar, Suggest

if TYPE_CHECKING:
    from raykd.study.yaml_file import Json

T = TypeVar("T")
Order = Literal["monotone", "any", "reverse"]
Wide = Literal["auto", "blocks", "all"]
Layers = tuple[str, ...] | Wide

ORDERS: tuple[Order, ...] = get_args(Order)
WIDE: tuple[Wide, ...] = get_args(Wide)
PAIR_KEYS = ("weight", "loss")
"""Keys of a pair besides its layers."""

KEYS = ("hint", "guided", "pairs", "sets", "min", "max", "order", *PAIR_KEYS)


class LayerPair(NamedTuple):
    """A hint layer and a guided layer that can be paired.

    Attributes:
        hint, guided: layer names.
        extra: `weight` and `loss` of the pair, as JSON; "": it has neither.
    """

    hint: str
    guided: str
    extra: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """`weight` and `loss` of the pair, as far as it has them."""
        return json.loads(self.extra) if self.extra else {}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={label_of(value)}" for key, value in self.settings.items())
        return f"{self.hint}>{self.guided}" + (f" ({settings})" if settings else "")


At = tuple[int, int]
"""A pair by the indices of its layers, 0 for the shallowest."""


@dataclass(frozen=True)
class PairingDomain:
    """Sets of layer pairs.

    Attributes:
        hint, guided: layers of the teacher and the student, shallow to deep; or `auto` (the stages
            of the model), `blocks` (its stages and blocks), `all` (every layer) until the models
            are known.
        max, min: maximum and minimum number of pairs.
        order: "monotone": deeper guided layers learn from deeper hint layers; "reverse": from
            shallower ones; "any": any pairs.
        pairs: the candidates, if they are listed; None: every hint layer with every guided layer.
        sets: the sets, if they are listed.
        excluded: pairs of layers that are never drawn because no loss can compare them.
    """

    hint: Layers = "auto"
    guided: Layers = "auto"
    max: int = 1
    order: Order = "monotone"
    min: int = 1
    pairs: tuple[LayerPair, ...] | None = None
    sets: tuple[tuple[LayerPair, ...], ...] | None = None
    excluded: frozenset[LayerPair] = frozenset()

    @property
    def sides(self) -> tuple[Layers, Layers]:
        return self.hint, self.guided

    @property
    def is_known(self) -> bool:
        """True if all its layers are named."""
        return self.pairs is not None or self.sets is not None or not self.wide

    @property
    def wide(self) -> tuple[Wide, ...]:
        """The keywords that stand for layers of models."""
        if self.pairs is not None or self.sets is not None:
            return ()
        return tuple(side for side in self.sides if isinstance(side, str))

    def filled(
        self, hint: Mapping[Wide, Sequence[str]], guided: Mapping[Wide, Sequence[str]]
    ) -> PairingDomain:
        """Return the same with keywords replaced by layer names."""
        if self.is_known:
            return self
        ours = self.guided if isinstance(self.guided, tuple) else tuple(guided[self.guided])
        theirs = self.hint if isinstance(self.hint, tuple) else tuple(hint[self.hint])
        return replace(self, hint=theirs, guided=ours)

    def without(self, excluded: frozenset[LayerPair]) -> PairingDomain:
        """Return the same with further pairs of layers excluded."""
        named = {pair for pair in excluded if any(pair == bare(pair) for pair in self.named)}
        return replace(self, excluded=self.excluded | named) if named else self

    def written(self, side: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Every layer of a side ("hint", "guided") that the study file names, with its place
        relative to the domain."""
        if self.sets is not None:
            for i, pairs in enumerate(self.sets):
                for j, pair in enumerate(pairs):
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
        """All pairs, including the excluded ones; () while layers are unknown."""
        if self.sets is not None:
            return tuple(dict.fromkeys(pair for pairs in self.sets for pair in pairs))
        if self.pairs is not None:
            return self.pairs
        if not self.is_known:
            return ()
        return tuple(LayerPair(h, g) for h in self.hint for g in self.guided)

    @cached_property
    def candidates(self) -> tuple[LayerPair, ...]:
        """The pairs that can be drawn."""
        return tuple(pair for pair in self.named if bare(pair) not in self.excluded)

    @cached_property
    def whole_sets(self) -> tuple[tuple[LayerPair, ...], ...]:
        """The sets of the right size without excluded pairs."""
        candidates = set(self.candidates)
        fit = [pairs for pairs in self.sets or () if self.min <= len(pairs) <= self.max]
        return tuple(pairs for pairs in fit if candidates.issuperset(pairs))

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Hint layers and guided layers of the candidates, shallow to deep.

        If pairs are listed, in the order in which they first appear.
        """
        hints = dict.fromkeys(pair.hint for pair in self.candidates)
        guided = dict.fromkeys(pair.guided for pair in self.candidates)
        if self.pairs is not None or self.sets is not None:
            return tuple(hints), tuple(guided)
        lists = [side for side in self.sides if isinstance(side, tuple)]
        sides = (
            tuple(layer for layer in side if layer in left)
            for side, left in zip(lists, (hints, guided), strict=False)
        )
        return tuple(sides) if len(lists) == 2 else ((), ())  # type: ignore[return-value]

    @property
    def is_crossed(self) -> bool:
        """True if each hint layer can be paired with each guided layer."""
        if self.pairs is not None or self.sets is not None:
            return False
        hints, guided = self.layers
        return len(self.candidates) == len(hints) * len(guided)

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Number of sets by their number of pairs; sizes without sets are omitted."""
        if self.sets is not None:
            lengths = [len(pairs) for pairs in self.whole_sets]
            return {length: lengths.count(length) for length in sorted(set(lengths))}
        if self.order == "any":
            count = len(self.candidates)
            sizes = {n: math.comb(count, n) for n in range(self.min, min(self.max, count) + 1)}
        else:
            chains = _chains(self._grid, self.max)
            sizes = {n: times for n, times in enumerate(chains, 1) if n >= self.min}
        return {size: times for size, times in sizes.items() if times}

    @property
    def least(self) -> int:
        """Smallest number of pairs in a set."""
        return min(self.sizes, default=1)

    @property
    def most(self) -> int:
        """Largest number of pairs in a set."""
        return max(self.sizes, default=1)

    @property
    def count(self) -> int:
        """Number of sets of pairs."""
        return sum(self.sizes.values())

    @property
    def _grid(self) -> list[list[int]]:
        """Matrix of hint layers times guided layers, 1 for candidates; for "reverse", guided layers
        from deep to shallow."""
        hints, guided = self.layers
        columns = guided[::-1] if self.order == "reverse" else guided
        candidates = {(pair.hint, pair.guided) for pair in self.candidates}
        return [[int((h, g) in candidates) for g in columns] for h in hints]

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
        """Draw a set of pairs, shallow to deep.

        Args:
            suggest: draws the values.
            name: of the parameter.

        Raises:
            Infeasible: there are no sets, or the drawn pairs form none.
        """
        if not self.sizes:
            raise Infeasible(f"{name}: {self.empty_reason}")
        if self.sets is not None:
            return _one_of(
                suggest, name, {_listed(map(str, pairs)): pairs for pairs in self.whole_sets}
            )
        count = self.least
        if self.least < self.most:
            count = suggest.suggest_int(f"{name}.count", self.least, self.most)
        if self.is_crossed:
            drawn = self._crossed(suggest, name, count)
        else:
            labels = {str(pair): pair for pair in self.candidates}
            drawn = [_one_of(suggest, f"{name}[{i}]", labels) for i in range(count)]
        return self._in_order(drawn, name)

    @property
    def empty_reason(self) -> str:
        """The reason why there is nothing to draw."""
        if not self.named:
            return "there are no stages to pair"
        if not self.candidates or (self.sets is not None and not self.whole_sets):
            return "none of its pairs can be compared"
        return f"its layers allow no set of {self.min} pairs in the order '{self.order}'"

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
        """Return the same layers, paired in the order of the domain."""
        if self.order == "any":
            return sorted(drawn)
        hints, guided = zip(*drawn, strict=True)
        backwards = self.order == "reverse"
        return list(zip(sorted(hints), sorted(guided, reverse=backwards), strict=True))

    def _in_order(self, drawn: Sequence[LayerPair], name: str) -> tuple[LayerPair, ...]:
        """Return the pairs, shallow to deep.

        Pairs against the order exchange partners if the results are candidates.
        """
        hints, guided = self.layers
        places = sorted((hints.index(pair.hint), guided.index(pair.guided)) for pair in drawn)
        ordered = [LayerPair(hints[h], guided[g]) for h, g in self._exchanged(places)]
        if len({*ordered}) < len(ordered) or len({*places}) < len(places):
            raise Infeasible(f"{name}: the same pair was drawn twice")
        candidates = {bare(pair): pair for pair in self.candidates}
        exchanged = {*ordered} != {*map(bare, drawn)}
        if (exchanged and self.pairs is not None) or not candidates.keys() >= {*ordered}:
            pairs = _listed(map(str, drawn))
            raise Infeasible(f"{name}: {pairs} are not in the order '{self.order}'")
        return tuple(candidates[pair] for pair in ordered)

    def params_of(
        self, pairs: Sequence[LayerPair], name: str
    ) -> tuple[dict[str, Scalar], tuple[LayerPair, ...]]:
        """Return the parameters with which `draw` returns these pairs, and the pairs in its order.

        Raises:
            Infeasible: the domain does not contain them, with the reason.
        """
        ordered = _in_set(pairs, self.whole_sets) if self.sets else self._checked(pairs, name)
        params: dict[str, Scalar] = {}
        return params, self.draw(_Answers(ordered, name, params), name)

    def _checked(self, pairs: Sequence[LayerPair], name: str) -> tuple[LayerPair, ...]:
        """Return the candidates for the layers of `pairs`."""
        candidates = {bare(pair): pair for pair in self.candidates}
        for pair in pairs:
            if bare(pair) not in candidates:
                raise Infeasible(f"{bare(pair)} is not one of its pairs")
        if len(pairs) not in self.sizes:
            raise Infeasible(f"got {len(pairs)} pairs; must be {self.least} to {self.most}")
        chosen = [candidates[bare(pair)] for pair in pairs]
        ordered = self._in_order(chosen, name)
        if {*ordered} != {*chosen}:
            raise Infeasible(f"{_listed(map(str, pairs))} are not in the order '{self.order}'")
        return ordered


def _in_set(
    pairs: Sequence[LayerPair], sets: Sequence[tuple[LayerPair, ...]]
) -> tuple[LayerPair, ...]:
    for candidate in sets:
        if {*map(bare, candidate)} == {*map(bare, pairs)}:
            return candidate
    raise Infeasible(f"{_listed(map(str, pairs))} is not one of its sets")


class _Answers:
    """Gives the answers that draw certain pairs, and records the parameters that are asked for."""

    def __init__(self, pairs: Sequence[LayerPair], name: str, params: dict[str, Scalar]) -> None:
        self.params = params
        self.answers: dict[str, Scalar] = {name: _listed(map(str, pairs))}
        self.answers[f"{name}.count"] = len(pairs)
        for i, pair in enumerate(pairs):
            self.answers[f"{name}[{i}]"] = str(pair)
            self.answers[f"{name}[{i}].hint"] = pair.hint
            self.answers[f"{name}[{i}].guided"] = pair.guided

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._answer(name)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return self._answer(name)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._answer(name)

    def _answer(self, name: str) -> Any:
        self.params[name] = self.answers[name]
        return self.params[name]


def bare(pair: LayerPair) -> LayerPair:
    """Return the layers of a pair, without its settings."""
    return LayerPair(pair.hint, pair.guided)


def _one_of(suggest: Suggest, name: str, options: Mapping[str, T]) -> T:
    labels = tuple(options)
    label = labels[0] if len(labels) == 1 else suggest.suggest_categorical(name, labels)
    return options[str(label)]


def _number(suggest: Suggest, name: str, layers: Sequence[str]) -> int:
    """Return the drawn layer's number, from shallow to deep."""
    return 0 if len(layers) == 1 else layers.index(suggest.suggest_categorical(name, layers))


def _chains(grid: Sequence[Sequence[int]], most: int) -> list[int]:
    """Return sets of 1, 2, ... `most` distinct pairs in which neither side steps back.

    Args:
        grid: 1 for each hint and guided layer that may be paired, else 0.
    """
    ending = [list(row) for row in grid]
    counts = [sum(map(sum, ending))]
    while len(counts) < most and counts[-1]:
        before = _sums(ending)
        ending = [
            [allowed * (before[h][g] - ending[h][g]) for g, allowed in enumerate(row)]
            for h, row in enumerate(grid)
        ]
        counts.append(sum(map(sum, ending)))
    return counts


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
    """Read the domain `{pairing: value}`; `weight` and `loss` are ignored.

    Raises:
        Malformed: an unknown key, an empty or invalid list of layers or pairs, a `min` or `max`
            below 1, or an unknown order.
    """
    if not isinstance(value, Mapping):
        fix = "write {pairing: {hint: auto, guided: auto, max: 1, order: monotone}}"
        raise Malformed(f"`pairing` must be a mapping; got {value!r}", fix)
    for key in value:
        if key not in KEYS:
            message = f"unknown key `{key}`; `pairing` has {_listed(KEYS)}"
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
        count = len(domain.candidates)
        message = f"its {count} pairs allow no set of {least} in the order '{domain.order}'"
        raise Malformed(message, "lower `min`, name more layers, or write `order: any`")
    return domain


def _refuse_company(value: Mapping[str, Json]) -> None:
    """Check that `sets`, `pairs` and lists of layers are not mixed."""
    way = next((key for key in ("sets", "pairs") if key in value), None)
    strange = {
        "sets": ("hint", "guided", "pairs", "min", "max", "order"),
        "pairs": ("hint", "guided"),
    }
    company = [key for key in strange.get(way or "", ()) if key in value]
    if company:
        listed = _listed(f"`{key}`" for key in company)
        fix = f"remove {listed}, or remove `{way}`"
        raise Malformed(f"`{way}` lists everything to draw, so {listed} cannot be given", fix)


def _order(value: Mapping[str, Any], usual: Order) -> Order:
    order = value.get("order", usual)
    if order not in ORDERS:
        message = f"`order` must be 'monotone', 'any' or 'reverse'; got {order!r}"
        raise Malformed(message, near(str(order), ORDERS))
    return order


def _span(value: Mapping[str, Any]) -> tuple[int, int]:
    least, most = value.get("min", 1), value.get("max", max(1, _whole(value.get("min"))))
    for key, count in (("min", least), ("max", most)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            fix = "for trials without pairs, write `loss` as a choice with null"
            raise Malformed(f"`{key}` must be a whole number >= 1; got {count!r}", fix)
    if least > most:
        raise Malformed(f"`min` {least} is greater than `max` {most}", "exchange them")
    return least, most


def _whole(value: Json) -> int:
    return value if isinstance(value, int) else 1


def _layers(side: str, value: Mapping[str, Any]) -> Layers:
    names = value.get(side, "auto")
    if names in WIDE:
        return names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fix = f"write `{side}: auto` or `{side}: [stage1, stage2]`"
        if isinstance(names, str):
            fix = near(names, WIDE) or f"write `{side}: [{names}]`"
        message = f"`{side}` must be auto, blocks, all or a list of layers; got {names!r}"
        raise Malformed(message, fix)
    if not names:
        raise Malformed(f"`{side}` is an empty list", "name layers, or write auto")
    if len(set(names)) < len(names):
        raise Malformed(f"`{side}` names a layer twice: {_listed(names)}", "name each once")
    return tuple(names)


def _sets(value: Json) -> tuple[tuple[LayerPair, ...], ...]:
    fix = "write `sets: [[[stage1, stage1]], [[stage1, stage2], [stage2, stage3]]]`"
    if not isinstance(value, list) or not value:
        raise Malformed(f"`sets` must be a list of lists of pairs; got {value!r}", fix)
    sets = tuple(_pairs(f"sets[{i}]", pairs) for i, pairs in enumerate(value))
    for i, pairs in enumerate(sets):
        if pairs in sets[:i]:
            raise Malformed(f"`sets[{i}]` appears twice: {_listed(map(str, pairs))}", "remove one")
    return sets


def _pairs(key: str, value: Json) -> tuple[LayerPair, ...]:
    if not isinstance(value, list) or not value:
        fix = "write [[stage1, stage2], ...], hint layer first"
        raise Malformed(f"`{key}` must be a non-empty list of pairs; got {value!r}", fix)
    pairs = tuple(_pair(f"{key}[{i}]", item) for i, item in enumerate(value))
    bare_pairs = [bare(pair) for pair in pairs]
    for i, pair in enumerate(bare_pairs):
        if pair in bare_pairs[:i]:
            raise Malformed(f"`{key}` names the pair {pair} twice", "remove one of them")
    return pairs


def _pair(place: str, value: Any) -> LayerPair:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value):
        return LayerPair(*value)
    fix = "write [HINT, GUIDED] or {hint: HINT, guided: GUIDED}"
    if not isinstance(value, Mapping):
        raise Malformed(f"`{place}` must be a pair of layers; got {value!r}", fix)
    for side in ("hint", "guided"):
        if not isinstance(value.get(side), str):
            raise Malformed(f"`{place}` has no `{side}`; got {dict(value)!r}", fix)
    allowed = ("hint", "guided", *PAIR_KEYS)
    for strange in (key for key in value if key not in allowed):
        message = f"unknown key `{strange}` in `{place}`; a pair has {_listed(allowed)}"
        raise Malformed(message, near(strange, allowed))
    settings = {key: value[key] for key in PAIR_KEYS if key in value}
    if _is_open(settings):
        fix = "put it next to the list of pairs; it is then drawn for each pair"
        raise Malformed(f"`{place}` contains a domain; candidates must be fixed", fix)
    return LayerPair(value["hint"], value["guided"], json.dumps(settings) if settings else "")


def _is_open(value: Json) -> bool:
    if isinstance(value, list):
        return any(map(_is_open, value))
    if not isinstance(value, Mapping):
        return False
    return domain_kind(value) is not None or any(map(_is_open, value.values()))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
