"""Losses on attention, and by singular values, against NumPy formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.arrays import Array, draw, kl, softmax, tensor, unit
from helpers.built_losses import built, built_value, context
from raykd.losses.base import PairLoss
from raykd.losses.svd import Svd, aligned, singular_vectors
from raykd.losses.transformer import AttentionMap, ValueRelation


def value(loss: PairLoss, student: Array, teacher: Array) -> float:
    return loss(tensor(student), tensor(teacher)).item()


class TestAttentionMap:
    """Jiao 2020, attention based distillation; Wang 2020, section 3.1."""

    def test_mse(self) -> None:
        student, teacher = draw(2, 3, 5, 5, seed=1), draw(2, 3, 5, 5, seed=2)
        expected = np.mean((student - teacher) ** 2)
        assert value(AttentionMap(), student, teacher) == pytest.approx(expected)

    def test_kl(self) -> None:
        student, teacher = softmax(draw(2, 3, 5, 5, seed=1)), softmax(draw(2, 3, 5, 5, seed=2))
        expected = np.mean(kl(teacher, student))
        assert value(AttentionMap(similarity="kl"), student, teacher) == pytest.approx(expected)

    def test_unequal_head_counts_are_averaged(self) -> None:
        student, teacher = draw(2, 2, 5, 5, seed=1), draw(2, 3, 5, 5, seed=2)
        expected = np.mean((student.mean(axis=1) - teacher.mean(axis=1)) ** 2)
        assert value(AttentionMap(), student, teacher) == pytest.approx(expected)

    def test_unequal_token_counts_raise(self) -> None:
        with pytest.raises(ValueError, match="as many tokens"):
            AttentionMap().build(context([(2, 4, 4)], [(2, 5, 5)]))


class TestValueRelation:
    """Wang 2020, section 3.2."""

    @pytest.mark.parametrize("heads", [1, 2])
    def test_formula(self, heads: int) -> None:
        student, teacher = draw(3, 5, 4, seed=1), draw(3, 5, 6, seed=2)

        def relation(tokens: Array) -> Array:
            width = tokens.shape[2] // heads
            parts = [tokens[:, :, h * width : (h + 1) * width] for h in range(heads)]
            return np.stack(
                [softmax(part @ part.transpose(0, 2, 1) / np.sqrt(width)) for part in parts]
            )

        expected = np.mean(kl(relation(teacher), relation(student)))
        assert value(ValueRelation(heads=heads), student, teacher) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("guided", "hint", "reason"),
        [
            ((5,), (5,), "has no tokens"),
            ((5, 4), (6, 4), "as many tokens"),
            ((5, 3), (5, 4), "equal heads"),
        ],
    )
    def test_invalid_layers_raise(
        self, guided: tuple[int, ...], hint: tuple[int, ...], reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason):
            ValueRelation(heads=2).build(context([guided], [hint]))


class TestSvd:
    """Lee 2018: truncated decomposition, alignment, radial basis functions."""

    @pytest.mark.parametrize("shape", [(3, 4, 4), (9, 2, 3)])
    def test_singular_vectors(self, shape: tuple[int, ...]) -> None:
        features = draw(2, *shape, seed=1)
        sizes, vectors = singular_vectors(tensor(features), 2)
        for b in range(2):
            _, s, vt = np.linalg.svd(features[b].reshape(shape[0], -1).T)
            np.testing.assert_allclose(sizes[b].numpy(), s[:2])
            np.testing.assert_allclose(np.abs(vt[:2] @ vectors[b].numpy()), np.eye(2), atol=1e-9)

    def test_gradient_of_singular_vectors_matches_finite_differences(self) -> None:
        features = tensor(draw(2, 3, 4, 4, seed=1)).requires_grad_()

        def projector(layer: torch.Tensor) -> torch.Tensor:
            _, vectors = singular_vectors(layer, 2)
            return vectors[:, :, :1] @ vectors[:, :, :1].transpose(1, 2)

        assert torch.autograd.gradcheck(projector, (features,))

    def test_gradient_of_equal_singular_values_is_finite(self) -> None:
        features = torch.eye(4).view(1, 4, 2, 2).requires_grad_()
        singular_vectors(features, 2)[1].sum().backward()
        assert features.grad is not None and torch.isfinite(features.grad).all()

    def test_alignment_picks_nearest_direction(self) -> None:
        target = np.eye(3)[None, :, :2]
        candidates = np.stack([[0, -1, 0], [1, 0.1, 0], [0, 0, 1]], axis=1)[None].astype(float)
        actual = aligned(tensor(candidates), tensor(target)).numpy()
        np.testing.assert_array_equal(actual[0].T, [[1, 0.1, 0], [0, 1, 0]])

    def test_formula(self) -> None:
        shapes = [(3, 4, 4), (5, 2, 2)]
        guided = [draw(2, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(2, *shape, seed=9 + i) for i, shape in enumerate(shapes)]
        module = built(Svd(rank=2), list(shapes), list(shapes))
        expected = 0.0
        for b in range(2):
            layers = [self.vectors(s[b], t[b]) for s, t in zip(guided, hints, strict=True)]
            for k in range(2):
                ours = [layer[0][:, k] for layer in layers]
                theirs = [layer[1][:, k] for layer in layers]
                expected += np.sum((self.change(*ours) - self.change(*theirs)) ** 2)
        assert built_value(module, guided, hints) == pytest.approx(expected / 2)

    def vectors(self, student: Array, teacher: Array) -> tuple[Array, Array]:
        def svd(features: Array) -> tuple[Array, Array]:
            _, s, vt = np.linalg.svd(features.reshape(len(features), -1).T, full_matrices=False)
            return s, vt * np.where(vt.sum(axis=1, keepdims=True) < 0, -1, 1)

        sizes, target = svd(teacher)
        _, candidates = svd(student)
        sizes, target = unit(sizes[:2]), target[:2]
        cosines = target @ candidates[:5].T
        nearest = np.abs(cosines).argmax(axis=1)
        signs = np.sign(cosines[np.arange(2), nearest])
        ours = candidates[nearest] * signs[:, None]
        return (ours * sizes[:, None]).T, (target * sizes[:, None]).T

    def change(self, first: Array, second: Array) -> Array:
        return np.exp(-((first[:, None] - second[None]) ** 2) / 8)
