"""Values of channel-wise distillation, and of losses on the positions of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from raykd.losses import KD, LOSSES, Cwd, CwdFeature, LogitMse, ModelOutputs, Progress
from raykd.losses.base import LossContext, ResponseLoss, rows_of

B, C, H, W = 3, 4, 5, 2


def maps(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(B, C, H, W, generator=draw, dtype=torch.float64)


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 / C x sum over channels of KL over positions, mean over the batch."""
    total = 0.0
    for sample in range(B):
        for channel in range(C):
            ours = log_softmax(student[sample, channel].numpy().ravel() / temperature)
            theirs = log_softmax(teacher[sample, channel].numpy().ravel() / temperature)
            total += float((np.exp(theirs) * (theirs - ours)).sum())
    return total * temperature**2 / (B * C)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_equals_formula(temperature: float) -> None:
    student, teacher = maps(0), maps(1)
    expected = by_hand(student, teacher, temperature)
    targets = torch.zeros(B, H, W, dtype=torch.int64)
    value = Cwd(temperature=temperature)(student, teacher, targets)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    feature = CwdFeature(temperature=temperature)(student, teacher)
    assert feature.item() == pytest.approx(expected, rel=1e-9)


def test_cwd_does_not_see_constants_of_a_class() -> None:
    teacher = maps(1)
    targets = torch.zeros(B, H, W, dtype=torch.int64)
    shifted = teacher + torch.randn(B, C, 1, 1)
    assert Cwd()(shifted, teacher, targets).item() == pytest.approx(0, abs=1e-9)


def test_cwd_needs_maps() -> None:
    with pytest.raises(ValueError, match="cwd_feature compares map layers"):
        CwdFeature().connector((6,), (8,))
    flat = torch.randn(B, C)
    with pytest.raises(ValueError, match=r"must be \(batch, classes, height, width\) and the same"):
        Cwd()(flat, flat, torch.zeros(B, dtype=torch.int64))


@pytest.mark.parametrize("loss", [KD(), LogitMse(), LOSSES["dist"](), LOSSES["logit_std"]()])
def test_positions_are_samples(loss: ResponseLoss) -> None:
    student, teacher = maps(0), maps(1)
    targets = torch.randint(C, (B, H, W))
    targets[0] = 255
    value = loss(student, teacher, targets)
    rows = loss(rows_of(student), rows_of(teacher), targets.flatten().clamp_max(C - 1))
    torch.testing.assert_close(value, rows)
    context = LossContext((), (), (), classes=C, train_size=B, data_size=B)
    outputs = ModelOutputs(student), ModelOutputs(teacher)
    module = loss.build(context)(*outputs, targets, torch.arange(B), Progress(0, 1))
    torch.testing.assert_close(module, value)


def test_losses_for_samples_refuse_maps() -> None:
    for name in ("dkd", "nkd"):
        with pytest.raises(ValueError, match=r"must be \(batch, classes\) and the same"):
            LOSSES[name]()(maps(0), maps(1), torch.zeros(B, H, W, dtype=torch.int64))
