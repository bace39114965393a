"""Losses against formulas written anew from the papers, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.relation import RelationalKD
from raykd.knowledge.response import KD

Array = NDArray[np.float64]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


NO_TARGETS = torch.zeros(4, dtype=torch.long)


class TestKD:
    """Hinton 2015, section 2."""

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_formula(self, temperature: float) -> None:
        student, teacher = draw(4, 6, seed=1), draw(4, 6, seed=2)
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        expected = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
        loss = KD(temperature=temperature)
        assert loss(tensor(student), tensor(teacher), NO_TARGETS).item() == pytest.approx(expected)

    def test_by_hand(self) -> None:
        # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.13081
        student = torch.zeros(1, 2)
        teacher = torch.log(torch.tensor([[3.0, 1.0]]))
        assert KD(temperature=1)(student, teacher, NO_TARGETS).item() == pytest.approx(
            0.1308120, abs=1e-6
        )

    def test_gradient_keeps_its_size_when_the_temperature_grows(self) -> None:
        teacher = tensor(draw(4, 6, seed=2))
        norms = []
        for temperature in (50.0, 100.0):
            student = tensor(draw(4, 6, seed=1)).requires_grad_()
            KD(temperature=temperature)(student, teacher, NO_TARGETS).backward()
            assert student.grad is not None
            norms.append(student.grad.norm().item())
        assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestHint:
    """Romero 2015, Eq. 3, as a mean over elements."""

    def test_formula(self) -> None:
        student, teacher = draw(4, 3, 2, 2, seed=1), draw(4, 3, 2, 2, seed=2)
        expected = np.mean((student - teacher) ** 2)
        assert Hint()(tensor(student), tensor(teacher)).item() == pytest.approx(expected)


def attention(features: Array, power: float) -> Array:
    energy = np.sum(np.abs(features) ** power, axis=1).reshape(len(features), -1)
    return energy / np.linalg.norm(energy, axis=1, keepdims=True)


class TestAttentionTransfer:
    """Zagoruyko 2017, Eq. 2."""

    @pytest.mark.parametrize("power", [1.0, 2.0])
    def test_formula(self, power: float) -> None:
        student, teacher = draw(4, 3, 4, 4, seed=1), draw(4, 5, 4, 4, seed=2)
        difference = attention(student, power) - attention(teacher, power)
        expected = np.mean(np.linalg.norm(difference, axis=1))
        loss = AttentionTransfer(power=power)
        assert loss(tensor(student), tensor(teacher)).item() == pytest.approx(expected)

    def test_benchmark_takes_the_mean_of_squares(self) -> None:
        student, teacher = draw(4, 3, 4, 4, seed=1), draw(4, 5, 4, 4, seed=2)
        expected = np.mean((attention(student, 2) - attention(teacher, 2)) ** 2)
        loss = AttentionTransfer(scale="benchmark")
        assert loss(tensor(student), tensor(teacher)).item() == pytest.approx(expected)

    def test_larger_map_is_averaged_to_the_smaller(self) -> None:
        student, teacher = draw(4, 3, 2, 2, seed=1), draw(4, 5, 4, 4, seed=2)
        pooled = teacher.reshape(4, 5, 2, 2, 2, 2).mean(axis=(3, 5))
        loss = AttentionTransfer()
        assert loss(tensor(student), tensor(teacher)).item() == pytest.approx(
            loss(tensor(student), tensor(pooled)).item()
        )


def huber(difference: Array) -> Array:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


class TestRelationalKD:
    """Park 2019, Eqs. 4 to 8, means over all pairs and triplets."""

    def test_formula(self) -> None:
        student, teacher = draw(5, 3, seed=1), draw(5, 4, seed=2)
        expected = 25 * self.distances(student, teacher) + 50 * self.angles(student, teacher)
        assert RelationalKD()(tensor(student), tensor(teacher)).item() == pytest.approx(expected)

    def distances(self, student: Array, teacher: Array) -> float:
        def psi(features: Array) -> Array:
            count = len(features)
            table = np.array([[np.linalg.norm(a - b) for b in features] for a in features])
            return table / (table.sum() / (count * (count - 1)))

        return float(np.mean(huber(psi(student) - psi(teacher))))

    def angles(self, student: Array, teacher: Array) -> float:
        def psi(features: Array) -> Array:
            count = len(features)
            table = np.zeros((count, count, count))
            for i in range(count):
                for j in range(count):
                    for k in range(count):
                        if i != j and k != j:
                            one, two = features[i] - features[j], features[k] - features[j]
                            table[j, i, k] = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
            return table

        return float(np.mean(huber(psi(student) - psi(teacher))))

    def test_scale_and_rotation_of_the_embedding_do_not_matter(self) -> None:
        teacher = draw(5, 4, seed=2)
        rotation, _ = np.linalg.qr(draw(4, 4, seed=3))
        assert RelationalKD()(tensor(7 * teacher @ rotation), tensor(teacher)).item() < 1e-12
