"""Every loss is right for every task, or refused with the losses that fit.

Members of TASKS and LOSSES are included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from helpers.task_cases import material_of, study_of, teacher_of, term_of, training_of
from raykd.losses import LOSSES, Loss, ModelOutputs, PairLoss, Progress, Term
from raykd.losses.base import ConnectedLoss, PairwiseLoss, ResponseLoss
from raykd.registry import option
from raykd.schemes import Offline
from raykd.schemes.offline import OfflineDistiller
from raykd.study.checks.rules import study_issues
from raykd.study.config import Student
from raykd.tasks import TASKS, Task
from raykd.tasks.statistics import IGNORED
from raykd.training.trainer import Training

NAMES = [name for name in LOSSES.members if ":" not in name]
FITTING = [(cls, name) for cls in TASKS for name in NAMES if cls.kind in LOSSES[name].kinds]
OTHER = [(cls, name) for cls in TASKS for name in NAMES if cls.kind not in LOSSES[name].kinds]
PROGRESS = Progress(epoch=1, epochs=4, step=9, steps_per_epoch=8)


def label(value: object) -> str:
    return value if isinstance(value, str) else value.name  # type: ignore[attr-defined]


def has_formula(loss: type[Loss]) -> bool:
    """Return whether a direct call computes the loss: it learns connectors at most."""
    pairwise = issubclass(loss, PairLoss) and loss.judge is PairLoss.judge
    return pairwise or issubclass(loss, ResponseLoss)


def cases(condition: Callable[[type[Loss]], bool]) -> pytest.MarkDecorator:
    chosen = [(cls, name) for cls, name in FITTING if condition(LOSSES[name])]
    return pytest.mark.parametrize(("cls", "name"), chosen, ids=label)


def training_with(cls: type[Task], name: str, *, same: bool = False) -> Training:
    """Return a training whose only loss is `name`; `same`: the student equals the teacher."""
    material = material_of(cls)
    student = material.teacher if same else material.student
    study = study_of(
        cls,
        term_of(cls, name),
        student=Student(model=student),
        scheme=Offline(task_weight=0.0),
    )
    training = training_of(study)
    if same:
        training.student.load_state_dict(teacher_of(cls).state_dict())
    training.distiller.eval()
    return training


@dataclasses.dataclass
class Step:
    """Outputs of both networks for a batch, and the value of the loss."""

    student: ModelOutputs
    teacher: ModelOutputs
    targets: Tensor
    value: Tensor


def distiller_of(training: Training) -> OfflineDistiller:
    assert isinstance(training.distiller, OfflineDistiller)
    return training.distiller


def step_of(training: Training) -> Step:
    batch = next(training.loader.epoch(0))
    distiller = distiller_of(training)
    student, teacher = distiller.watched(batch.inputs), distiller.teacher(batch)
    total, values = distiller.terms(student, teacher, batch.targets, batch.index, PROGRESS)
    [(name, value)] = values.items()
    torch.testing.assert_close(total, distiller.terms.terms[name].effective_weight * value)
    return Step(student, teacher, batch.targets, total)


def positions(response: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C), by hand."""
    return torch.stack([row[:, y, x] for row in response for y in range(row.shape[1])
                        for x in range(row.shape[2])])  # fmt: skip


@pytest.mark.parametrize(("cls", "name"), OTHER, ids=label)
def test_other_losses_are_refused_with_those_that_fit(cls: type[Task], name: str) -> None:
    study = study_of(cls, Term(loss=LOSSES[name]()))
    [issue] = [each for each in study_issues(study) if each.place[0] == "knowledge"]
    assert issue.place == ("knowledge", 0, "loss")
    assert f"loss '{name}' does not fit task '{cls.name}'" in issue.message
    assert issue.fix.startswith("use ")
    named = issue.fix.removeprefix("use ").split(", ")
    assert {*named} == {each for each in NAMES if cls.kind in LOSSES[each].kinds}


@pytest.mark.parametrize(("cls", "name"), FITTING, ids=label)
def test_loss_is_accepted_and_reaches_student(cls: type[Task], name: str) -> None:
    training = training_with(cls, name)
    assert not [*study_issues(training.study)]
    step = step_of(training)
    assert step.value.dim() == 0 and torch.isfinite(step.value)
    step.value.backward()
    gradients = [p.grad for p in training.student.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in teacher_of(cls).parameters())


@cases(has_formula)
def test_value_is_that_of_a_direct_call(cls: type[Task], name: str) -> None:
    """Positions of maps are samples, all of them: the teacher has a response at each."""
    training = training_with(cls, name)
    step = step_of(training)
    loss, [module] = LOSSES[name](), distiller_of(training).terms.losses.values()
    student, teacher, targets = step.student.logits, step.teacher.logits, step.targets
    if isinstance(loss, ResponseLoss):
        if cls.kind == "dense" and loss.by_position:
            student, teacher, targets = positions(student), positions(teacher), targets.flatten()
        direct = loss(student, teacher, targets)
    else:
        assert isinstance(module, PairwiseLoss)
        pairs = zip(module.pairs, module.judges, module.shares, strict=True)
        direct = sum(
            share
            * loss(judge.connector(step.student.layers[p.guided]), step.teacher.layers[p.hint])
            for p, judge, share in pairs
            if isinstance(judge, ConnectedLoss)
        )
    torch.testing.assert_close(step.value, loss.default_weight * direct)


@cases(lambda loss: loss.zero_at_teacher)
def test_value_is_zero_if_student_equals_teacher(cls: type[Task], name: str) -> None:
    training = training_with(cls, name, same=True)
    if any(True for _ in distiller_of(training).terms.parameters()):
        pytest.skip("learns even where the shapes are the same")
    assert abs(float(step_of(training).value.detach())) < 1e-5
    with torch.no_grad():
        for parameter in training.student.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    assert step_of(training).value > 1e-5


@pytest.mark.parametrize("name", [n for n in NAMES if "dense" in LOSSES[n].kinds])
def test_ignored_positions_are_learned_from_the_teacher(name: str) -> None:
    """Labels decide nothing about a loss between networks, which also holds where there is none."""
    cls = TASKS.members["segmentation"]
    training = training_with(cls, name)
    batch = next(training.loader.epoch(0))
    assert (batch.targets == IGNORED).any()
    values = []
    for targets in (batch.targets, torch.full_like(batch.targets, IGNORED)):
        torch.manual_seed(3)
        changed = dataclasses.replace(batch, targets=targets)
        values.append(distiller_of(training)(changed, PROGRESS).terms)
    torch.testing.assert_close(values[0][name], values[1][name])


@option
class Absolute(ResponseLoss):
    """A loss of a user, who does not write the kinds of responses that it fits."""

    name: Literal["absolute"] = "absolute"

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return (student - teacher).abs().mean()


@pytest.mark.parametrize("cls", list(TASKS), ids=label)
def test_losses_of_users_fit_responses_but_no_boxes(cls: type[Task]) -> None:
    study = study_of(cls, Term(loss=Absolute(), weight=1.0))
    refused = [str(issue.message) for issue in study_issues(study)]
    if cls.kind == "boxes":
        [message] = refused
        assert "loss 'absolute' does not fit task 'detection'" in message
        return
    assert not refused
    step = step_of(training_of(study))
    expected = (step.student.logits - step.teacher.logits).abs().mean()
    torch.testing.assert_close(step.value, expected)
