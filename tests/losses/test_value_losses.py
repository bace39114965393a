"""Losses on labels, real values and vectors against their formulas in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raykd.losses import KD, BoundedRegression, CosineResponse, LogitMse


def drawn(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_of_labels_is_the_binary_divergence(temperature: float) -> None:
    student, teacher = drawn(1), drawn(2)
    labels = (drawn(3) > 0).double()
    p, q = (1 / (1 + np.exp(-z.numpy() / temperature)) for z in (teacher, student))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    actual = KD(temperature=temperature)(student, teacher, labels)
    assert actual.item() == pytest.approx(temperature**2 * each.mean())
    assert KD()(teacher, teacher, labels).item() == 0


def test_kd_of_labels_is_finite_for_large_logits() -> None:
    student = (1e4 * drawn(1)).requires_grad_()
    value = KD(temperature=1.0)(student, -1e4 * drawn(1), torch.ones(6, 4, dtype=torch.float64))
    value.backward()
    assert torch.isfinite(value) and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_bounded_regression_counts_samples_worse_than_the_teacher(margin: float) -> None:
    student, teacher, targets = drawn(1), drawn(2), drawn(3)
    errors = ((student - targets) ** 2).sum(1).numpy()
    bounds = ((teacher - targets) ** 2).sum(1).numpy()
    active = errors + margin > bounds
    assert 0 < active.sum() < len(active), "both kinds of samples"
    actual = BoundedRegression(margin=margin)(student, teacher, targets)
    assert actual.item() == pytest.approx((errors * active).mean() / 4)


def test_cosine_compares_directions() -> None:
    student, teacher, targets = drawn(1), drawn(2), drawn(3)
    dots = (student * teacher).sum(1) / student.norm(dim=1) / teacher.norm(dim=1)
    assert CosineResponse()(student, teacher, targets).item() == pytest.approx(
        1 - dots.mean().item()
    )
    assert CosineResponse()(3 * teacher, teacher, targets).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "loss", [BoundedRegression(), CosineResponse()], ids=lambda loss: loss.name
)
def test_classes_as_targets_are_refused(loss: BoundedRegression | CosineResponse) -> None:
    with pytest.raises(ValueError, match=r"must be values of shape \(6, 4\)"):
        loss(drawn(1), drawn(2), torch.zeros(6, dtype=torch.int64))
    assert LogitMse()(drawn(1), drawn(2), drawn(3)).isfinite()
