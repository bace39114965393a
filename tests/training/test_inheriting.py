"""Students that inherit their teacher's weights, trained without a search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.derived_studies import KD, derived_study
from raykd.data import Dataset
from raykd.models.compression import LowRank
from raykd.schemes import Alone, Assistant, BornAgain, Teacher
from raykd.study.config import plain
from raykd.training.teachers import train_teachers
from raykd.training.trainer import Training


@pytest.fixture(scope="module")
def data() -> Dataset:
    return derived_study().data.load()


@pytest.mark.parametrize(
    "scheme", [Alone(), BornAgain(), Assistant(chain=(Teacher(model=LowRank()),))], ids=str
)
def test_plain_python_training(scheme: Any, data: Dataset) -> None:
    terms = KD if scheme.takes_knowledge else []
    study = derived_study(scheme=plain(scheme), knowledge=terms)
    tensors: dict[str, torch.nn.Module] = {}
    networks = train_teachers(study, data, cache=tensors)
    training = Training(study, data, seed=0, teacher=networks)
    teacher = networks[-1].state_dict()
    ours = training.student.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in ours.items())
    training.run_epoch()
    assert not all(torch.equal(teacher[n], h) for n, h in training.student.state_dict().items())


def test_initial_weights_are_equal_with_and_without_teacher(data: Dataset) -> None:
    study = derived_study(scheme={"name": "offline"}, knowledge=KD)
    (teacher, origin) = train_teachers(study, data)
    assert teacher is origin
    taught = Training(study, data, seed=3, teacher=[teacher, origin]).student.state_dict()
    alone = replace(study, scheme=Alone(), knowledge=())
    from_network = Training(study, data, seed=3, teacher=teacher).student.state_dict()
    null = Training(alone, data, seed=3, teacher=origin).student.state_dict()
    assert all(torch.equal(null[name], tensor) for name, tensor in taught.items())
    assert all(torch.equal(from_network[name], tensor) for name, tensor in taught.items())
    with pytest.raises(
        ValueError, match="'layer_pruning' inherits from the trained teacher of the study"
    ):
        Training(alone, data, seed=3)


def test_training_resumes(data: Dataset) -> None:
    study = derived_study(model={"name": "quantized"}, train={"epochs": 2, "batch_size": 32})
    networks = train_teachers(study, data)
    whole, first, second = (Training(study, data, seed=1, teacher=networks) for _ in range(3))
    whole.run_epoch()
    first.run_epoch()
    second.load_state(first.state())
    assert whole.run_epoch()["val_loss"] == second.run_epoch()["val_loss"]
    tensors = whole.student.state_dict()
    assert all(torch.equal(tensors[n], tensor) for n, tensor in second.student.state_dict().items())
