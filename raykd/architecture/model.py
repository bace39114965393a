"""The shape every model option has."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from torch import nn

from raykd.option import option


@dataclass(frozen=True)
class Task:
    """What a model must take and give.

    Attributes:
        input_shape: one sample's shape without the batch, (C, H, W) for pictures.
        classes: number of classes.
    """

    input_shape: tuple[int, ...]
    classes: int


@option
class Model:
    """Base of every model option: a family of architectures, one concrete member per instance.

    Class attributes:
        paper: author, year, arXiv number; empty where there is none.
    """

    name: str
    paper: ClassVar[str] = ""

    def build(self, task: Task) -> nn.Module:
        """The untrained network: (B, *input_shape) -> (B, classes).

        Raises:
            ValueError: this member cannot take such inputs, with the fields to change.
        """
        raise NotImplementedError


def picture_shape(task: Task, family: str) -> tuple[int, int, int]:
    """(channels, height, width) of the task's pictures.

    Raises:
        ValueError: the task's samples are no pictures; `family` is the model's name.
    """
    if len(task.input_shape) != 3 or min(task.input_shape) < 1:
        raise ValueError(
            f"{family} takes pictures of shape (channels, height, width), the data's samples "
            f"have shape {task.input_shape}; use model {{name: mlp}}, which takes any shape"
        )
    channels, height, width = task.input_shape
    return channels, height, width


def written(value: Any) -> str:
    """An option as a study file writes it, without what is left at its default."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if not is_dataclass(value):
        return "null" if value is None else str(value)
    changed = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name == "name" or getattr(value, field.name) != field.default
    }
    if list(changed) == ["name"]:
        return changed["name"]
    return "{" + ", ".join(f"{key}: {written(held)}" for key, held in changed.items()) + "}"
