"""Losses on logits against the papers' formulas in NumPy float64."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from helpers.arrays import Array, draw, kl, softmax, tensor
from raykd.losses import Hint, ResponseLoss, Term
from raykd.losses.logits import (
    KD,
    Dist,
    Dkd,
    LogitMse,
    LogitStd,
    Nkd,
    standardised,
)

STUDENT, TEACHER = 2 * draw(4, 6, seed=1), 2 * draw(4, 6, seed=2)
TARGETS = np.array([0, 3, 5, 2])


def value(loss: ResponseLoss, student: Array = STUDENT) -> float:
    return loss(tensor(student), tensor(TEACHER), torch.from_numpy(TARGETS)).item()


class TestKD:
    """Hinton 2015, section 2."""

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_formula(self, temperature: float) -> None:
        p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
        expected = temperature**2 * np.mean(kl(p, q))
        assert value(KD(temperature=temperature)) == pytest.approx(expected)

    def test_by_hand(self) -> None:
        # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081
        student = torch.zeros(1, 2)
        teacher = torch.log(torch.tensor([[3.0, 1.0]]))
        actual = KD(temperature=1)(student, teacher, torch.zeros(1, dtype=torch.long)).item()
        assert actual == pytest.approx(0.1308120, abs=1e-6)

    def test_gradient_scale_is_independent_of_temperature(self) -> None:
        norms = []
        for temperature in (50.0, 100.0):
            student = tensor(STUDENT).requires_grad_()
            KD(temperature=temperature)(student, tensor(TEACHER), torch.zeros(4).long()).backward()
            assert student.grad is not None
            norms.append(student.grad.norm().item())
        assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestLogitMse:
    """Ba 2014, Eq. 1, as a mean; Hinton 2015, section 2.1, for the limit."""

    def test_formula(self) -> None:
        assert value(LogitMse()) == pytest.approx(np.mean((STUDENT - TEACHER) ** 2))

    def test_half_equals_kd_at_large_temperature(self) -> None:
        student = tensor(STUDENT - STUDENT.mean(axis=1, keepdims=True))
        teacher = tensor(TEACHER - TEACHER.mean(axis=1, keepdims=True))
        targets = torch.zeros(4, dtype=torch.long)
        hot = KD(temperature=1e4)(student, teacher, targets).item()
        assert LogitMse()(student, teacher, targets).item() / 2 == pytest.approx(hot, rel=1e-3)


def non_target_columns(values: Array, targets: Array) -> Array:
    return np.stack([np.delete(row, target) for row, target in zip(values, targets, strict=True)])


class TestDkd:
    """Zhao 2022, Eq. 7."""

    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.5, 2.0)])
    def test_formula(self, alpha: float, beta: float) -> None:
        p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
        rows = np.arange(4)
        binary = [np.stack([x[rows, TARGETS], 1 - x[rows, TARGETS]], axis=1) for x in (p, q)]
        rest = [softmax(non_target_columns(z, TARGETS) / 4) for z in (TEACHER, STUDENT)]
        expected = 16 * np.mean(alpha * kl(*binary) + beta * kl(*rest))
        assert value(Dkd(alpha=alpha, beta=beta)) == pytest.approx(expected)

    def test_equals_kd_when_beta_is_non_target_probability(self) -> None:
        # Zhao 2022, the reformulation of kd: KL = TCKD + (1 - p_t) NCKD, sample by sample
        student, teacher = tensor(STUDENT[:1]), tensor(TEACHER[:1])
        targets = torch.from_numpy(TARGETS[:1])
        rest = 1 - softmax(TEACHER[:1] / 4)[0, TARGETS[0]]
        dkd = Dkd(alpha=1, beta=rest)(student, teacher, targets)
        torch.testing.assert_close(dkd, KD(temperature=4)(student, teacher, targets))

    def test_temperature(self) -> None:
        p, q = softmax(TEACHER / 2), softmax(STUDENT / 2)
        rows = np.arange(4)
        binary = [np.stack([x[rows, TARGETS], 1 - x[rows, TARGETS]], axis=1) for x in (p, q)]
        actual = value(Dkd(temperature=2, beta=0))
        assert actual == pytest.approx(4 * np.mean(kl(*binary)))

    def test_non_target_part_is_zero_for_two_classes(self) -> None:
        student, teacher = tensor(STUDENT[:, :2]), tensor(TEACHER[:, :2])
        targets = torch.tensor([0, 1, 1, 0])
        with_rest, without_rest = (Dkd(beta=beta)(student, teacher, targets) for beta in (8, 0))
        torch.testing.assert_close(with_rest, without_rest)


class TestNkd:
    """Yang 2023, the NKD loss."""

    @pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (2.0, 1.5), (3.0, 3.5)])
    def test_formula(self, temperature: float, gamma: float) -> None:
        rows = np.arange(4)
        p, q = softmax(TEACHER), softmax(STUDENT)
        target = -p[rows, TARGETS] * np.log(q[rows, TARGETS])
        taught = softmax(non_target_columns(TEACHER, TARGETS) / temperature)
        learned = softmax(non_target_columns(STUDENT, TARGETS) / temperature)
        non_target = -np.sum(taught * np.log(learned), axis=1)
        expected = np.mean(target + gamma * temperature**2 * non_target)
        assert value(Nkd(temperature=temperature, gamma=gamma)) == pytest.approx(expected)

    def test_non_target_probabilities_are_normalized(self) -> None:
        # Yang 2023: N(p_i) = p_i / (1 - p_target) is the softmax over the others
        p = softmax(TEACHER)
        normalised = non_target_columns(p, TARGETS) / (1 - p[np.arange(4), TARGETS])[:, None]
        np.testing.assert_allclose(normalised, softmax(non_target_columns(TEACHER, TARGETS)))


class TestDist:
    """Huang 2022, Eqs. 8 and 9."""

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_formula(self, temperature: float) -> None:
        p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
        inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
        intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
        squared = temperature**2
        both = Dist(temperature=temperature)
        assert value(both) == pytest.approx(squared * (2 * inter + 2 * intra))
        left, right = (
            Dist(temperature=temperature, inter=3, intra=0),
            Dist(temperature=temperature, inter=0, intra=3),
        )
        assert value(left) == pytest.approx(squared * 3 * inter)
        assert value(right) == pytest.approx(squared * 3 * intra)

    def test_identical_samples_give_zero_correlation_and_gradient(self) -> None:
        student = torch.full((6, 4), 0.3).requires_grad_()
        teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        actual = Dist(temperature=1)(student, teacher, torch.zeros(6, dtype=torch.long))
        actual.backward()
        assert actual.item() == 4
        assert student.grad is not None
        assert student.grad.abs().max() == 0

    def test_small_probabilities_keep_precision(self) -> None:
        # 1,000 classes at T = 4: every probability is near 0.001
        student, teacher = 0.1 * draw(8, 1000, seed=1), 0.1 * draw(8, 1000, seed=2)
        p, q = softmax(teacher / 4), softmax(student / 4)
        inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
        loss = Dist(intra=0)
        targets = torch.zeros(8, dtype=torch.long)
        actual = loss(tensor(student).float(), tensor(teacher).float(), targets).item()
        assert actual == pytest.approx(32 * inter, rel=1e-4)


class TestLogitStd:
    """Sun 2024, Algorithm 1."""

    @pytest.mark.parametrize("deviation", ["population", "sample"])
    def test_formula(self, deviation: Literal["population", "sample"]) -> None:
        p, q = (softmax(z_score(logits, deviation) / 2) for logits in (TEACHER, STUDENT))
        expected = 4 * np.mean(kl(p, q))
        assert value(LogitStd(deviation=deviation)) == pytest.approx(expected)

    @pytest.mark.parametrize(
        "inner", [KD(temperature=3), LogitMse(), Dkd(beta=2), Nkd(gamma=3), Dist(intra=1)]
    )
    def test_wraps_every_loss_on_logits(self, inner: ResponseLoss) -> None:
        student, teacher = tensor(z_score(STUDENT)), tensor(z_score(TEACHER))
        expected = inner(student, teacher, torch.from_numpy(TARGETS)).item()
        assert value(LogitStd(loss=inner)) == pytest.approx(expected)  # type: ignore[arg-type]

    def test_value_is_invariant_to_logit_scale_and_shift(self) -> None:
        assert value(LogitStd(), 3 * TEACHER + 5) == pytest.approx(0, abs=1e-9)

    def test_equal_logits_become_zero(self) -> None:
        logits = torch.full((2, 7), 0.1).requires_grad_()
        standard = standardised(logits)
        standard.sum().backward()
        assert standard.abs().max() == 0
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0

    @pytest.mark.parametrize("inner", [LogitStd(), Hint()])
    def test_wrapping_itself_or_layer_losses_raises(self, inner: Any) -> None:
        with pytest.raises(ValueError, match=r"LogitStd\.loss: got .*; must be KD\(\.\.\.\)"):
            LogitStd(loss=inner)

    @pytest.mark.parametrize("name", ["logit_std", "hint"])
    def test_study_error_names_wrapped_loss(self, name: str) -> None:
        written = {"loss": {"name": "logit_std", "loss": {"name": name}}}
        with pytest.raises(ValidationError, match="'kd', 'logit_mse', 'dkd', 'nkd', 'dist'"):
            TypeAdapter(Term).validate_python(written)


def z_score(logits: Array, deviation: str = "population") -> Array:
    less = 1 if deviation == "sample" else 0
    spread = logits.std(axis=1, ddof=less, keepdims=True)
    return (logits - logits.mean(axis=1, keepdims=True)) / spread


@pytest.mark.parametrize("loss", [KD(), LogitMse(), Dkd(), Nkd(), Dist(), LogitStd()])
@pytest.mark.parametrize("case", ["one class", "alike", "large"])
def test_extreme_batches_give_finite_gradients(loss: ResponseLoss, case: str) -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, 5, generator=draws)
    targets = torch.randint(5, (8,), generator=draws)
    if case == "one class":
        targets = torch.full((8,), 3)
    if case == "alike":
        student = student[:1].expand(8, -1)
    if case == "large":
        student, teacher = 1e4 * student, 1e4 * teacher
    student = student.clone().requires_grad_()
    actual = loss(student, teacher, targets)
    actual.backward()
    assert torch.isfinite(actual)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1e4
