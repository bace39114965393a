"""Pairing domains: drawn sets, their frequency, and excluded pairs."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from helpers.study_files import opened
from raykd.errors import Infeasible
from raykd.models import Signature
from raykd.study.space.pairing import LayerPair, PairingDomain, read_pairing
from raykd.study.space.sampling import Seeded, every

TASK = Signature((1, 8, 8), 10)
STUDY = """\
name: paired
data: {name: digits}
teacher: {model: {name: resnet, depth: 14, width: 8}, train: {epochs: 1}}
student: {model: {name: resnet, depth: {choice: [8, 14]}, width: 4}}
knowledge:
  - loss: {choice: [null, {name: hint}, {name: at}, {name: fsp}]}
    pairs: {pairing: PAIRING}
"""
CROSSED = {"hint": list("abc"), "guided": list("xyz")}


def sets_of(domain: PairingDomain) -> set[frozenset[LayerPair]]:
    """Return every set that may be drawn."""
    return {frozenset(drawn) for _, drawn in every(lambda suggest: domain.draw(suggest, "p"))}


def in_order(pairs: Any, order: str) -> bool:
    numbers = [("abc".index(pair.hint), "xyz".index(pair.guided)) for pair in pairs]
    sign = -1 if order == "reverse" else 1
    steps = ((h - i) * (g - j) * sign for (h, g), (i, j) in combinations(numbers, 2))
    return order == "any" or all(step >= 0 for step in steps)


@pytest.mark.parametrize("order", ["monotone", "any", "reverse"])
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("left_out", [(), ("ax",), ("by", "cx"), ("ax", "ay", "az")])
def test_every_set_is_drawn_in_order(order: str, least: int, left_out: tuple[str, ...]) -> None:
    fields = {**CROSSED, "min": least, "max": 3, "order": order}
    excluded = frozenset(LayerPair(*pair) for pair in left_out)
    domain = read_pairing(fields).without(excluded)
    left = [LayerPair(*pair) for pair in product("abc", "xyz") if LayerPair(*pair) not in excluded]
    expected = {
        frozenset(pairs)
        for size in range(least, 4)
        for pairs in combinations(left, size)
        if in_order(pairs, order)
    }
    assert sets_of(domain) == expected
    assert domain.count == len(expected)


def test_excluding_layer_keeps_parameter_names() -> None:
    excluded = frozenset(LayerPair(hint, "x") for hint in "abc")
    domain = read_pairing(CROSSED).without(excluded)
    assert domain.is_crossed
    assert {name for params, _ in every(lambda s: domain.draw(s, "p")) for name in params} == {
        "p[0].hint",
        "p[0].guided",
    } - ({"p[0].guided"} if len(domain.layers[1]) == 1 else set())
    some = read_pairing(CROSSED).without(frozenset({LayerPair("a", "x")}))
    drawer = Seeded(0)
    some.draw(drawer, "p")
    assert list(drawer.params) == ["p[0]"]
    assert ">" in drawer.params["p[0]"]


def test_listed_pairs_and_sets_are_drawn() -> None:
    named = [["a", "x"], {"hint": "b", "guided": "y", "weight": 2}, ["c", "x"]]
    domain = read_pairing({"pairs": named, "max": 2})
    assert domain.count == 3 + 3
    assert {len(pairs) for pairs in sets_of(domain)} == {1, 2}
    assert {pair.settings.get("weight") for pairs in sets_of(domain) for pair in pairs} == {None, 2}
    whole = read_pairing({"sets": [[["a", "x"]], [["a", "y"], ["c", "z"]]]})
    assert sets_of(whole) == {
        frozenset({LayerPair("a", "x")}),
        frozenset({LayerPair("a", "y"), LayerPair("c", "z")}),
    }
    assert whole.count == 2


def study(pairing: str, **changed: str) -> Any:
    text = STUDY.replace("PAIRING", pairing)
    return opened(text, *(f"{place}={value}" for place, value in changed.items()))


def test_each_loss_draws_compatible_pairs() -> None:
    """`at` and `fsp` compare only maps; `hint` also pairs a map and an embedding."""
    space = study("{hint: [stage2, embedding], guided: [stage1, embedding], max: 2}")
    names = {d.name: d.when for d in space.dimensions if "pairs" in d.name}
    assert names["knowledge[0].pairs[0]"] == "knowledge[0].loss = hint"
    assert not any(name.startswith("knowledge[0].pairs.at[") for name in names), "one pair is left"
    lines = space.bind(TASK).filtered.lines
    assert any("under at: " in line and "stage2>embedding" in line for line in lines)
    drawn: dict[str, set[str]] = {}
    for seed in range(100):
        try:
            (term,) = space.bind(TASK).draw(Seeded(seed)).resolved.knowledge
        except Infeasible:  # fsp finds no two pairs
            continue
        if term.loss is not None:
            pairs = {f"{pair.hint}>{pair.guided}" for pair in term.pairs}
            drawn.setdefault(term.loss.name, set()).update(pairs)
    assert drawn["at"] == {"stage2>stage1"}
    assert "stage2>embedding" not in drawn["hint"]
    assert {"embedding>stage1", "embedding>embedding"} < drawn["hint"]


def test_loss_that_requires_two_pairs_gets_two() -> None:
    space = study("{max: 3}")
    names = [dimension.name for dimension in space.dimensions]
    assert "knowledge[0].pairs.count" in names
    assert "knowledge[0].pairs.fsp.count" in names
    for seed in range(60):
        try:
            (term,) = space.bind(TASK).draw(Seeded(seed)).resolved.knowledge
        except Infeasible:  # a pair drawn twice
            continue
        if term.loss is not None and term.loss.name == "fsp":
            assert len(term.pairs) >= 2


def test_size_of_space_counts_draws_of_each_loss() -> None:
    space = study("{max: 2}").bind(TASK).space
    single, double = 9, 27
    assert space.size.combinations == 2 * (1 + 2 * (single + double) + double)


def test_weights_and_losses_are_drawn_per_pair() -> None:
    space = study(
        "{max: 2, weight: {choice: [0.5, 2]}, loss: {choice: [null, {name: at}]}}",
        **{"knowledge[0].loss": "hint", "student.model.depth": "8"},
    )
    assert space.size.combinations == 9 * 4 + 27 * 16
    names = [dimension.name for dimension in space.dimensions]
    assert names[-3:] == [
        "knowledge[0].pairs[1].guided",
        "knowledge[0].pairs[1].weight",
        "knowledge[0].pairs[1].loss",
    ]
    settings = set()
    for seed in range(60):
        try:
            (term,) = space.bind(TASK).draw(Seeded(seed)).resolved.knowledge
        except Infeasible:
            continue
        settings |= {(pair.weight, pair.loss and pair.loss.name) for pair in term.pairs}
        assert {part.loss.name for part in term.parts} <= {"hint", "at"}
    assert settings == {(weight, loss) for weight in (0.5, 2.0) for loss in (None, "at")}


@pytest.mark.parametrize("wide", ["blocks", "all"])
def test_wildcards_use_layers_that_all_models_share(wide: str) -> None:
    hint = {"knowledge[0].loss": "hint"}
    teacher = study(f"{{hint: {wide}, guided: auto}}", **hint)
    (hints,) = (d.values for d in teacher.dimensions if d.name.endswith("hint"))
    assert {"stage1.0", "stage1", "stage3", "embedding"} < {*hints}
    assert "stage1.1" not in hints, "it ends where its stage does"
    assert "classifier" not in hints
    assert len(set(hints)) == len(hints)
    assert ("stage1.0.conv1" in hints) is (wide == "all")
    student = study(f"{{hint: [stage1], guided: {wide}}}", **hint)
    (guided,) = (d.values for d in student.dimensions if d.name.endswith("guided"))
    assert {"stage1", "stage2", "stage3"} <= {*guided}
    assert not any(name.startswith("stage1.1") for name in guided), "depth 8 has one block a stage"
    assert ("stage1.0.conv1" in guided) is (wide == "all")
