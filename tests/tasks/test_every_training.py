"""Conformance tests of trainings of every task; new members of TASKS are included.

`test_training_workers` compares two workers with one, and `test_every_task` the metrics with those
of torchmetrics.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.task_cases import (
    finished,
    kept_outputs,
    material_of,
    study_of,
    training_of,
    untimed_history,
)
from raykd.compat.network_files import read_network
from raykd.data import BatchLoader
from raykd.schemes import LiveTeacher
from raykd.storage import Storage
from raykd.study.checks.rules import study_issues
from raykd.study.config import Student
from raykd.tasks import TASKS, Task
from raykd.training.checkpoint import dump_network, dump_weights
from raykd.training.state_file import StateFiles
from raykd.training.stored_networks import load_stored_network, raw_samples, with_preprocessing
from raykd.training.trainer import Training

every_task = pytest.mark.parametrize("cls", list(TASKS), ids=lambda cls: cls.name)
cached_tasks = pytest.mark.parametrize(
    "cls", [cls for cls in TASKS if cls.kind != "boxes"], ids=lambda cls: cls.name
)


def normalized(training: Training) -> Tensor:
    """Return the inputs of the networks for the test split."""
    loader = BatchLoader(training.data.test, training.data, batch_size=512, shuffle_seed=None)
    [batch] = loader.epoch(0)
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


@every_task
def test_study_is_accepted(cls: type[Task]) -> None:
    assert not [*study_issues(study_of(cls))]


@every_task
def test_resumed_training_equals_uninterrupted_one(cls: type[Task], tmp_path: Path) -> None:
    """The state passes through its file; the student has batch norm."""
    study = study_of(cls, student=Student(model=material_of(cls).student))
    whole = finished(training_of(study))
    first, second = training_of(study), training_of(study)
    files = StateFiles(Storage(str(tmp_path)), ("even", "odd"), "a training")
    first.run_epoch()
    files.save(first.state())
    second.load_state(next(files.load()))
    assert not files.notes
    finished(second)
    assert untimed_history(second) == untimed_history(whole)
    assert second.evaluate("test") == whole.evaluate("test")
    for name, tensor in whole.state()["student"].items():
        assert torch.equal(second.state()["student"][name], tensor), name


@cached_tasks
def test_kept_outputs_equal_live_ones(cls: type[Task], tmp_path: Path) -> None:
    study = study_of(cls)
    handle = kept_outputs(study, tmp_path)
    kept, live = training_of(study, teacher=handle), training_of(study)
    assert not isinstance(kept.distiller.teacher, LiveTeacher)
    assert isinstance(live.distiller.teacher, LiveTeacher)
    for training in (kept, live):
        finished(training)
    for ours, theirs in zip(untimed_history(kept), untimed_history(live), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@every_task
def test_stored_student_gives_the_responses_of_the_trained_one(cls: type[Task]) -> None:
    training = finished(training_of(study_of(cls, student=Student(model=material_of(cls).student))))
    student, data = training.student.eval(), training.data
    with torch.no_grad():
        expected = student(normalized(training))
        weights = load_stored_network(
            "student.safetensors", dump_weights(student), material_of(cls).student, data
        )
        torch.testing.assert_close(weights(normalized(training)), expected, rtol=1e-4, atol=1e-5)
        whole = read_network(dump_network(with_preprocessing(student, data)), "student.pt")
        response = whole(raw_samples(data, torch.arange(len(data.test))))
    if data.target_scale:
        expected = expected * torch.tensor(data.target_scale) + torch.tensor(data.target_mean)
    torch.testing.assert_close(response, expected, rtol=1e-4, atol=1e-5)
