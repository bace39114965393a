"""Inputs of losses: outputs of networks, and the progress of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a network for one batch.

    Attributes:
        logits: (B, classes), or (B, classes, H, W).
        layers: outputs of layers, (B, *shape) each, by the name that pairs use.
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
        epoch: number of the epoch, from 0.
        epochs: total number.
        step: number of optimizer steps before this step, over the whole training.
        steps_per_epoch: number of batches of an epoch.
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
        """Return the progress counted from an earlier epoch."""
        step = self.step - epoch * self.steps_per_epoch
        return Progress(self.epoch - epoch, self.epochs - epoch, step, self.steps_per_epoch)


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss in one step.

    Attributes:
        student: outputs of the student.
        teacher: outputs of the teacher, detached.
        targets: labels: (B,) class indices, (B, C) labels or values, or (B, H, W) class indices.
        index: (B,) numbers of the samples in the data set.
        progress: of the training.
    """

    student: ModelOutputs
    teacher: ModelOutputs
    targets: Tensor
    index: Tensor
    progress: Progress
