"""Losses on relations against the papers' formulas in NumPy float64."""

from __future__ import annotations

from math import factorial
from typing import Literal

import numpy as np
import pytest
import torch

from helpers.arrays import Array, draw, tensor, unit
from helpers.built_losses import built, built_value, context
from raykd.losses import ModelOutputs, Progress
from raykd.losses.fsp import Fsp, flow
from raykd.losses.irg import Irg
from raykd.losses.relations import (
    Cka,
    CorrelationCongruence,
    RelationalKD,
    SimilarityPreserving,
    angle_loss,
)

STUDENT, TEACHER = draw(5, 3, seed=1), draw(5, 4, seed=2)


def huber(difference: Array) -> Array:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


class TestRelationalKD:
    """Park 2019, sections 3.2.1 and 3.2.2, means over all pairs and triplets."""

    @pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 2.0)])
    def test_formula(self, distance: float, angle: float) -> None:
        distances, angles = self.distances(STUDENT, TEACHER), self.angles(STUDENT, TEACHER)
        loss = RelationalKD(distance=distance, angle=angle)
        value = loss(tensor(STUDENT), tensor(TEACHER)).item()
        assert value == pytest.approx(distance * distances + angle * angles)

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
                            left, right = features[i] - features[j], features[k] - features[j]
                            table[j, i, k] = (
                                left @ right / np.linalg.norm(left) / np.linalg.norm(right)
                            )
            return table

        return float(np.mean(huber(psi(student) - psi(teacher))))

    @pytest.mark.parametrize("entries", [1, 60, 99])
    def test_chunked_angles_equal_unchunked_angles(self, entries: int) -> None:
        student = tensor(STUDENT).requires_grad_()
        in_parts = angle_loss(student, tensor(TEACHER), entries)
        assert in_parts.item() == pytest.approx(self.angles(STUDENT, TEACHER))
        (gradient,) = torch.autograd.grad(in_parts, student)
        (expected,) = torch.autograd.grad(angle_loss(student, tensor(TEACHER)), student)
        torch.testing.assert_close(gradient, expected)

    def test_backward_does_not_store_all_triplets(self) -> None:
        largest = 0

        def keep(saved: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            largest = max(largest, saved.numel())
            return saved

        student, teacher = torch.randn(2, 40, 8)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            angle_loss(student.requires_grad_(), teacher, entries=40 * 40)
        assert largest < 40**3 / 10

    def test_value_is_invariant_to_scale_and_rotation(self) -> None:
        rotation, _ = np.linalg.qr(draw(4, 4, seed=3))
        assert RelationalKD()(tensor(7 * TEACHER @ rotation), tensor(TEACHER)).item() < 1e-12


class TestSimilarityPreserving:
    """Tung 2019, Eqs. 1 to 3."""

    def test_formula(self) -> None:
        def similarities(features: Array) -> Array:
            flat = features.reshape(len(features), -1)
            return unit(flat @ flat.T)

        student, teacher = draw(4, 3, 2, 2, seed=1), draw(4, 5, 2, 2, seed=2)
        difference = similarities(student) - similarities(teacher)
        expected = np.linalg.norm(difference) ** 2 / 4**2
        value = SimilarityPreserving()(tensor(student), tensor(teacher)).item()
        assert value == pytest.approx(expected)


class TestCorrelationCongruence:
    """Peng 2019, Eq. 6 and the Taylor series of its Gaussian kernel."""

    @pytest.mark.parametrize(("order", "gamma"), [(1, 0.4), (2, 0.4), (4, 0.4), (2, 1.5)])
    def test_formula(self, order: int, gamma: float) -> None:
        def correlations(features: Array) -> Array:
            directions = unit(features)
            table = np.zeros((len(features), len(features)))
            for p in range(order + 1):
                table += (2 * gamma) ** p / factorial(p) * (directions @ directions.T) ** p
            return np.exp(-2 * gamma) * table

        expected = np.sum((correlations(STUDENT) - correlations(TEACHER)) ** 2) / 25
        loss = CorrelationCongruence(order=order, gamma=gamma)
        assert loss(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(expected)

    def test_bilinear(self) -> None:
        student, teacher = unit(STUDENT), unit(TEACHER)
        expected = np.sum((student @ student.T - teacher @ teacher.T) ** 2) / 25
        loss = CorrelationCongruence(kernel="bilinear")
        assert loss(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(expected)

    def test_taylor_series_converges_to_gaussian_kernel(self) -> None:
        # exp(-gamma ||x - y||^2) for x, y of norm 1
        def kernel(features: Array) -> Array:
            directions = unit(features)
            return np.exp(-0.4 * ((directions[:, None] - directions[None]) ** 2).sum(axis=2))

        expected = np.mean((kernel(STUDENT) - kernel(TEACHER)) ** 2)
        loss = CorrelationCongruence(order=10)
        assert loss(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(expected, rel=1e-5)


class TestCka:
    """Kornblith 2019, Eq. 4."""

    def test_formula(self) -> None:
        x, y = STUDENT - STUDENT.mean(axis=0), TEACHER - TEACHER.mean(axis=0)
        cka = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
        assert Cka()(tensor(STUDENT), tensor(TEACHER)).item() == pytest.approx(1 - cka)

    def test_value_is_invariant_to_rotation_scale_and_shift(self) -> None:
        rotation, _ = np.linalg.qr(draw(4, 4, seed=3))
        moved = 5 * TEACHER @ rotation + 2
        assert Cka()(tensor(moved), tensor(TEACHER)).item() == pytest.approx(0, abs=1e-12)


class TestFsp:
    """Yim 2017, Eqs. 1 and 2."""

    def test_flow_matrix(self) -> None:
        first, second = draw(2, 3, 4, 4, seed=1), draw(2, 5, 4, 4, seed=2)
        expected = np.einsum("bihw,bjhw->bij", first, second) / 16
        np.testing.assert_allclose(flow(tensor(first), tensor(second)).numpy(), expected)

    @pytest.mark.parametrize("pooling", ["average", "max"])
    @pytest.mark.parametrize("scale", ["benchmark", "paper"])
    def test_formula(
        self, scale: Literal["benchmark", "paper"], pooling: Literal["average", "max"]
    ) -> None:
        shapes = [(3, 4, 4), (5, 2, 2), (4, 2, 2)]
        module = built(Fsp(scale=scale, pooling=pooling), list(shapes), list(shapes))
        guided = [draw(2, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(2, *shape, seed=9 + i) for i, shape in enumerate(shapes)]

        def flows(layers: list[Array]) -> list[Array]:
            blocks = layers[0].reshape(2, 3, 2, 2, 2, 2)
            small = blocks.mean(axis=(3, 5)) if pooling == "average" else blocks.max(axis=(3, 5))
            return [
                np.einsum("bihw,bjhw->bij", small, layers[1]) / 4,
                np.einsum("bihw,bjhw->bij", layers[1], layers[2]) / 4,
            ]

        expected = 0.0
        for ours, theirs in zip(flows(guided), flows(hints), strict=True):
            squares = (ours - theirs) ** 2
            expected += squares.mean() if scale == "benchmark" else squares.sum() / 2
        assert built_value(module, guided, hints) == pytest.approx(expected)

    def test_single_pair_raises(self) -> None:
        with pytest.raises(ValueError, match="at least two"):
            Fsp().build(context([(3, 4, 4)], [(3, 4, 4)]))


class TestIrg:
    """Liu 2019, the losses of the graph and of its transformation, as means."""

    @pytest.mark.parametrize("weights", [(0.5, 2, 3), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    def test_formula(self, weights: tuple[float, float, float]) -> None:
        ours = [draw(4, 3, seed=1), draw(4, 6, seed=2)]
        theirs = [draw(4, 5, seed=3), draw(4, 4, seed=4)]
        logits = draw(4, 3, seed=5), draw(4, 3, seed=6)
        vertices, edges, transformations = weights
        loss = Irg(vertices=vertices, edges=edges, transformations=transformations)
        module = built(loss, [(3,), (6,)], [(5,), (4,)])
        student = ModelOutputs(tensor(logits[0]), {"s0": tensor(ours[0]), "s1": tensor(ours[1])})
        teacher = ModelOutputs(
            tensor(logits[1]), {"t0": tensor(theirs[0]), "t1": tensor(theirs[1])}
        )
        rows = torch.arange(4)
        value = module(student, teacher, rows, rows, Progress(0, 1)).item()
        expected = vertices * np.mean((logits[0] - logits[1]) ** 2)
        for s, t in zip(ours, theirs, strict=True):
            expected += edges * np.mean((self.edges(s) - self.edges(t)) ** 2)
        for change in (self.vertex_change, self.edge_change):
            expected += transformations * np.mean((change(ours) - change(theirs)) ** 2)
        assert value == pytest.approx(expected)

    def edges(self, features: Array) -> Array:
        table = np.array([[np.sum((a - b) ** 2) for b in features] for a in features])
        return table / table.max()

    def vertex_change(self, layers: list[Array]) -> Array:
        width = max(layer.shape[1] for layer in layers)
        first, second = (np.pad(layer, ((0, 0), (0, width - layer.shape[1]))) for layer in layers)
        change = np.sum((first - second) ** 2, axis=1)
        return change / change.max()

    def edge_change(self, layers: list[Array]) -> Array:
        return (self.edges(layers[0]) - self.edges(layers[1])) ** 2
