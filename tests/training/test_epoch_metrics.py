from __future__ import annotations

import pickle

import pytest
import torch

from raykd.schemes import StepOutput
from raykd.training.metrics import Diverged, EpochMetrics

CPU = torch.device("cpu")


def output(loss: float, hits: int, size: int, **terms: float) -> StepOutput:
    """`hits` of `size` samples are correct; all targets are class 1."""
    logits = torch.zeros(size, 2)
    logits[:hits, 1] = 1.0
    logits[hits:, 0] = 1.0
    values = {name: torch.tensor(value) for name, value in terms.items()}
    return StepOutput(torch.tensor(loss, requires_grad=True), values, logits)


def record(*outputs: StepOutput) -> EpochMetrics:
    metrics = EpochMetrics(CPU)
    for each in outputs:
        metrics.update(each, torch.ones(len(each.logits), dtype=torch.int64))
    return metrics


def test_means_are_weighted_by_samples() -> None:
    means = record(
        output(1.0, 3, 4, task=0.5, kd=2.0), output(4.0, 0, 2, task=2.0, kd=5.0)
    ).compute(1)
    assert means == {
        "train_loss": 2.0,
        "train_accuracy": 0.5,
        "term_task": 1.0,
        "term_kd": 3.0,
        "samples": 6,
    }


def test_half_precision_terms_are_accepted() -> None:
    step = output(1.0, 1, 1, task=1.0)
    half = StepOutput(step.loss, {"task": torch.tensor(1.0, dtype=torch.bfloat16)}, step.logits)
    assert record(half).compute(1)["term_task"] == 1.0


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
def test_first_non_finite_term_is_named(fault: float) -> None:
    broken = record(
        output(1.0, 1, 2, task=1.0, kd=1.0),
        output(fault, 1, 2, task=1.0, kd=fault),
        output(fault, 1, 2, task=fault, kd=fault),
    )
    with pytest.raises(Diverged) as caught:
        broken.compute(5)
    assert caught.value.epoch == 5
    assert caught.value.fault == "term 'kd' not finite in step 2 of 3"


def test_non_finite_sum_of_finite_terms() -> None:
    with pytest.raises(Diverged, match="weighted sum of the terms not finite in step 1 of 1"):
        record(output(float("inf"), 1, 2, task=3e38)).compute(1)


def test_finite_losses_with_sum_beyond_float32_are_accepted() -> None:
    large = output(3e38, 1, 100, task=3e38)
    assert record(large, large).compute(1)["train_loss"] == pytest.approx(3e38)


def test_failure_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(Diverged(3, "term 'kd' not finite")))
    assert (error.epoch, error.fault) == (3, "term 'kd' not finite")
    assert "epoch 3" in str(error) and "lower the learning rate" in str(error)
