"""The space of a study: a tree of fixed and open values from which concrete studies are drawn.

A draw walks over the tree, asks for each open value by its place in the study
(`knowledge[0].loss` = "kd", then `knowledge[0].loss.temperature` = 4.2), and gives plain data: a
concrete study.  If two branches have different domains at one place, the parameter's name contains
the label of the branch (`knowledge[0].loss.kd.temperature`).

Some keys are conditional: a term without a loss needs no weight and no pairs, a loss on logits no
pairs, and a scheme without knowledge no terms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raykd.errors import Problem
from raykd.losses import LOSSES
from raykd.schemes import SCHEMES
from raykd.study.space.domains import (
    Choice,
    Condition,
    Fixed,
    Group,
    Listing,
    Malformed,
    Node,
    Number,
    Pairing,
    domain_kind,
    domains_of,
    is_open,
    labels_of,
    name_of,
    nodes_of,
    read_range,
    rebuilt,
)
from raykd.study.space.pairing import PAIR_KEYS, WIDE, Wide, read_pairing
from raykd.study.space.sampling import Scalar, Suggest, corners, every
from raykd.study.space.size import Dimension, Size, dimensions_of, size_of
from raykd.study.yaml_file import Document, Json, Place, dotted

CLOSED = ("name", "seed", "task", "search", "cluster", "cache", "tracking")
"""Parts of a study without domains: they are the same for all trials."""


@dataclass(frozen=True)
class Point:
    """One concrete study as plain data.

    Attributes:
        data: mappings, lists and scalars.
        origins: the place in the study file of each place of `data`.
    """

    data: dict[str, Any]
    origins: Mapping[Place, Place]


@dataclass(frozen=True)
class Space:
    """All concrete studies that a study file allows."""

    root: Group

    def draw(self, suggest: Suggest) -> Point:
        """Draw a point; `suggest` gives the open values.

        Raises:
            Infeasible: the values contradict one another (the same pair twice).
        """
        walk = _Walk(suggest)
        data = walk.draw(self.root, ())
        assert isinstance(data, dict)
        return Point(data, walk.origins)

    def part(self, key: str) -> Space:
        """Return the space of one part of the study, without the rest."""
        items = {name: node for name, node in self.root.items.items() if name == key}
        return Space(replace(self.root, items=items, condition=None))

    def corners(self) -> list[Point]:
        """Points that cover every branch and both ends of every range at least once."""
        return corners(Space(_unshared(self.root)).draw)

    def points(self) -> Iterator[Point]:
        """Every point of a finite space.

        Raises:
            ValueError: a value is continuous.
        """
        return (point for _, point in every(self.draw))

    @property
    def size(self) -> Size:
        return size_of(self.root)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The parameters in the order of drawing."""
        return dimensions_of(self.root)

    @property
    def pairings(self) -> tuple[Pairing, ...]:
        return tuple(node for node in nodes_of(self.root) if isinstance(node, Pairing))

    @property
    def sketched(self) -> Space:
        """The same with invented stages in place of layers that only the models determine."""

        def fill(node: Pairing) -> Pairing:
            stages = dict.fromkeys(WIDE, tuple(f"stage{i + 1}" for i in range(node.domain.min)))
            return replace(node, domain=node.domain.filled(stages, stages))

        return self.with_pairings(fill)

    def with_layers(
        self, hint: Mapping[Wide, Sequence[str]], guided: Mapping[Wide, Sequence[str]]
    ) -> Space:
        """Return the same with `auto`, `blocks` and `all` replaced by layer names."""
        return self.with_pairings(
            lambda node: replace(node, domain=node.domain.filled(hint, guided))
        )

    def with_pairings(self, change: Callable[[Pairing], Pairing]) -> Space:
        """Return the same with each pairing changed."""
        root = rebuilt(self.root, lambda node: change(node) if isinstance(node, Pairing) else node)
        assert isinstance(root, Group)
        return Space(root)


def read_space(document: Document) -> tuple[Space, list[Problem], frozenset[Place]]:
    """Read the space of a document.

    Returns:
        the space; the problems of its domains; and the places whose values are invalid because of
        them.
    """
    builder = _Builder(document)
    root = builder.group(document.data, (), ())
    return Space(root), builder.problems, frozenset(builder.broken)


