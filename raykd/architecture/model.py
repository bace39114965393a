"""The shape every model option has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Task:
    """What a model must take and give.

    Attributes:
        input_shape: one sample's shape without the batch, (C, H, W) for pictures.
        classes: number of classes.
    """

    input_shape: tuple[int, ...]
    classes: int


class Model:
    """Base of every model option: a family of architectures, one concrete member per instance."""

    name: str

    def build(self, task: Task) -> nn.Module:
        """The untrained network: (B, *input_shape) -> (B, classes).

        Raises:
            ValueError: this member cannot take such inputs, with the fields to change.
        """
        raise NotImplementedError
