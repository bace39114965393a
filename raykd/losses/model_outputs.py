"""Inputs of losses: outputs of networks, and the progress of the training."""

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
        """Apply a function to every tensor."""
        layers = {name: change(layer) for name, layer in self.layers.items()}
        return ModelOutputs(change(self.logits), layers)

    def detached(self) -> ModelOutputs:
        """Return the outputs detached from their graph."""
        return self.map(Tensor.detach)


@dataclass(frozen=True)
class Progress:
    """Progress of the training.

    Attributes:
        epoch: counted from 0.
        epochs: total number.
        step: optimizer steps taken before this one, over the whole training.
        steps_per_epoch: batches of one epoch.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps_per_epoch: int = 1

    @property
    def fraction(self) -> float:
        """Completed fraction of the training, 0 to 1."""
        return self.step / max(1, self.epochs * self.steps_per_epoch)

    def since(self, epoch: int) -> Progress:
        """Count the progress from an earlier epoch."""
        step = self.step - epoch * self.steps_per_epoch
        return Progress(self.epoch - epoch, self.epochs - epoch, step, self.steps_per_epoch)


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss in one step.

    Attributes:
        student: its outputs.
        teacher: the teacher's, detached.
        targets: (B,) the labels.
        index: (B,) the samples' numbers in the data set.
        progress: of the training.
    """

    student: ModelOutputs
    teacher: ModelOutputs
    targets: Tensor
    index: Tensor
    progress: Progress
