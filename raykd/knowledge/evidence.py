"""What a network shows of itself for one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]
"""A layer's output shape without the batch: (C, H, W), (tokens, D) or (D,)."""


@dataclass(frozen=True)
class Evidence:
    """A network's outputs for one batch.

    Attributes:
        logits: (B, classes).
        layers: the tapped layers' outputs, (B, *shape), by the name a pair calls them.
    """

    logits: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where the training stands.

    Attributes:
        epoch: counted from 0.
        epochs: how many there will be.
        step: optimiser steps taken before this one, over the whole training.
        steps_per_epoch: batches of one epoch.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps_per_epoch: int = 1

    @property
    def fraction(self) -> float:
        """How much of the training is done, 0 to 1."""
        return self.step / max(1, self.epochs * self.steps_per_epoch)
