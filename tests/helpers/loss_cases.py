"""Synthetic outputs for tests of every loss."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.losses import LOSSES, Loss, LossContext, LossModule, ModelOutputs, Pair, Progress

CLASSES = 5
POSITIONS = (4, 3)
"""Height and width of responses of kind "dense"."""

DATA_SIZE = 40
PROGRESS = Progress(epoch=1, epochs=4, step=9, steps_per_epoch=8)

GUIDED = {
    "stage1": (4, 8, 8),
    "stage2": (5, 4, 4),
    "stage3": (6, 2, 2),
    "embedding": (6,),
}
HINT = {
    "stage1": (6, 8, 8),
    "stage2": (7, 4, 4),
    "stage3": (8, 2, 2),
    "embedding": (8,),
}
LAYERS = {
    "none": (),
    "embedding": ("embedding",),
    "last": ("stage3",),
    "stages": ("stage1", "stage2", "stage3"),
}


@dataclass
class Case:
    """Module of a loss, with one batch."""

    loss: Loss
    module: LossModule
    student: ModelOutputs
    teacher: ModelOutputs
    targets: Tensor
    index: Tensor
    progress: Progress = PROGRESS

    def value(self) -> Tensor:
        return self.module(self.student, self.teacher, self.targets, self.index, self.progress)

    def on(self, rows: Tensor) -> Case:
        """Same loss on a subset of the batch."""
        return dataclasses.replace(
            self,
            student=self.student.map(lambda tensor: tensor[rows]),
            teacher=self.teacher.map(lambda tensor: tensor[rows]),
            targets=self.targets[rows],
            index=self.index[rows],
        )

    def student_leaves(self) -> list[Tensor]:
        """The tensors of the student that the loss reads."""
        if self.loss.takes_pairs:
            return list(self.student.layers.values())
        return [self.student.logits]


def make(
    loss: Loss,
    *,
    batch: int = 6,
    same: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Build a case; `same`: student and teacher outputs are equal."""
    torch.manual_seed(seed)
    module = loss.build(context_of(loss, same=same)).to(dtype)
    draw = torch.Generator().manual_seed(seed + 1)
    names = LAYERS[loss.default_pairs]
    response = (CLASSES, *POSITIONS) if loss.kinds == ("dense",) else (CLASSES,)
    teacher = _evidence(names, HINT, batch, draw, dtype, response)
    student = teacher.map(Tensor.clone)
    if not same:
        student = _evidence(names, GUIDED, batch, draw, dtype, response)
    if getattr(loss, "similarity", "") == "kl":  # it compares probabilities
        student, teacher = (
            outputs.map(lambda layer: layer.softmax(-1)) for outputs in (student, teacher)
        )
    student = student.map(lambda tensor: tensor.requires_grad_())
    targets = torch.randint(CLASSES, (batch,), generator=draw)
    if loss.kinds == ("dense",):
        targets = torch.randint(CLASSES, (batch, *POSITIONS), generator=draw)
    elif "softmax" not in loss.kinds:
        targets = torch.randn(batch, CLASSES, generator=draw, dtype=dtype)
    index = torch.randperm(DATA_SIZE, generator=draw)[:batch]
    return Case(loss, module, student, teacher, targets, index)


def context_of(loss: Loss, *, same: bool = False) -> LossContext:
    names = LAYERS[loss.default_pairs]
    guided = HINT if same else GUIDED
    return LossContext(
        pairs=tuple(Pair(hint=name, guided=name) for name in names),
        guided_shapes=tuple(guided[name] for name in names),
        hint_shapes=tuple(HINT[name] for name in names),
        classes=CLASSES,
        train_size=DATA_SIZE - 8,
        data_size=DATA_SIZE,
    )


def variants() -> list[Loss]:
    """Every loss with its defaults, and once for each other choice one of its fields offers."""
    return list(itertools.chain.from_iterable(map(_variants, LOSSES)))


def label(loss: Loss) -> str:
    """The loss's name and the choices in which it departs from its defaults."""
    default = type(loss)()  # type: ignore[call-arg]
    changed = [
        f"{field.name}={getattr(loss, field.name)}"
        for field in dataclasses.fields(loss)
        if getattr(loss, field.name) != getattr(default, field.name)
    ]
    return "-".join([loss.name, *changed])


def _variants(cls: type[Loss]) -> list[Loss]:
    default = cls()  # type: ignore[call-arg]
    kinds = typing.get_type_hints(cls)
    alternatives = [
        dataclasses.replace(default, **{field.name: choice})
        for field in dataclasses.fields(cls)
        if field.name != "name" and typing.get_origin(kinds[field.name]) is typing.Literal
        for choice in typing.get_args(kinds[field.name])
        if choice != getattr(default, field.name)
    ]
    return [default, *alternatives]


def _evidence(
    names: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    batch: int,
    draw: torch.Generator,
    dtype: torch.dtype,
    response: tuple[int, ...],
) -> ModelOutputs:
    logits = 3 * torch.randn(batch, *response, generator=draw, dtype=dtype)
    layers = {
        name: torch.randn(batch, *shapes[name], generator=draw, dtype=dtype) for name in names
    }
    return ModelOutputs(logits, layers)
