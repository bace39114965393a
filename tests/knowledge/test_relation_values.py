"""Losses on relations against formulas written anew from the papers, in NumPy and float64."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
import torch

from arrays import Array, draw, tensor, unit
from built import built, built_value, context
from raykd.knowledge import Evidence, Progress
from raykd.knowledge.flow import Fsp, flow
from raykd.knowledge.irg import Irg
from raykd.knowledge.relation import (
    Cka,
    CorrelationCongruence,
    RelationalKD,
    SimilarityPreserving,
)

STUDENT, TEACHER = draw(5, 3, seed=1), draw(5, 4, seed=2)


def huber(difference: Array) -> Array:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


class TestRelationalKD:
    """Park 2019, Eqs. 4 to 8, means over all pairs and triplets."""

    def test_formula(self) -> None:
        expected = 25 * self.distances(STUDENT, TEACHER) + 50 * self.angles(STUDENT, TEACHER)
        assert RelationalKD()(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(expected)

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
        rotation, _ = np.linalg.qr(draw(4, 4, seed=3))
        assert RelationalKD()(tensor(7 * TEACHER @ rotation), tensor(TEACHER)).item() < 1e-12


class TestSimilarityPreserving:
    """Tung 2019, Eqs. 1 to 4."""

    def test_formula(self) -> None:
        def similarities(features: Array) -> Array:
            flat = features.reshape(len(features), -1)
            return unit(flat @ flat.T)

        student, teacher = draw(4, 3, 2, 2, seed=1), draw(4, 5, 2, 2, seed=2)
        difference = similarities(student) - similarities(teacher)
        expected = np.linalg.norm(difference) ** 2 / 4**2
        found = SimilarityPreserving()(tensor(student), tensor(teacher)).item()
        assert found == pytest.approx(expected)


class TestCorrelationCongruence:
    """Peng 2019, Eqs. 6, 10 and 12."""

    @pytest.mark.parametrize("order", [1, 2, 4])
    def test_formula(self, order: int) -> None:
        def correlations(features: Array) -> Array:
            directions = unit(features)
            table = np.zeros((len(features), len(features)))
            for p in range(order + 1):
                table += (2 * 0.4) ** p / factorial(p) * (directions @ directions.T) ** p
            return np.exp(-2 * 0.4) * table

        expected = np.sum((correlations(STUDENT) - correlations(TEACHER)) ** 2) / 25
        loss = CorrelationCongruence(order=order)
        assert loss(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(expected)

    def test_series_tends_to_the_gaussian_kernel(self) -> None:
        # exp(-gamma ||x - y||^2) for x, y of norm 1, Peng 2019, Eq. 9
        directions = unit(STUDENT)
        squares = ((directions[:, None] - directions[None]) ** 2).sum(axis=2)
        found = CorrelationCongruence(order=10)._correlations(tensor(STUDENT))
        np.testing.assert_allclose(found.numpy(), np.exp(-0.4 * squares), atol=1e-6)


class TestCka:
    """Kornblith 2019, Eq. 4."""

    def test_formula(self) -> None:
        x, y = STUDENT - STUDENT.mean(axis=0), TEACHER - TEACHER.mean(axis=0)
        cka = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
        assert Cka()(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(1 - cka)

    def test_rotation_scale_and_shift_do_not_matter(self) -> None:
        rotation, _ = np.linalg.qr(draw(4, 4, seed=3))
        moved = 5 * TEACHER @ rotation + 2
        assert Cka()(tensor(moved), tensor(TEACHER)).item() == pytest.approx(0, abs=1e-12)


class TestFsp:
    """Yim 2017, Eqs. 1 and 2, as a mean over entries."""

    def test_flow_matrix(self) -> None:
        first, second = draw(2, 3, 4, 4, seed=1), draw(2, 5, 4, 4, seed=2)
        expected = np.einsum("bihw,bjhw->bij", first, second) / 16
        np.testing.assert_allclose(flow(tensor(first), tensor(second)).numpy(), expected)

    def test_formula(self) -> None:
        shapes = [(3, 4, 4), (5, 2, 2), (4, 2, 2)]
        module = built(Fsp(), list(shapes), list(shapes))
        guided = [draw(2, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(2, *shape, seed=9 + i) for i, shape in enumerate(shapes)]

        def flows(layers: list[Array]) -> list[Array]:
            small = layers[0].reshape(2, 3, 2, 2, 2, 2).mean(axis=(3, 5))
            return [
                np.einsum("bihw,bjhw->bij", small, layers[1]) / 4,
                np.einsum("bihw,bjhw->bij", layers[1], layers[2]) / 4,
            ]

        expected = sum(
            np.mean((s - t) ** 2) for s, t in zip(flows(guided), flows(hints), strict=True)
        )
        assert built_value(module, guided, hints) == pytest.approx(expected)

    def test_one_pair_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least two"):
            Fsp().build(context([(3, 4, 4)], [(3, 4, 4)]))


class TestIrg:
    """Liu 2019, Eqs. 1 to 8, as means."""

    def test_formula(self) -> None:
        ours = [draw(4, 3, seed=1), draw(4, 6, seed=2)]
        theirs = [draw(4, 5, seed=3), draw(4, 4, seed=4)]
        logits = draw(4, 3, seed=5), draw(4, 3, seed=6)
        loss = Irg(vertices=0.5, edges=2, transformations=3)
        module = built(loss, [(3,), (6,)], [(5,), (4,)])
        student = Evidence(tensor(logits[0]), {"s0": tensor(ours[0]), "s1": tensor(ours[1])})
        teacher = Evidence(tensor(logits[1]), {"t0": tensor(theirs[0]), "t1": tensor(theirs[1])})
        rows = torch.arange(4)
        found = module(student, teacher, rows, rows, Progress(0, 1)).item()
        expected = 0.5 * np.mean((logits[0] - logits[1]) ** 2)
        for s, t in zip(ours, theirs, strict=True):
            expected += 2 * np.mean((self.edges(s) - self.edges(t)) ** 2)
        expected += 3 * np.mean((self.vertex_change(ours) - self.vertex_change(theirs)) ** 2)
        expected += 3 * np.mean((self.edge_change(ours) - self.edge_change(theirs)) ** 2)
        assert found == pytest.approx(expected)

    def edges(self, features: Array) -> Array:
        table = np.array([[np.sum((a - b) ** 2) for b in features] for a in features])
        return table / table.mean()

    def vertex_change(self, layers: list[Array]) -> Array:
        width = max(layer.shape[1] for layer in layers)
        one, two = (np.pad(layer, ((0, 0), (0, width - layer.shape[1]))) for layer in layers)
        change = np.sum((one - two) ** 2, axis=1)
        return change / change.mean()

    def edge_change(self, layers: list[Array]) -> Array:
        return (self.edges(layers[0]) - self.edges(layers[1])) ** 2
