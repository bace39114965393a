"""Optimizer and learning rate of one training."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from raykd.train_config import Train


def make_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer of `train` over the parameters that require a gradient.

    Weight decay acts on every one of them.
    """
    return train.optimizer.build([p for p in parameters if p.requires_grad])


def learning_rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimizer step, counted from 0 over the whole training.

    Warmup is linear: its first step takes one part of the full rate rather than 0, its last one
    the full rate.  The cosine then runs over the remaining steps; milestones count epochs from the
    start of the training.
    """
    warmup = round(train.warmup_epochs * steps_per_epoch)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    after_warmup = max(1, train.epochs * steps_per_epoch - warmup)
    fraction = min(1.0, max(0, step - warmup) / after_warmup)
    return train.optimizer.lr * rise * train.schedule.factor(step / steps_per_epoch, fraction)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
