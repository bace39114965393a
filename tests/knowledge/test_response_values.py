"""Losses on logits against formulas written anew from the papers, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrays import Array, draw, kl, softmax, tensor
from raykd.knowledge.response import KD, Dist, Dkd, LogitMse, LogitStd, Nkd

STUDENT, TEACHER = 2 * draw(4, 6, seed=1), 2 * draw(4, 6, seed=2)
TARGETS = np.array([0, 3, 5, 2])


def value(loss: KD | LogitMse | Dkd | Nkd | Dist | LogitStd, student: Array = STUDENT) -> float:
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
        found = KD(temperature=1)(student, teacher, torch.zeros(1, dtype=torch.long)).item()
        assert found == pytest.approx(0.1308120, abs=1e-6)

    def test_gradient_keeps_its_size_when_the_temperature_grows(self) -> None:
        norms = []
        for temperature in (50.0, 100.0):
            student = tensor(STUDENT).requires_grad_()
            KD(temperature=temperature)(student, tensor(TEACHER), torch.zeros(4)).backward()
            assert student.grad is not None
            norms.append(student.grad.norm().item())
        assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestLogitMse:
    """Ba 2014, Eq. 1, as a mean; Kim 2021, Eq. 4."""

    def test_formula(self) -> None:
        assert value(LogitMse()) == pytest.approx(np.mean((STUDENT - TEACHER) ** 2))

    def test_half_of_it_is_kd_at_a_large_temperature(self) -> None:
        student = tensor(STUDENT - STUDENT.mean(axis=1, keepdims=True))
        teacher = tensor(TEACHER - TEACHER.mean(axis=1, keepdims=True))
        targets = torch.zeros(4, dtype=torch.long)
        hot = KD(temperature=1e4)(student, teacher, targets).item()
        assert LogitMse()(student, teacher, targets).item() / 2 == pytest.approx(hot, rel=1e-3)


def without(values: Array, targets: Array) -> Array:
    return np.stack([np.delete(row, target) for row, target in zip(values, targets, strict=True)])


class TestDkd:
    """Zhao 2022, Eqs. 5 to 7."""

    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.5, 2.0)])
    def test_formula(self, alpha: float, beta: float) -> None:
        p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
        rows = np.arange(4)
        binary = [np.stack([x[rows, TARGETS], 1 - x[rows, TARGETS]], axis=1) for x in (p, q)]
        rest = [softmax(without(z, TARGETS) / 4) for z in (TEACHER, STUDENT)]
        expected = 16 * np.mean(alpha * kl(*binary) + beta * kl(*rest))
        assert value(Dkd(alpha=alpha, beta=beta)) == pytest.approx(expected)

    def test_it_is_kd_where_beta_is_the_rests_probability(self) -> None:
        # Zhao 2022, Eq. 3: KL = TCKD + (1 - p_t) NCKD, sample by sample
        student, teacher = tensor(STUDENT[:1]), tensor(TEACHER[:1])
        targets = torch.from_numpy(TARGETS[:1])
        rest = 1 - softmax(TEACHER[:1] / 4)[0, TARGETS[0]]
        dkd = Dkd(alpha=1, beta=rest)(student, teacher, targets)
        torch.testing.assert_close(dkd, KD(temperature=4)(student, teacher, targets))


class TestNkd:
    """Yang 2023, Eq. 6."""

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_formula(self, temperature: float) -> None:
        rows = np.arange(4)
        p, q = softmax(TEACHER), softmax(STUDENT)
        target = -p[rows, TARGETS] * np.log(q[rows, TARGETS])
        taught = softmax(without(TEACHER, TARGETS) / temperature)
        learned = softmax(without(STUDENT, TARGETS) / temperature)
        others = -np.sum(taught * np.log(learned), axis=1)
        expected = np.mean(target + 1.5 * temperature**2 * others)
        assert value(Nkd(temperature=temperature)) == pytest.approx(expected)

    def test_others_are_the_normalised_probabilities(self) -> None:
        # Yang 2023, Eq. 5: N(p_i) = p_i / (1 - p_target) is the softmax over the others
        p = softmax(TEACHER)
        normalised = without(p, TARGETS) / (1 - p[np.arange(4), TARGETS])[:, None]
        np.testing.assert_allclose(normalised, softmax(without(TEACHER, TARGETS)))


class TestDist:
    """Huang 2022, Eqs. 8 to 11."""

    def test_formula(self) -> None:
        p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
        inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
        intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
        assert value(Dist()) == pytest.approx(16 * (2 * inter + 2 * intra))
        assert value(Dist(intra=0)) == pytest.approx(16 * 2 * inter)


class TestLogitStd:
    """Sun 2024, Algorithm 1."""

    def test_formula(self) -> None:
        def z_score(logits: Array) -> Array:
            return (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)

        p, q = softmax(z_score(TEACHER) / 2), softmax(z_score(STUDENT) / 2)
        assert value(LogitStd()) == pytest.approx(4 * np.mean(kl(p, q)))

    def test_wraps_any_soft_target_loss(self) -> None:
        def z_score(logits: Array) -> torch.Tensor:
            return tensor((logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True))

        inner = Dkd(beta=2)
        expected = inner(z_score(STUDENT), z_score(TEACHER), torch.from_numpy(TARGETS)).item()
        assert value(LogitStd(loss=inner)) == pytest.approx(expected)

    def test_range_and_shift_of_the_logits_do_not_matter(self) -> None:
        assert value(LogitStd(), 3 * TEACHER + 5) == pytest.approx(0, abs=1e-9)
