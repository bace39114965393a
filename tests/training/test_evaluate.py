from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from raykd.data import Batch
from raykd.training.metrics import autocast_for, evaluate


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in sizes:
        inputs = torch.randn(size, 5, generator=generator)
        targets = torch.randint(0, 3, (size,), generator=generator)
        made.append(Batch(inputs, targets, torch.arange(size)))
    return made


def test_means_are_over_samples_not_over_batches() -> None:
    model, given = nn.Linear(5, 3), batches(7, 1, 4)
    inputs = torch.cat([b.inputs for b in given if isinstance(b.inputs, torch.Tensor)])
    targets = torch.cat([batch.targets for batch in given])
    logits = model(inputs).detach()
    found = evaluate(model, given)
    assert found["loss"] == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-6)
    assert found["accuracy"] == (logits.argmax(1) == targets).sum().item() / 12


def test_it_runs_in_eval_mode_and_puts_the_mode_back() -> None:
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(norm, nn.Dropout(0.9), nn.Linear(5, 3)).train()
    first = evaluate(model, batches(8))
    assert model.training and model[1].training
    assert first == evaluate(model, batches(8))
    assert norm.running_mean is not None and not norm.running_mean.any()
    evaluate(model.eval(), batches(8))
    assert not model.training


def test_the_mode_is_put_back_when_the_forward_fails() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(RuntimeError):
        evaluate(model, batches(8))
    assert model.training


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(nn.Linear(5, 3), [])


@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("fp32", "cpu", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_precision(asked: str, device: str, dtype: torch.dtype) -> None:
    with autocast_for(asked, torch.device(device))():  # type: ignore[arg-type]
        assert nn.Linear(5, 3)(torch.ones(2, 5)).dtype == dtype


def test_bf16_figures_are_near_those_of_fp32() -> None:
    model, given = nn.Linear(5, 3), batches(64)
    half = evaluate(model, given, autocast=autocast_for("bf16", torch.device("cpu")))
    assert half["loss"] == pytest.approx(evaluate(model, given)["loss"], abs=0.02)
