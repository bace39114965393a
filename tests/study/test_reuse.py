"""Reuse of another study's point in a space."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import FixedTrial

from raykd.errors import Infeasible
from raykd.study.space.pairing import LayerPair, read_pairing
from raykd.study.space.reuse import Transfer, open_paths, params_for_pairs, transfer_values
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import Space, read_space
from raykd.study.yaml_file import parse_document

POINT: dict[str, Any] = {
    "name": "other",
    "student": {"model": {"name": "resnet", "depth": 14, "width": 12}},
    "scheme": {"name": "offline", "task_weight": 1.0},
    "knowledge": [
        {"loss": {"name": "kd", "temperature": 4.0}, "weight": 0.5, "pairs": None},
        {
            "loss": {"name": "hint", "similarity": "l2"},
            "weight": 3.0,
            "pairs": [
                {"hint": "stage1", "guided": "stage2", "weight": 1.0, "loss": None},
                {"hint": "stage3", "guided": "stage3", "weight": 2.0, "loss": {"name": "at"}},
            ],
        },
    ],
    "train": {"epochs": 8, "optimizer": {"name": "sgd", "lr": 0.05}},
}

SIDES = "hint: [stage1, stage2, stage3], guided: [stage1, stage2, stage3]"


def space_of(text: str) -> Space:
    space, problems, _ = read_space(parse_document(text, "study.yaml"))
    assert not problems, problems
    return space


def reused(text: str, point: dict[str, Any] | None = None) -> Transfer:
    return transfer_values(space_of(text), point or POINT)


@pytest.mark.parametrize(
    ("text", "params"),
    [
        (
            "student: {model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [8, 16]}}}",
            {"student.model.depth": 14, "student.model.width": 12},
        ),
        (
            "student: {model: {name: resnet, depth: 8, width: {int: [4, 16], step: 8}}}",
            {"student.model.width": 12},
        ),
        ("student: {model: {name: resnet, width: {int: [5, 17], step: 8}}}", {}),
        ("student: {model: {name: mlp, width: {int: [8, 16]}}}", {}),
        (
            "student: {model: {choice: [{name: mlp}, {name: resnet, width: {choice: [12, 16]}}]}}",
            {"student.model": "resnet", "student.model.width": 12},
        ),
        (
            "student: {model: {choice: [{name: resnet, depth: 8}, {name: resnet, depth: 14}]}}",
            {"student.model": "resnet(depth=14)"},
        ),
        ("student: {model: {choice: [{name: resnet, depth: 8}, {name: resnet, depth: 20}]}}", {}),
        ("scheme: {choice: [dml, offline]}", {"scheme": "offline"}),
        ("train: {epochs: {choice: [4, 8]}}", {"train.epochs": 8}),
        (
            "train: {optimizer: {name: sgd, lr: {loguniform: [0.01, 0.1]}}}",
            {"train.optimizer.lr": 0.05},
        ),
    ],
)
def test_values_within_space_are_reused(text: str, params: dict[str, Any]) -> None:
    assert reused(text + "\n").params == params


TERMS = """\
knowledge:
  - loss: {choice: [null, {name: hint, similarity: {choice: [l1, l2]}}, {name: at}]}
    weight: {loguniform: [1, 10]}
    pairs: {pairing: {SIDES, max: 2}}
  - loss: {name: kd, temperature: {uniform: [1, 8]}}
    weight: {uniform: [1, 2]}
