"""Cheap predictors of the gain of a layer pair, on digits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from raykd.data import Dataset
from raykd.data.digits import Digits
from raykd.losses import LOSSES, Term
from raykd.study.config import Study, read_study
from raykd.training.layer_probes import ProbedPairs, agreement, gradient_of, probe_layers
from raykd.training.trainer import Training

LAYERS = ("stage1", "stage2")
RESNET = {"name": "resnet", "depth": 8, "width": 4}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=96, val_limit=40).load()


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study(
        {
            "name": "predicting",
            "data": {"name": "digits", "limit": 96, "val_limit": 40},
            "teacher": {"model": RESNET},
            "student": {"model": RESNET},
            "scheme": {"name": "alone"},
            "train": {"epochs": 2, "batch_size": 32},
        }
    )


@pytest.fixture(scope="module")
def teacher(study: Study, data: Dataset) -> nn.Module:
    training = Training(study, data, seed=5)
    for _ in range(training.epochs):
        training.run_epoch()
    return training.student


def probed(
    study: Study,
    data: Dataset,
    teacher: nn.Module,
    trained: nn.Module | None = None,
    **changed: Any,
) -> dict[str, Any]:
    pairs = tuple((hint, guided) for hint in range(2) for guided in range(2))
    loss = Term(loss=LOSSES["hint"]())
    design = ProbedPairs(LAYERS, LAYERS, LAYERS, LAYERS, loss, pairs, steps=4, batches=2)
    training = Training(study, data, seed=0)
    return probe_layers(replace(design, **changed), training, teacher=teacher, trained=trained)


def test_student_equal_to_its_teacher_has_cka_one(
    study: Study, data: Dataset, teacher: nn.Module
) -> None:
    result = probed(study, data, teacher, trained=copy.deepcopy(teacher))
    assert result["steps"] == 4 and set(result["cka"]) == {"start", "steps", "trained"}
    start, trained = (torch.tensor(result["cka"][when]) for when in ("start", "trained"))
    # Not quite 1: the teacher's batch norms take the statistics of its few steps of training.
    assert trained.shape == (2, 2) and trained.diagonal().min() > 0.8
    assert (trained.diagonal() > torch.tensor([trained[0, 1], trained[1, 0]])).all()
    assert (trained.diagonal() > start.diagonal()).all()
    table = torch.tensor(result["gradient"])
    assert table.isfinite().all() and table.abs().max() <= 1


def test_probe_is_reproducible_and_changes_no_network(
    study: Study, data: Dataset, teacher: nn.Module
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trained = Training(study, data, seed=1).student
    then = {name: value.clone() for name, value in trained.state_dict().items()}
    first = probed(study, data, teacher, trained=trained)
    torch.rand(3)  # what the process did before plays no part
    assert probed(study, data, teacher, trained=trained) == first
    assert "trained" in first["cka"]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, then[name]) for name, value in trained.state_dict().items())


def test_impossible_pairs_have_no_gradient(study: Study, data: Dataset, teacher: nn.Module) -> None:
    table = probed(study, data, teacher, possible=((0, 1),))["gradient"]
    assert math.isfinite(table[0][1])
    assert math.isnan(table[0][0]) and math.isnan(table[1][0]) and math.isnan(table[1][1])


def test_steps_equal_those_of_arm_without_hint(study: Study, data: Dataset) -> None:
    """Three batches per epoch: four steps are an epoch plus one step."""
    whole, started = Training(study, data, seed=0), Training(study, data, seed=0)
    whole.run_epoch()
    assert started.run_steps(3) == 3
    assert_same(whole.student, started.student)
    further = Training(study, data, seed=0)
    assert further.run_steps(4) == 4
    assert not torch.equal(flat(further.student), flat(whole.student))
    assert Training(study, data, seed=0).run_steps(100) == 6, "no more than there are"


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def assert_same(first: nn.Module, second: nn.Module) -> None:
    assert torch.equal(flat(first), flat(second))


def test_gradient_agreement_is_one_with_itself_and_minus_one_with_its_opposite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    inputs, targets = torch.randn(8, 4), torch.randint(2, (8,))
    shared = list(model.parameters())
    labels = cross_entropy(model(inputs), targets)
    expected = gradient_of(labels, shared)
    assert agreement(expected, expected) == pytest.approx(1)
    assert agreement(expected, gradient_of(-2 * labels, shared)) == pytest.approx(-1)


def test_only_shared_parameters_count() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    shared = [*first.parameters(), *second.parameters()]
    hidden = first(torch.ones(1, 2))
    deep = gradient_of(second(hidden).sum(), shared)
    shallow = gradient_of(hidden.sum(), shared)
    assert shallow[2] is None and deep[2] is not None
    left, right = (
        torch.cat([g.flatten() for g in of[:2] if g is not None]) for of in (deep, shallow)
    )
    expected = float(left @ right / left.norm() / right.norm())
    assert agreement(deep, shallow) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(agreement([None], [None]))
