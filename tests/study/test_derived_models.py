"""Compressed students in studies: their base and inherited weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.derived_studies import KD, derived_study, open_derived
from raykd.errors import StudyError
from raykd.models import Resnet, Signature
from raykd.models.compression import LayerPruning, LowRank, Quantized
from raykd.schemes import TeacherSpec
from raykd.study.config import Student, plain, read_study
from raykd.training.teacher_keys import spec_key

KINDS = ("layer_pruning", "channel_pruning", "low_rank", "separable", "quantized", "copy")
TASK = Signature((1, 8, 8), 10)


# The study file


def test_default_base_is_teachers_model() -> None:
    study = derived_study(model={"name": "quantized", "base": {"name": "low_rank"}})
    assert study.teacher is not None
    assert study.student == Student(model=Quantized(base=LowRank(base=study.teacher.model)))
    assert read_study(plain(study)) == study
    named = {"name": "layer_pruning", "base": {"name": "resnet", "depth": 20}}
    assert derived_study(model=named).student.model == LayerPruning(base=Resnet(depth=20))


def test_every_compression_in_one_space() -> None:
    study = open_derived("knowledge[1].pairs={pairing: {hint: auto, guided: auto, max: 1}}")
    drawn = [study.bind(TASK).sample(seed).resolved for seed in range(30)]
    assert {point.student.model.name for point in drawn} == set(KINDS)
    for point in drawn:
        assert point.teacher is not None
        assert point.student.model.origin == point.teacher.model
        flat = study.flat(point)
        inner = (
            "student.model.base.base"
            if point.student.model.name == "quantized"
            else "student.model.base"
        )
        assert flat[inner] == "resnet" and flat[f"{inner}.depth"] == 14


def test_base_follows_open_teacher() -> None:
    study = open_derived("teacher.model.depth={choice: [14, 20]}", "student.model=low_rank")
    drawn = [study.bind(TASK).sample(seed).resolved for seed in range(12)]
    assert {point.student.model.base.depth for point in drawn} == {14, 20}  # type: ignore[union-attr]
    assert all(point.student.model.base == point.teacher.model for point in drawn)  # type: ignore[union-attr]


def test_compressed_teacher() -> None:
    model = {"name": "layer_pruning", "base": {"name": "resnet", "depth": 20, "width": 4}}
    teacher = {"model": model, "train": {"epochs": 1}}
    study = derived_study(model={"name": "low_rank"}, teacher=teacher)
    assert study.teacher is not None and study.student.model.origin == study.teacher.model
    (base,) = study.required_networks()
    assert base.model == study.teacher.model and base.needs == ()
    assert read_study(plain(study)) == study


WRONG = [
    (
        ("teacher=null", "student.model=low_rank", "scheme=alone", "knowledge=[]"),
        "student.model.base: nothing says what 'low_rank' is derived from: `base` is null, and the "
        "study has no teacher\n    -> name the teacher's `model`, or name a model under `base`",
    ),
    (
        (
            "teacher={weights: 'models:/m@champion'}",
            "student.model={name: quantized, base: separable}",
            "knowledge=[{loss: kd}]",
        ),
        "student.model.base.base: nothing says what 'separable' is derived from: `base` is null, "
        "and the teacher is given by `weights` alone",
    ),
    (
        ("teacher.model=layer_pruning", "student.model={name: mlp}"),
        "teacher.model.base: nothing says what 'layer_pruning' is derived from: `base` is null, "
        "and it is the teacher itself\n    -> name a model under `base`",
    ),
    (("student.model={name: low_rank, rank: 0}",), "student.model.rank: got 0; must be > 0"),
    (
        ("student.model={name: layer_pruning, keep: 1.5}",),
        "student.model.keep: got 1.5; must be <= 1",
    ),
    (
        ("student.model={name: copy, base: {name: resnet, depth: 15}}",),
        "student.model.base.depth: a resnet's depth, with 3 stages of basic blocks, is 6n+2",
    ),
    (
        ("teacher.model={name: mlp}", "student.model=separable"),
        "student.model: mlp has no dense convolution that `separable` can replace",
    ),
    (
        ("teacher.model={name: resnet, depth: 8}", "student.model={name: layer_pruning}"),
        "student.model: resnet has no blocks to remove",
    ),
    (
        ("teacher.model={name: shufflenet_v1}", "student.model=channel_pruning"),
        "student.model: the channels of shufflenet_v1 cannot be pruned by 0.5",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[row[1][:45] for row in WRONG])
def test_errors_before_anything_starts(overrides: Any, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        open_derived(*overrides)
    (problem,) = caught.value.problems
    assert message in str(problem)


# Who is inherited from


def test_every_scheme_gets_teacher() -> None:
    teacher = derived_study().teacher
    assert teacher is not None and teacher.train is not None
    spec = TeacherSpec(model=teacher.model, weights=None, train=teacher.train, seed=0)
    assert derived_study().required_networks() == (spec,)
    assert derived_study().teacher_specs() == ()
    for scheme in ("dml", "byot", "one"):
        assert derived_study(scheme={"name": scheme}).required_networks() == (spec,)
    assert derived_study(scheme={"name": "offline"}, knowledge=KD).required_networks() == (
        spec,
        spec,
    )
    fresh = derived_study(model={"name": "layer_pruning", "inherit_weights": False})
    assert fresh.required_networks() == ()
    other = derived_study(model={"name": "layer_pruning", "base": {"name": "resnet", "depth": 20}})
    assert other.required_networks() == () and other.student.model.build(TASK)


def test_earlier_networks_inherit_too() -> None:
    last = derived_study().required_networks()[-1]
    (first,) = derived_study(scheme={"name": "born_again"}).teacher_specs()
    assert (
        first.model == derived_study().student.model
        and first.origin == last
        and first.needs == (last,)
    )
    chain = [{"model": {"name": "low_rank", "rank": 0.5}}]
    (assistant,) = derived_study(
        scheme={"name": "assistant", "chain": chain}, knowledge=KD
    ).teacher_specs()
    assert assistant.origin == last and assistant.needs == (last, last)
    study = derived_study()
    other = replace(first, origin=replace(last, seed=5))
    assert spec_key(first, study, "x") != spec_key(other, study, "x")
