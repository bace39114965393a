"""Losses built for layers that are given as arrays."""

from __future__ import annotations

from typing import Any

import torch

from helpers.arrays import Array, tensor
from raykd.losses import Loss, LossContext, ModelOutputs, Pair, Progress
from raykd.losses.shapes import Shape


def context(
    guided: list[Shape], hints: list[Shape], train_size: int = 8, weight: float = 1.0
) -> LossContext:
    pairs = tuple(Pair(hint=f"t{i}", guided=f"s{i}") for i in range(len(guided)))
    return LossContext(pairs, tuple(guided), tuple(hints), 3, train_size, train_size, weight)


def evidence(letter: str, arrays: list[Array]) -> ModelOutputs:
    layers = {f"{letter}{i}": tensor(array) for i, array in enumerate(arrays)}
    return ModelOutputs(torch.zeros(len(arrays[0]), 3, dtype=torch.float64), layers)


def built_value(
    module: Any,
    guided: list[Array],
    hints: list[Array],
    targets: list[int] | None = None,
    epoch: int = 1,
) -> float:
    count = len(guided[0])
    labels = torch.tensor(targets or [0] * count)
    progress = Progress(epoch, 4)
    student, teacher = evidence("s", guided), evidence("t", hints)
    return module(student, teacher, labels, torch.arange(count), progress).item()


def built(
    loss: Loss,
    guided: list[Shape],
    hints: list[Shape],
    train_size: int = 8,
    weight: float = 1.0,
) -> Any:
    """Build the loss in float64 with fixed initial weights."""
    torch.manual_seed(0)
    return loss.build(context(guided, hints, train_size, weight)).double()


def array(parameter: torch.Tensor) -> Array:
    return parameter.detach().double().numpy()
