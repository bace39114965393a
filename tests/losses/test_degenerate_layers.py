"""Dead, constant, identical and rescaled layers, as they occur in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.loss_cases import CLASSES, GUIDED, HINT, LAYERS, PROGRESS, context_of, label, variants
from raykd.losses import Loss, ModelOutputs
from raykd.losses.functional import centred, discrepancy, unit

NAMES = ("at", "nst", "pkt", "cka", "fsp", "rkd", "cc", "sp", "irg", "svd")
ALL = [loss for loss in variants() if loss.name in NAMES]


def random_outputs(
    loss: Loss, shapes: dict[str, tuple[int, ...]], seed: int, batch: int = 6
) -> ModelOutputs:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        name: torch.randn(batch, *shapes[name], generator=draw)
        for name in LAYERS[loss.default_pairs]
    }
    return ModelOutputs(torch.randn(batch, CLASSES, generator=draw), layers)


def value(loss: Loss, student: ModelOutputs, teacher: ModelOutputs) -> Tensor:
    torch.manual_seed(0)
    module = loss.build(context_of(loss)).eval()
    rows = torch.arange(len(student.logits))
    return module(student, teacher, rows % CLASSES, rows, PROGRESS)


def dead(layer: Tensor) -> Tensor:
    return torch.zeros_like(layer)


def dead_for_one_sample(layer: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(layer[:1]), layer[1:]])


def constant(layer: Tensor) -> Tensor:
    return torch.full_like(layer, 0.1)


def same_sample(layer: Tensor) -> Tensor:
    return layer[:1].expand_as(layer).clone()


def two_equal_samples(layer: Tensor) -> Tensor:
    return torch.cat([layer[:1], layer[:1], layer[2:]])


def dead_channel(layer: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(layer[:, :1]), layer[:, 1:]], dim=1)


@pytest.mark.parametrize(
    "change",
    [dead, dead_for_one_sample, constant, same_sample, two_equal_samples, dead_channel],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("loss", ALL, ids=label)
def test_value_and_gradient_stay_moderate(loss: Loss, change: Callable[[Tensor], Tensor]) -> None:
    ordinary, teacher = random_outputs(loss, GUIDED, seed=1), random_outputs(loss, HINT, seed=2)
    for student, target in (
        (ordinary.map(change), teacher),
        (ordinary, teacher.map(change)),
        (ordinary.map(change), teacher.map(change)),
    ):
        leaves = student.map(lambda tensor: tensor.clone().requires_grad_())
        result = value(loss, leaves, target)
        result.backward()
        assert torch.isfinite(result)
        for leaf in leaves.layers.values():
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()
            assert leaf.grad.abs().max() < 1e3


SCALED = [loss for loss in ALL if loss.name not in ("fsp", "svd", "irg")]


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("loss", SCALED, ids=label)
def test_loss_is_invariant_to_students_scale(loss: Loss, scale: float) -> None:
    student, teacher = random_outputs(loss, GUIDED, seed=1), random_outputs(loss, HINT, seed=2)
    scaled = student.map(lambda tensor: scale * tensor)
    torch.testing.assert_close(
        value(loss, scaled, teacher), value(loss, student, teacher), rtol=1e-3, atol=1e-6
    )


def test_centering_constant_gives_exact_zeros() -> None:
    values = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]])
    assert centred(values, dim=1)[0].abs().max() == 0
    assert centred(values, dim=1)[1].sum().abs() < 1e-6
    assert centred(values, dim=1)[1, 6] == pytest.approx(0.1 * 6 / 7)


def test_unit_of_zero_vector_is_zero() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(unit(vectors), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_gaussian_kernel_of_identical_patterns() -> None:
    # sigma^2 is 1 then: 1 + 1 - 2 exp(-1/2)
    guided, hint = torch.zeros(1, 2, 3), torch.tensor([0.6, 0.8, 0.0]).expand(1, 4, 3)
    result = discrepancy(guided, hint, "gaussian").item()
    assert result == pytest.approx(2 - 2 * 0.60653066)
