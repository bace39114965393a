"""Finite values and gradients for large logits, one-hot teachers, zero layers, half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.loss_cases import CLASSES, Case, label, make, variants
from raykd.losses import KD, Loss, ModelOutputs, PairLoss, ResponseLoss
from raykd.losses.transformer import AttentionMap

ALL = variants()
ON_LOGITS = [loss for loss in ALL if isinstance(loss, ResponseLoss)]
ON_LAYERS = [loss for loss in ALL if loss.takes_pairs]


def logits(kind: str, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randn(6, CLASSES, generator=draw)
    if kind == "large":
        return 1e4 * drawn.sign() * (drawn.abs() + 0.5)
    if kind == "certain":
        return torch.full((6, CLASSES), -1e4).scatter(1, drawn.argmax(1, keepdim=True), 1e4)
    return torch.zeros(6, CLASSES) if kind == "zero" else drawn


def shaped(loss: Loss, logits: Tensor) -> Tensor:
    """Return (6, C) logits as the loss takes them: as positions of an image if it needs one."""
    return logits.T[None, :, :, None] if loss.kinds == ("dense",) else logits


def targets_for(loss: Loss) -> Tensor:
    if loss.kinds == ("dense",):
        return torch.zeros(1, 6, 1, dtype=torch.int64)
    return torch.arange(6) % CLASSES if "softmax" in loss.kinds else torch.rand(6, CLASSES)


@pytest.mark.parametrize("teacher_kind", ["ordinary", "large", "certain", "zero"])
@pytest.mark.parametrize("student_kind", ["ordinary", "large", "certain", "zero"])
@pytest.mark.parametrize("loss", ON_LOGITS, ids=label)
def test_logits_of_any_size_give_finite_gradients(
    loss: ResponseLoss, student_kind: str, teacher_kind: str
) -> None:
    student = logits(student_kind, 1).requires_grad_()
    value = loss(shaped(loss, student), shaped(loss, logits(teacher_kind, 2)), targets_for(loss))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_one_hot_teacher_gives_gradient_to_wrong_student() -> None:
    student = torch.zeros(6, CLASSES).requires_grad_()
    KD(temperature=1)(student, logits("certain", 2), torch.arange(6) % CLASSES).backward()
    assert student.grad is not None
    # the gradient of cross-entropy against a one-hot teacher: (1/5 - one-hot) / 6
    assert student.grad.min() == pytest.approx((0.2 - 1) / 6)
    assert student.grad.max() == pytest.approx(0.2 / 6)


def scaled(case: Case, student: float, teacher: float) -> Case:
    guided = {k: (student * v.detach()).requires_grad_() for k, v in case.student.layers.items()}
    hint = {k: teacher * v.detach() for k, v in case.teacher.layers.items()}
    case.student = ModelOutputs(case.student.logits, guided)
    case.teacher = ModelOutputs(case.teacher.logits, hint)
    return case


@pytest.mark.parametrize(
    ("student_scale", "teacher_scale"), [(0, 1), (1, 0), (0, 0), (1e3, 1), (1, 1e3)]
)
@pytest.mark.parametrize("loss", ON_LAYERS, ids=label)
def test_zero_and_large_layers_give_finite_gradients(
    loss: Loss, student_scale: float, teacher_scale: float
) -> None:
    case = scaled(make(loss), student_scale, teacher_scale)
    value = case.value()
    value.backward()
    assert torch.isfinite(value)
    for leaf in case.student_leaves():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("smallest", [1e-6, 1e-8, 1e-12, 1e-20, 1e-30])
def test_tiny_attention_keeps_its_gradient(smallest: float) -> None:
    # KL of t from s = softmax(z) has the gradient s - t with respect to z
    scores = torch.tensor([0.0, math.log(smallest)]).expand(1, 1, 2, 2).clone().requires_grad_()
    taught = torch.tensor([0.25, 0.75]).expand(1, 1, 2, 2)
    AttentionMap(similarity="kl")(scores.softmax(dim=-1), taught).backward()
    assert scores.grad is not None
    expected = (torch.tensor([1 - smallest, smallest]) - taught) / 2  # the mean over two rows
    torch.testing.assert_close(scores.grad, expected.expand(1, 1, 2, 2))


def test_attention_value_by_hand() -> None:
    teacher = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    student = torch.tensor([1 - 1e-10, 1e-10]).expand(1, 1, 2, 2)
    value = AttentionMap(similarity="kl")(student, teacher).item()
    assert value == pytest.approx(-math.log(1e-10), rel=1e-5)


def test_zero_attention_rows_have_zero_gradient() -> None:
    student = torch.tensor([[0.5, 0.5], [0.0, 0.0]])[None, None].requires_grad_()
    teacher = torch.tensor([[0.25, 0.75], [0.0, 0.0]])[None, None]
    AttentionMap(similarity="kl")(student, teacher).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 0, 1].tolist() == [0, 0]


def test_scores_instead_of_probabilities_raise() -> None:
    case = make(AttentionMap(similarity="kl"))
    case.student = case.student.map(lambda layer: layer - 1)
    with pytest.raises(ValueError, match="negative values"):
        case.value()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ON_LOGITS, ids=label)
def test_half_precision_logits_are_computed_in_float32(
    loss: ResponseLoss, dtype: torch.dtype
) -> None:
    student, teacher = (shaped(loss, logits("ordinary", seed)).to(dtype) for seed in (1, 2))
    targets = targets_for(loss)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), targets))


def test_half_precision_layers_are_computed_in_float32() -> None:
    guided, hint = torch.randn(4, 6, 2, 2).bfloat16(), torch.randn(4, 6, 2, 2).bfloat16()
    for loss in ALL:
        if isinstance(loss, PairLoss) and type(loss).__call__ is not PairLoss.__call__:
            guided, hint = guided.softmax(-1), hint.softmax(-1)
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(guided, hint)
            torch.testing.assert_close(value, loss(guided.float(), hint.float()))


def test_call_detaches_teacher() -> None:
    student, teacher = torch.randn(4, 5).requires_grad_(), torch.randn(4, 5).requires_grad_()
    KD()(student, teacher, torch.zeros(4).long()).backward()
    assert student.grad is not None
    assert teacher.grad is None