""".replace("SIDES", SIDES)


def test_terms_are_matched_by_loss() -> None:
    result = reused(TERMS)
    assert result.params == {
        "knowledge[0].loss": "hint",
        "knowledge[0].loss.similarity": "l2",
        "knowledge[0].weight": 3.0,
        "knowledge[0].pairs.count": 2,
        "knowledge[0].pairs[0].hint": "stage1",
        "knowledge[0].pairs[0].guided": "stage2",
        "knowledge[0].pairs[1].hint": "stage3",
        "knowledge[0].pairs[1].guided": "stage3",
        "knowledge[1].loss.temperature": 4.0,
    }
    assert result.reason("knowledge[0].weight") == "it is outside 1 to 2"
    assert result.reason("knowledge[1].pairs") == ""
    assert result.reason("student.model.width") == "this study leaves nothing open there"


def test_reused_values_are_drawn() -> None:
    space = space_of(TERMS)
    drawer = Seeded(0)
    drawer.params.update(transfer_values(space, POINT).params)
    hint, kd = space.draw(drawer).data["knowledge"]
    assert hint["pairs"] == [
        {"hint": "stage1", "guided": "stage2"},
        {"hint": "stage3", "guided": "stage3"},
    ]
    assert (hint["weight"], kd["loss"]["temperature"]) == (3.0, 4.0)


def test_settings_of_pairs_are_reused() -> None:
    text = (
        "knowledge:\n  - loss: {name: hint}\n    pairs: {pairing: {SIDES, max: 2, "
        "weight: {loguniform: [0.1, 10]}, loss: {choice: [null, at]}}}\n"
    )
    result = reused(text.replace("SIDES", SIDES))
    settings = {name: value for name, value in result.params.items() if not name.endswith("guided")}
    assert settings == {
        "knowledge[0].pairs.count": 2,
        "knowledge[0].pairs[0].hint": "stage1",
        "knowledge[0].pairs[0].weight": 1.0,
        "knowledge[0].pairs[0].loss": "none",
        "knowledge[0].pairs[1].hint": "stage3",
        "knowledge[0].pairs[1].weight": 2.0,
        "knowledge[0].pairs[1].loss": "at",
    }


@pytest.mark.parametrize(
    ("pairing", "reason"),
    [
        ("hint: [stage1], guided: [stage2, stage3]", "stage3>stage3 is not one of its pairs"),
        ("SIDES", "got 2 pairs; must be 1 to 1"),
        ("SIDES, max: 2, order: reverse", "are not in the order 'reverse'"),
        ("sets: [[[stage1, stage1]], [[stage1, stage3]]]", "is not one of its sets"),
    ],
)
def test_pairs_are_reused_completely_or_not_at_all(pairing: str, reason: str) -> None:
    pairing = pairing.replace("SIDES", SIDES)
    result = reused(f"knowledge:\n  - loss: hint\n    pairs: {{pairing: {{{pairing}}}}}\n")
    assert result.params == {}
    assert reason in result.reason("knowledge[1].pairs")


@pytest.mark.parametrize(
    "pairing",
    [
        {"pairs": [["stage1", "stage2"], ["stage2", "stage2"], ["stage3", "stage3"]], "max": 3},
        {"sets": [[["stage1", "stage1"]], [["stage3", "stage3"], ["stage1", "stage2"]]]},
        {"hint": ["stage1", "stage3"], "guided": ["stage2", "stage3"], "max": 2, "order": "any"},
    ],
)
def test_every_form_of_pairing_reuses_pairs(pairing: dict[str, Any]) -> None:
    domain = read_pairing(pairing)
    expected = {LayerPair("stage1", "stage2"), LayerPair("stage3", "stage3")}
    params, pairs = domain.params_of(sorted(expected), "p")
    assert {*pairs} == expected
    assert domain.draw(FixedTrial(params), "p") == pairs
    with pytest.raises(Infeasible):
        domain.params_of([LayerPair("stage3", "stage1")], "p")


def test_pairs_without_loss_go_to_first_compatible_term() -> None:
    space = space_of(
        "knowledge:\n"
        "  - loss: at\n    pairs: {pairing: {hint: [stage1, stage2], guided: [stage1, stage2]}}\n"
        "  - loss: hint\n    pairs: {pairing: {hint: [stage1, stage3], guided: [stage2, stage3]}}\n"
    )
    assert params_for_pairs(space, [LayerPair("stage3", "stage3")]) == {
        "knowledge[1].pairs[0].hint": "stage3",
        "knowledge[1].pairs[0].guided": "stage3",
    }
    assert params_for_pairs(space, [LayerPair("stage4", "stage3")]) == {}


def test_pairing_counts_as_one_open_value() -> None:
    assert open_paths(space_of(TERMS)) == (
        "knowledge[0].loss",
        "knowledge[0].loss.similarity",
        "knowledge[0].weight",
        "knowledge[0].pairs",
        "knowledge[1].loss.temperature",
        "knowledge[1].weight",
    )
