"""Optimizer and learning rate of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from raykd.train_config import SGD, Constant, Cosine, Step, Train


def make_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer of a training; its weight decay acts on all parameters.

    Fused kernels are used on CUDA and the CPU, the default of PyTorch elsewhere.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained) or None
    option = train.optimizer
    if isinstance(option, SGD):
        optimizer = torch.optim.SGD(
            trained,
            lr=option.lr,
            momentum=option.momentum,
            weight_decay=option.weight_decay,
            nesterov=option.nesterov,
            fused=fused,
        )
        if option.momentum:
            # A momentum of 0 leaves the first step as it is.  Without it PyTorch's fused kernel
            # fails if only some parameters have a momentum, as when a term starts in a later epoch.
            for parameter in trained:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(
        trained,
        lr=option.lr,
        betas=option.betas,
        weight_decay=option.weight_decay,
        fused=fused,
    )


def learning_rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimizer step.

    It rises linearly over the warmup steps: the first uses 1 / steps of the full rate, the last
    all of it.  A cosine schedule spans the remaining steps; the milestones of a step schedule
    count epochs from the start of the training.

    Args:
        train: training settings.
        step: counted from 0 over the whole training.
        steps_per_epoch: batches in an epoch.
    """
    warmup = round(train.warmup_epochs * steps_per_epoch)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return train.optimizer.lr * rise * _decay(train, step, steps_per_epoch, warmup)


def _decay(train: Train, step: int, steps_per_epoch: int, warmup: int) -> float:
    schedule = train.schedule
    if isinstance(schedule, Cosine):
        decay_steps = max(1, train.epochs * steps_per_epoch - warmup)
        progress = min(1.0, max(0, step - warmup) / decay_steps)
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    if isinstance(schedule, Step):
        return schedule.factor ** sum(step >= epoch * steps_per_epoch for epoch in schedule.at)
    assert isinstance(schedule, Constant), f"unknown schedule {schedule}"
    return 1.0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
