from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from raykd.data import Batch
from raykd.training.metrics import autocast_for, evaluate


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in sizes:
        inputs = torch.randn(size, 5, generator=generator)
        targets = torch.randint(0, 3, (size,), generator=generator)
        parts.append(Batch(inputs, targets, torch.arange(size)))
    return parts


def test_means_are_weighted_by_samples() -> None:
    model, data = nn.Linear(5, 3), batches(7, 1, 4)
    inputs = torch.cat([b.inputs for b in data if isinstance(b.inputs, torch.Tensor)])
    targets = torch.cat([batch.targets for batch in data])
    logits = model(inputs).detach()
    metrics = evaluate(model, data)
    assert metrics["loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-6)
    assert metrics["accuracy"] == (logits.argmax(1) == targets).sum().item() / 12


def test_eval_mode_is_used_and_restored() -> None:
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(norm, nn.Dropout(0.9), nn.Linear(5, 3)).train()
    first = evaluate(model, batches(8))
    assert model.training and model[1].training
    assert first == evaluate(model, batches(8))
    assert norm.running_mean is not None and not norm.running_mean.any()
    evaluate(model.eval(), batches(8))
    assert not model.training


def test_mode_is_restored_if_forward_fails() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(RuntimeError):
        evaluate(model, batches(8))
    assert model.training


def test_empty_split_raises() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(nn.Linear(5, 3), [])


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("fp32", "cpu", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_precision(precision: str, device: str, dtype: torch.dtype) -> None:
    with autocast_for(precision, torch.device(device))():  # type: ignore[arg-type]
        assert nn.Linear(5, 3)(torch.ones(2, 5)).dtype == dtype


def test_bf16_metrics_are_near_fp32() -> None:
    model, data = nn.Linear(5, 3), batches(64)
    half = evaluate(model, data, autocast=autocast_for("bf16", torch.device("cpu")))
    assert half["loss"] == pytest.approx(evaluate(model, data)["loss"], abs=0.02)
