"""Training settings of a study: optimizer, learning rate schedule and budget of one network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from raykd.registry import Registry, option

PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, description="Learning rate")]


@option
class Optimizer:
    """Base class of optimizers.

    Class attributes:
        paper: author, year, arXiv number or venue.
    """

    paper: ClassVar[str] = ""

    name: str
    lr: Rate

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer over parameters that all require a gradient.

        The fused kernel is used on CUDA and on the CPU, PyTorch's choice elsewhere.
        """
        raise NotImplementedError


@option
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Rate = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay")] = 5e-4
    nesterov: Annotated[bool, Field(description="Use Nesterov momentum")] = False

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=_fused(parameters),
        )
        # A momentum of 0 gives the same first step as none.  The fused kernel fails if only some
        # parameters have one, as when a term that learns something starts in a later epoch.
        for parameter in parameters if self.momentum else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


@option
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov 2019, arXiv:1711.05101)."""

    paper = "Loshchilov 2019, arXiv:1711.05101"

    name: Literal["adamw"] = "adamw"
    lr: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0, description="Decoupled weight decay")] = 0.01
    betas: Annotated[
        tuple[float, float],
        Field(description="Decay rates of the running means of gradients and of their squares"),
    ] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}; each must be >= 0 and < 1")

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=_fused(parameters),
        )


def _fused(parameters: Sequence[nn.Parameter]) -> bool | None:
    """Return True if PyTorch has a fused kernel for all parameters, else None."""
    devices = ("cpu", "cuda")
    return all(p.device.type in devices and p.is_floating_point() for p in parameters) or None


OPTIMIZERS = Registry("optimizer", base=Optimizer, entry_points="raykd.optimizers")
OPTIMIZERS.add(SGD, AdamW)


@option
class Schedule:
    """Base class of learning rate schedules.

    Class attributes:
        paper: author, year, arXiv number or venue; empty if there is none.
    """

    paper: ClassVar[str] = ""

    name: str

    def factor(self, epoch: float, fraction: float) -> float:
        """Return the factor on the learning rate in one step, apart from warmup.

        Args:
            epoch: epochs trained before this step.
            fraction: part of the steps after warmup that was taken before this step, 0 to 1.
        """
        raise NotImplementedError


@option
class Cosine(Schedule):
    """Cosine decay from the full learning rate to `final_lr_fraction` times it, per step."""

    paper = "Loshchilov 2017, arXiv:1608.03983"

    name: Literal["cosine"] = "cosine"
    final_lr_fraction: Annotated[
        float,
        Field(ge=0, le=1, description="Learning rate at the end, as a fraction of the full one"),
    ] = 0.0

    def factor(self, epoch: float, fraction: float) -> float:
        final = self.final_lr_fraction
        return final + (1 - final) * (1 + math.cos(math.pi * fraction)) / 2


@option
class Step(Schedule):
    """Multiply the learning rate by `gamma` after each epoch in `milestones` (counted from 1)."""

    name: Literal["step"] = "step"
    milestones: Annotated[
        tuple[PositiveInt, ...],
        Field(min_length=1, description="Epochs after which the learning rate drops"),
    ] = (150, 180, 210)
    gamma: Annotated[
        float, Field(gt=0, le=1, description="Factor on the learning rate at each milestone")
    ] = 0.1

    def factor(self, epoch: float, fraction: float) -> float:
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


@option
class Constant(Schedule):
    """Constant learning rate."""

    name: Literal["constant"] = "constant"

    def factor(self, epoch: float, fraction: float) -> float:
        return 1.0


SCHEDULES = Registry("schedule", base=Schedule, entry_points="raykd.schedules")
SCHEDULES.add(Cosine, Step, Constant)


@option
class Train:
    """Training settings: budget, optimizer, schedule, precision."""

    epochs: PositiveInt = 10
    batch_size: Annotated[
        int, Field(ge=1, description="Samples per batch and trial, divided among its workers")
    ] = 64
    optimizer: Annotated[Optimizer, OPTIMIZERS] = SGD()
    schedule: Annotated[Schedule, SCHEDULES] = Cosine()
    warmup_epochs: Annotated[
        float, Field(ge=0, description="Number of epochs with a linear learning rate warmup from 0")
    ] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[
        float | None, Field(gt=0, description="Maximum gradient norm. null: no clipping")
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Numeric precision. auto: bf16 on CUDA, otherwise fp32"),
    ] = "auto"
    compile: Annotated[
        Literal["none", "graph", "default", "reduce-overhead", "max-autotune"],
        Field(
            description="Compilation of the student. graph: record training steps as a CUDA "
            "graph once per epoch and replay them, without compiling; other "
            "values: mode of torch.compile for the forward and backward pass "
            "(reduce-overhead uses CUDA graphs). Each architecture is compiled "
            "separately; students with terms on layers run in eager mode"
        ),
    ] = "none"

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer; weight decay acts on all parameters that require a gradient."""
        return self.optimizer.build([p for p in parameters if p.requires_grad])

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of one optimizer step.

        It rises linearly over the warmup steps: the first has 1 / steps of the full rate, the
        last all of it.  A cosine schedule spans the remaining steps; milestones count epochs from
        the start of the training.

        Args:
            step: counted from 0 over the whole training.
            steps_per_epoch: batches in an epoch.
        """
        warmup = round(self.warmup_epochs * steps_per_epoch)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        after_warmup = max(1, self.epochs * steps_per_epoch - warmup)
        fraction = min(1.0, max(0, step - warmup) / after_warmup)
        return self.optimizer.lr * rise * self.schedule.factor(step / steps_per_epoch, fraction)
