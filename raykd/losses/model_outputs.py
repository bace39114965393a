"""What a network shows of itself for one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ModelOutputs:
    """A network's outputs for one batch.

    Attributes:
        logits: (B, classes).
        layers: the tapped layers' outputs, (B, *shape), by the name a pair calls them.
    """

    logits: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> ModelOutputs:
        """The same evidence with every tensor changed."""
        layers = {name: change(layer) for name, layer in self.layers.items()}
        return ModelOutputs(change(self.logits), layers)

    def detached(self) -> ModelOutputs:
        """The same values, cut from the graph that made them."""
        return self.map(Tensor.detach)


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

    def since(self, epoch: int) -> Progress:
        """The same moment, counted from an epoch that has begun."""
        step = self.step - epoch * self.steps_per_epoch
        return Progress(self.epoch - epoch, self.epochs - epoch, step, self.steps_per_epoch)


@dataclass(frozen=True)
class LossInputs:
    """What a loss may look at in one step.

    Attributes:
        student: its evidence.
        teacher: the teacher's, cut from its graph.
        targets: (B,) the labels.
        index: (B,) the samples' numbers in the data set.
        progress: where the training stands.
    """

    student: ModelOutputs
    teacher: ModelOutputs
    targets: Tensor
    index: Tensor
    progress: Progress
