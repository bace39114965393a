"""What a study says of students made of the teacher, and whom they inherit from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.derived_studies import KD, derived_study, open_derived
from raykd.errors import StudyError
from raykd.models import Resnet, Task
from raykd.models.compression import LayerPruning, LowRank, Quantized
from raykd.schemes import TeacherSpec
from raykd.study.config import Student, plain, read_study
from raykd.study.teachers import required_networks, teachers_of
from raykd.training.teachers import spec_key

KINDS = ("layer_pruning", "channel_pruning", "low_rank", "separable", "quantized", "copy")
TASK = Task((1, 8, 8), 10)


# What a study says


def test_what_is_left_open_is_the_teachers_model() -> None:
    study = derived_study(model={"name": "quantized", "base": {"name": "low_rank"}})
    assert study.teacher is not None
    assert study.student == Student(model=Quantized(base=LowRank(base=study.teacher.model)))
    assert read_study(plain(study)) == study
    named = {"name": "layer_pruning", "base": {"name": "resnet", "depth": 20}}
    assert derived_study(model=named).student.model == LayerPruning(base=Resnet(depth=20))


def test_every_kind_in_one_space() -> None:
    study = open_derived("knowledge[1].pairs={pairing: {hint: auto, guided: auto, max: 1}}")
    drawn = [study.bind(TASK).sample(seed).resolved for seed in range(30)]
    assert {one.student.model.name for one in drawn} == set(KINDS)
    for one in drawn:
        assert one.teacher is not None
        assert one.student.model.origin == one.teacher.model
        flat = study.flat(one)
        inner = (
            "student.model.base.base"
            if one.student.model.name == "quantized"
            else "student.model.base"
        )
        assert flat[inner] == "resnet" and flat[f"{inner}.depth"] == 14


def test_the_source_follows_a_teacher_that_is_open() -> None:
    study = open_derived("teacher.model.depth={choice: [14, 20]}", "student.model=low_rank")
    drawn = [study.bind(TASK).sample(seed).resolved for seed in range(12)]
    assert {one.student.model.base.depth for one in drawn} == {14, 20}  # type: ignore[union-attr]
    assert all(one.student.model.base == one.teacher.model for one in drawn)  # type: ignore[union-attr]


def test_a_teacher_that_is_itself_derived() -> None:
    model = {"name": "layer_pruning", "base": {"name": "resnet", "depth": 20, "width": 4}}
    teacher = {"model": model, "train": {"epochs": 1}}
    study = derived_study(model={"name": "low_rank"}, teacher=teacher)
    assert study.teacher is not None and study.student.model.origin == study.teacher.model
    (own,) = required_networks(study)
    assert own.model == study.teacher.model and own.needs == ()
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
def test_mistakes_are_told_before_anything_starts(overrides: Any, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        open_derived(*overrides)
    (problem,) = caught.value.problems
    assert message in str(problem)


# Who is inherited from


def test_the_teacher_reaches_every_scheme() -> None:
    teacher = derived_study().teacher
    assert teacher is not None and teacher.train is not None
    own = TeacherSpec(model=teacher.model, weights=None, train=teacher.train, seed=0)
    assert required_networks(derived_study()) == (own,)
    assert teachers_of(derived_study()) == ()
    for scheme in ("dml", "byot", "one"):
        assert required_networks(derived_study(scheme={"name": scheme})) == (own,)
    assert required_networks(derived_study(scheme={"name": "offline"}, knowledge=KD)) == (own, own)
    fresh = derived_study(model={"name": "layer_pruning", "inherit_weights": False})
    assert required_networks(fresh) == ()
    other = derived_study(model={"name": "layer_pruning", "base": {"name": "resnet", "depth": 20}})
    assert required_networks(other) == () and other.student.model.build(TASK)


def test_networks_before_the_student_inherit_too() -> None:
    own = required_networks(derived_study())[-1]
    (first,) = teachers_of(derived_study(scheme={"name": "born_again"}))
    assert (
        first.model == derived_study().student.model
        and first.origin == own
        and first.needs == (own,)
    )
    chain = [{"model": {"name": "low_rank", "rank": 0.5}}]
    (assistant,) = teachers_of(
        derived_study(scheme={"name": "assistant", "chain": chain}, knowledge=KD)
    )
    assert assistant.origin == own and assistant.needs == (own, own)
    study = derived_study()
    other = replace(first, origin=replace(own, seed=5))
    assert spec_key(first, study, "x") != spec_key(other, study, "x")
