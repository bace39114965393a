"""The optimiser and the learning rate of one training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from raykd.schemes.train import SGD, Constant, Cosine, Step, Train


def make_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimiser of `train` over all `parameters`; weight decay acts on every one of them.

    The fused kernels are used on CUDA and on the CPU, torch's own choice elsewhere.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    fused = True if _fusible(wanted) else None
    option = train.optimizer
    if isinstance(option, SGD):
        optimizer = torch.optim.SGD(
            wanted,
            lr=option.lr,
            momentum=option.momentum,
            weight_decay=option.weight_decay,
            nesterov=option.nesterov,
            fused=fused,
        )
        if option.momentum:
            _start_at_rest(optimizer, wanted)
        return optimizer
    return torch.optim.AdamW(
        wanted,
        lr=option.lr,
        betas=option.betas,
        weight_decay=option.weight_decay,
        fused=fused,
    )


def _start_at_rest(optimizer: torch.optim.SGD, parameters: Iterable[nn.Parameter]) -> None:
    """Give every parameter a momentum of 0, which has the first step come out as without one.

    Torch's fused kernel fails where some parameters have a momentum and others, whose term joins
    in a later epoch, have none yet.
    """
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _fusible(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


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
        left = max(1, train.epochs * steps_per_epoch - warmup)
        done = min(1.0, max(0, step - warmup) / left)
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    if isinstance(schedule, Step):
        return schedule.factor ** sum(step >= epoch * steps_per_epoch for epoch in schedule.at)
    assert isinstance(schedule, Constant), f"unknown schedule {schedule}"
    return 1.0


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