class _Builder:
    """Reads a document into nodes and collects the problems of its domains."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.broken: set[Place] = set()

    def node(self, value: Json, source: Place, place: Place) -> Node:
        try:
            kind = domain_kind(value)
            if kind is not None and isinstance(value, Mapping):
                self.allow(kind, value, place)
                return self.domain(kind, value, source, place)
        except Malformed as error:
            problem = self.document.problem(source, str(error), error.fix, dotted(place))
            self.problems.append(problem)
            self.broken.add(place)
            return Fixed(source, None)
        if isinstance(value, Mapping):
            return self.group(value, source, place)
        if isinstance(value, list):
            items = (self.node(item, (*source, i), (*place, i)) for i, item in enumerate(value))
            return Listing(source, tuple(items))
        return Fixed(source, value)

    def group(self, value: Mapping[str, Json], source: Place, place: Place) -> Group:
        items = {
            key: self.node(child, (*source, key), (*place, key)) for key, child in value.items()
        }
        open_keys = frozenset(key for key, node in items.items() if is_open(node))
        return Group(source, items, _condition_at(place, items.keys(), open_keys))

    def allow(self, kind: str, value: Mapping[str, Json], place: Place) -> None:
        """Raise Malformed if the domain is not allowed at this place."""
        if not place:
            raise Malformed("the whole study cannot be a domain", "put domains inside it")
        top = place[0]
        if top in CLOSED:
            raise Malformed(
                f"`{kind}` is not allowed under `{top}`, which is the same for all trials",
                "give one value, and use another study for other values",
            )
        is_view = place[1:2] == ("augment",) or place[1:] == ("unlabeled", "ratio")
        if top == "data" and not is_view:
            raise Malformed(
                f"`{kind}` is not allowed here: all trials of a study share one data set",
                "give one value; of the data, only data.augment and data.unlabeled.ratio can be "
                "left open",
            )
        if kind == "pairing" and not (top == "knowledge" and place[2:] == ("pairs",)):
            fix = "use it as the value of `pairs` in a term of `knowledge`"
            raise Malformed("`pairing` is not allowed here", fix)
        if top == "teacher" and kind in ("uniform", "loguniform") and "step" not in value:
            raise Malformed(
                f"`{kind}` is not allowed under `teacher`: every variant of it is trained once",
                "list the variants, {choice: [...]}, or give `uniform` a `step`",
            )

    def domain(self, kind: str, value: Mapping[str, Json], source: Place, place: Place) -> Node:
        if kind == "choice":
            return self.choice(value["choice"], source, place)
        if kind == "pairing":
            return self.pairing(value["pairing"], source, place)
        if kind in ("uniform", "loguniform", "int", "logint"):
            return Number(source, dotted(place), read_range(kind, value[kind], value.get("step")))
        raise AssertionError(kind)

    def pairing(self, value: Json, source: Place, place: Place) -> Node:
        domain = read_pairing(value)
        fields = value if isinstance(value, Mapping) else {}
        written = {key: fields[key] for key in PAIR_KEYS if key in fields}
        inner = (*source, "pairing")
        settings = [
            Group(
                inner,
                {k: self.node(v, (*inner, k), (*place, i, k)) for k, v in written.items()},
            )
            for i in range(domain.max if written else 0)
        ]
        return Pairing(source, dotted(place), domain, tuple(settings))

    def choice(self, options: Json, source: Place, place: Place) -> Node:
        if not isinstance(options, list):
            fix = "write {choice: [first, second]}"
            raise Malformed(f"`choice` must be a list of options; got {options!r}", fix)
        if not options:
            raise Malformed("an empty choice", "list at least one option")
        for i, option in enumerate(options):
            if any(_same(option, other) for other in options[:i]):
                raise Malformed(f"option {option!r} appears twice", "remove one of them")
        name, labels = dotted(place), labels_of(options)
        nodes = [
            self.node(option, (*source, "choice", i), place) for i, option in enumerate(options)
        ]
        return Choice(source, name, labels, _distinct(name, labels, nodes))


def _condition_at(
    place: Place, keys: Collection[str], open_keys: Collection[str]
) -> Condition | None:
    """Return the condition of the mapping at `place`; None if no key is conditional.

    Keys without a domain are never conditional on a fixed parent: pairs of a loss on logits are an
    error to report.

    Args:
        place: of the mapping, in the concrete study.
        keys: the mapping's keys.
        open_keys: the keys whose values contain domains.
    """
    if not place and {"scheme", "knowledge"} <= set(keys) and "scheme" in open_keys:
        return Condition("scheme", frozenset({"knowledge"}), _inactive_under_scheme)
    if place[:1] == ("knowledge",) and len(place) == 2 and "loss" in keys:
        conditional = set(open_keys) - {"loss"}
        if "loss" in open_keys and "pairs" in keys:
            conditional.add("pairs")
        if conditional:
            return Condition("loss", frozenset(conditional), _inactive_under_loss)
    return None


def _inactive_under_scheme(scheme: Json) -> frozenset[str] | None:
    cls = SCHEMES.members.get(name_of(scheme))
    return frozenset() if cls is None or getattr(cls, "takes_knowledge", True) else None


def _inactive_under_loss(loss: Json) -> frozenset[str] | None:
    if loss is None:
        return None
    cls = LOSSES.members.get(name_of(loss))
    takes = cls is None or getattr(cls, "takes_pairs", True)
    return frozenset() if takes else frozenset({"pairs"})


def _same(first: Json, second: Json) -> bool:
    return type(first) is type(second) and first == second


def _distinct(name: str, labels: Sequence[Scalar], options: list[Node]) -> tuple[Node, ...]:
    """Return the options, with labels in the names of parameters that would otherwise collide."""
    by_option = [
        {node.parameter: _domain_of(node) for node in domains_of(option)} for option in options
    ]
    domains: dict[str, list[Any]] = {name: [None]}
    for parameters in by_option:
        for parameter, domain in parameters.items():
            domains.setdefault(parameter, []).append(domain)
    clashing = {
        key for key, each in domains.items() if any(domain != each[0] for domain in each[1:])
    }
    return tuple(
        _renamed(
            option,
            {key: f"{name}.{label}{key.removeprefix(name)}" for key in clashing & set(parameters)},
        )
        for option, label, parameters in zip(options, labels, by_option, strict=True)
    )


def _domain_of(node: Choice | Number | Pairing) -> object:
    return node.labels if isinstance(node, Choice) else node.domain


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    def rename(each: Node) -> Node:
        if isinstance(each, Choice | Number | Pairing) and each.parameter in names:
            return replace(each, parameter=names[each.parameter])
        return each

    return rebuilt(node, rename) if names else node


def _unshared(root: Group) -> Group:
    """Return the same with a separate parameter for every domain, so that branches share none."""

    def rename(each: Node) -> Node:
        if isinstance(each, Choice | Number | Pairing):
            return replace(each, parameter=dotted(each.source))
        return each

    unshared = rebuilt(root, rename)
    assert isinstance(unshared, Group)
    return unshared


class _Walk:
    """Draws one point."""

    def __init__(self, suggest: Suggest) -> None:
        self.suggest = suggest
        self.origins: dict[Place, Place] = {}

    def draw(self, node: Node, place: Place) -> Json:
        self.origins[place] = node.source
        match node:
            case Fixed():
                return node.value
            case Listing():
                return [self.draw(item, (*place, i)) for i, item in enumerate(node.items)]
            case Group():
                return self._group(node, place)
            case Choice():
                return self.draw(self._option(node), place)
            case Number():
                return node.domain.draw(self.suggest, node.parameter)
            case Pairing():
                return self._pairing(node, place)

    def _option(self, node: Choice) -> Node:
        if len(node.options) == 1:
            return node.options[0]
        label = self.suggest.suggest_categorical(node.parameter, node.labels)
        if label not in node.labels:
            raise ValueError(f"{node.parameter}: got {label!r}; must be one of {list(node.labels)}")
        return node.options[node.labels.index(label)]

    def _group(self, node: Group, place: Place) -> dict[str, Json]:
        conditional = node.condition.keys if node.condition is not None else frozenset()
        drawn = {
            key: self.draw(item, (*place, key))
            for key, item in node.items.items()
            if key not in conditional
        }
        if node.condition is not None:
            active = node.condition.active(drawn[node.condition.parent])
            for key in (key for key in node.items if key in active):
                drawn[key] = self._conditional(
                    node.items[key], (*place, key), drawn[node.condition.parent]
                )
        return {key: drawn[key] for key in node.items if key in drawn}

    def _conditional(self, node: Node, place: Place, parent: Json) -> Json:
        """Draw a conditional key; the domain of pairs may depend on the loss (`parent`), too."""
        if not isinstance(node, Pairing):
            return self.draw(node, place)
        self.origins[place] = node.source
        return self._pairing(node, place, name_of(parent))

    def _pairing(self, node: Pairing, place: Place, loss: str = "") -> list[Json]:
        name, domain = node.of(loss)
        pairs: list[Json] = []
        for i, pair in enumerate(domain.draw(self.suggest, name)):
            inner = (*place, i)
            places = (
                inner,
                (*inner, "hint"),
                (*inner, "guided"),
                *((*inner, k) for k in pair.settings),
            )
            self.origins |= dict.fromkeys(places, node.source)
            settings = self._pair_settings(node, i, {*pair.settings}, inner)
            pairs.append({"hint": pair.hint, "guided": pair.guided, **pair.settings, **settings})
        return pairs

    def _pair_settings(
        self, node: Pairing, number: int, present: set[str], place: Place
    ) -> dict[str, Json]:
        """Draw weight and loss of one pair, except those that the pair already has."""
        if not node.settings:
            return {}
        items = node.settings[number].items.items()
        return {key: self.draw(item, (*place, key)) for key, item in items if key not in present}
