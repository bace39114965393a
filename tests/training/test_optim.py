from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from raykd.train_config import SGD, AdamW, Constant, Cosine, Step, Train

LR = 0.4


def rates(train: Train, steps_per_epoch: int) -> list[float]:
    return [
        train.learning_rate(step, steps_per_epoch) for step in range(train.epochs * steps_per_epoch)
    ]


def test_cosine_goes_from_initial_to_final_rate() -> None:
    train = Train(epochs=2, optimizer=SGD(lr=LR), schedule=Cosine(final_lr_fraction=0.25))
    rates_ = [train.learning_rate(step, 4) for step in range(9)]
    expected = [LR * (0.25 + 0.75 * (1 + math.cos(math.pi * step / 8)) / 2) for step in range(9)]
    assert rates_ == pytest.approx(expected)
    assert rates_[0] == LR and rates_[8] == pytest.approx(LR / 4)


def test_step_schedule_counts_epochs_from_1() -> None:
    train = Train(epochs=4, optimizer=SGD(lr=LR), schedule=Step(milestones=(1, 3), gamma=0.1))
    assert rates(train, 2) == pytest.approx([LR] * 2 + [LR / 10] * 4 + [LR / 100] * 2)


def test_constant_rate() -> None:
    train = Train(epochs=3, optimizer=SGD(lr=LR), schedule=Constant())
    assert rates(train, 5) == [LR] * 15


def test_linear_warm_up_then_cosine() -> None:
    train = Train(epochs=2, optimizer=SGD(lr=LR), schedule=Cosine(), warmup_epochs=0.5)
    rates_ = rates(train, 8)
    assert rates_[:4] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])
    assert rates_[4] == LR
    assert rates_[10] == pytest.approx(LR / 2)  # half of the 12 steps after the warm-up
    assert all(later < earlier for earlier, later in pairwise(rates_[4:]))


def test_too_long_warm_up_never_reaches_full_rate() -> None:
    train = Train(epochs=1, optimizer=SGD(lr=LR), warmup_epochs=2.0)
    assert max(rates(train, 10)) == pytest.approx(LR / 2)


@pytest.mark.parametrize(
    "option",
    [SGD(lr=0.1), SGD(lr=0.1, nesterov=True), SGD(lr=0.1, momentum=0.0), AdamW(lr=0.01)],
    ids=repr,
)
def test_optimizer_kernels_follow_published_rule(option: SGD | AdamW) -> None:
    """Against torch's single-tensor implementation, with several steps and changing rates."""

    def steps(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.Tensor:
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = option.lr / (step + 1)
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            optimizer.step()
        return parameter.detach()

    start = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    if isinstance(option, SGD):
        reference: torch.optim.Optimizer = torch.optim.SGD(
            [theirs],
            lr=option.lr,
            momentum=option.momentum,
            weight_decay=option.weight_decay,
            nesterov=option.nesterov,
            foreach=False,
        )
    else:
        reference = torch.optim.AdamW(
            [theirs],
            lr=option.lr,
            betas=option.betas,
            weight_decay=option.weight_decay,
            foreach=False,
        )
    rates_ = steps(Train(optimizer=option).build_optimizer([ours]), ours)
    torch.testing.assert_close(rates_, steps(reference, theirs))


def test_frozen_parameters_are_skipped() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = Train().build_optimizer([nn.Parameter(torch.ones(3)), frozen])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
