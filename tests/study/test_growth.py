"""Growth of a space: every point of the old space must be a point of the new one."""

from __future__ import annotations

import itertools

import pytest
from optuna.trial import FixedTrial

from raykd.study.space.growth import lost_values
from raykd.study.space.reuse import transfer_values
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import Space, read_space
from raykd.study.yaml_file import parse_document

SIDES = "hint: [stage1, stage2, stage3], guided: [stage1, stage2, stage3]"


def space_of(value: str, key: str = "student") -> Space:
    space, problems, _ = read_space(parse_document(f"{key}: {value}", "study.yaml"))
    assert not problems, problems
    return space


def lost(old: str, new: str, key: str = "student") -> list[str]:
    return [*lost_values(space_of(old, key).root, space_of(new, key).root, ())]


GROWTH = [
    ("8", "8"),
    ("8", "{choice: [8, 16]}"),
    ("8", "{int: [4, 16], step: 4}"),
    ("{choice: [4, 6]}", "{choice: [8, 6, 4]}"),
    ("{choice: [4, 6]}", "{int: [4, 8]}"),
    ("{choice: [4, {int: [8, 16]}]}", "{choice: [4, {int: [8, 32]}]}"),
    ("{int: [8, 16], step: 8}", "{int: [8, 32], step: 8}"),
    ("{int: [8, 16], step: 8}", "{int: [8, 16], step: 4}"),
    ("{int: [8, 16], step: 8}", "{int: [4, 16]}"),
    ("{uniform: [1, 2]}", "{uniform: [0.5, 4]}"),
    ("{uniform: [1, 2], step: 0.5}", "{uniform: [1, 2]}"),
    ("{loguniform: [0.1, 1]}", "{loguniform: [0.01, 1]}"),
    ("{logint: [1, 8]}", "{logint: [1, 64]}"),
    ("{name: mlp, width: {int: [4, 8]}}", "{name: mlp, width: {int: [4, 16]}}"),
    ("{name: mlp, width: 8}", "{choice: [{name: resnet}, {name: mlp, width: {int: [4, 8]}}]}"),
    (
        "{choice: [{name: mlp, width: {int: [4, 8]}}, {name: resnet}]}",
        "{choice: [{name: mlp, width: {int: [4, 16]}}, {name: resnet}, {name: vgg}]}",
    ),
    ("[1, {choice: [2, 3]}]", "[{choice: [0, 1]}, {choice: [2, 3, 4]}]"),
]
"""Values of a study, and values that contain them."""

SHRINKAGE = [
    ("8", "16", "student: 8 -> 16"),
    ("true", "1", "student: True -> 1"),
    ("{choice: [4, 6]}", "{choice: [4, 8]}", "student without 6"),
    ("{choice: [4, 6]}", "4", "student without 6"),
    ("{choice: [4, 9]}", "{int: [4, 8]}", "student without 9"),
    ("{int: [8, 16]}", "{int: [8, 12]}", "student: 8 to 16 -> 8 to 12"),
    ("{int: [8, 16]}", "{int: [8, 16], step: 8}", "student: 8 to 16 -> 8 to 16, step 8"),
    ("{int: [8, 16], step: 4}", "{int: [6, 18], step: 4}", "8 to 16, step 4 -> 6 to 18, step 4"),
    ("{uniform: [1, 2]}", "{uniform: [1, 2], step: 0.5}", "1 to 2 -> 1 to 2, step 0.5"),
    ("{uniform: [1, 2]}", "{loguniform: [1, 2]}", "student: 1 to 2 -> 1 to 2, log"),
    ("{name: mlp, width: 8}", "{name: mlp}", "student.width: 8 -> none"),
    ("{name: mlp, width: {int: [4, 8]}}", "{name: mlp, width: 4}", "student.width: 4 to 8 -> 4"),
    ("{choice: [{name: mlp}, {name: vgg}]}", "{choice: [{name: mlp}]}", "student without vgg"),
    ("[1, 2]", "[1]", "student: [1, 2] -> [1]"),
    ("{int: [4, 8]}", "{choice: [4, 5, 6, 7, 8]}", "student: 4 to 8 -> 4 | 5 | 6 | 7 | 8"),
]
"""Values of a study, values that do not contain them, and the message."""


@pytest.mark.parametrize(("old", "new"), GROWTH)
def test_space_with_all_old_points_has_grown(old: str, new: str) -> None:
    assert lost(old, new) == []


@pytest.mark.parametrize(("old", "new"), GROWTH)
def test_old_points_are_points_of_grown_space(old: str, new: str) -> None:
    small, large = space_of(old), space_of(new)
    for seed in range(20):
        point = small.draw(Seeded(seed)).data
        values = transfer_values(large, point).params
        assert large.draw(FixedTrial(dict(values))).data == point


@pytest.mark.parametrize(("old", "new", "message"), SHRINKAGE)
def test_lost_values_are_named(old: str, new: str, message: str) -> None:
    [text] = lost(old, new)
    assert message in text


def pairing(fields: str) -> str:
    return f"[{{loss: hint, pairs: {{pairing: {{{fields}}}}}}}]"


PAIRINGS = {
    "stages": SIDES,
    "more pairs": f"{SIDES}, max: 2",
    "any order": f"{SIDES}, max: 2, order: any",
    "fewer layers": "hint: [stage1, stage3], guided: [stage1, stage2]",
    "other order of layers": "hint: [stage3, stage1], guided: [stage1, stage2]",
    "auto": "hint: auto, guided: auto",
    "pairs": "pairs: [[stage1, stage1], [stage2, stage3]]",
    "one pair": "pairs: [[stage1, stage1]]",
}
GROWING_PAIRINGS = {
    ("stages", "more pairs"),
    ("stages", "any order"),
    ("more pairs", "any order"),
    ("fewer layers", "stages"),
    ("fewer layers", "more pairs"),
    ("fewer layers", "any order"),
    ("one pair", "pairs"),
}


@pytest.mark.parametrize(("old", "new"), itertools.permutations(PAIRINGS, 2))
def test_pairings_grow(old: str, new: str) -> None:
    texts = lost(pairing(PAIRINGS[old]), pairing(PAIRINGS[new]), "knowledge")
    assert (not texts) is ((old, new) in GROWING_PAIRINGS)
    assert not lost(pairing(PAIRINGS[old]), pairing(PAIRINGS[old]), "knowledge")
