"""The shape every distillation loss has.

A loss is a frozen dataclass (an `option`): its fields are its configuration, its `__call__` is
the paper's formula, and what it learns (connectors, memories) is made by `connector` or `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raykd.knowledge.evidence import Evidence, Progress, Shape
from raykd.option import option


@option
class Pair:
    """One hint layer of the teacher and the guided layer of the student it teaches."""

    hint: str
    guided: str


@dataclass(frozen=True)
class LossContext:
    """What a loss may know when its learned parts are made.

    Attributes:
        pairs: the layer pairs of its term, shallow to deep.
        guided_shapes: the student's layer shapes, one a pair.
        hint_shapes: the teacher's layer shapes, one a pair.
        classes: number of classes.
        train_size: number of training samples (`Batch.index` is below the data set's size, not
            below this).
        data_size: one more than the largest `Batch.index`.
    """

    pairs: tuple[Pair, ...]
    guided_shapes: tuple[Shape, ...]
    hint_shapes: tuple[Shape, ...]
    classes: int
    train_size: int
    data_size: int


class LossModule(nn.Module):
    """A loss made ready for one trial; its parameters are trained along with the student's."""

    def forward(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        """The loss's value, a scalar, without its term's weight."""
        raise NotImplementedError


class Loss:
    """Base of every loss.

    Class attributes:
        knowledge: which of the survey's three kinds of knowledge it transfers.
        paper: author, year, arXiv number.
        default_weight: the weight of a term that names none.
        takes_pairs: whether its term may bear `pairs`.
        default_pairs: the pairs of a term that names none: "stages" pairs the stages one to one
            counted from the deepest, "last" pairs the deepest stages, "embedding" pairs the
            inputs of the two classifiers, "none" for losses on logits.
    """

    name: str
    knowledge: ClassVar[Literal["response", "feature", "relation"]]
    paper: ClassVar[str]
    default_weight: ClassVar[float] = 1.0
    takes_pairs: ClassVar[bool] = True
    default_pairs: ClassVar[Literal["stages", "last", "embedding", "none"]] = "last"

    def build(self, context: LossContext) -> LossModule:
        """Make the loss ready for one trial.

        Raises:
            ValueError: the layers it is given cannot be bridged; names both layers and shapes.
        """
        raise NotImplementedError


class ResponseLoss(Loss):
    """A loss on logits alone: `loss(student, teacher, targets)`, (B, classes) each."""

    knowledge = "response"
    takes_pairs = False
    default_pairs = "none"

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def build(self, context: LossContext) -> LossModule:
        return _OnLogits(self)


class PairLoss(Loss):
    """A loss on one guided and one hint layer at a time: `loss(guided, hint)`.

    The guided layer passes its connector first.  The values of several pairs are summed.
    """

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        raise NotImplementedError

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        """The module that carries (B, *guided) to the shape the loss compares with (B, *hint)."""
        return nn.Identity()

    def build(self, context: LossContext) -> LossModule:
        return _OnPairs(self, context)


class _OnLogits(LossModule):
    def __init__(self, loss: ResponseLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        return self.loss(student.logits, teacher.logits, targets)


class _OnPairs(LossModule):
    def __init__(self, loss: PairLoss, context: LossContext) -> None:
        super().__init__()
        self.loss = loss
        self.pairs = context.pairs
        self.connectors = nn.ModuleList(_connectors(loss, context))

    def forward(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        values = [
            self.loss(connector(student.layers[pair.guided]), teacher.layers[pair.hint])
            for pair, connector in zip(self.pairs, self.connectors, strict=True)
        ]
        return torch.stack(values).sum()


def _connectors(loss: PairLoss, context: LossContext) -> Sequence[nn.Module]:
    made = []
    for pair, guided, hint in zip(
        context.pairs, context.guided_shapes, context.hint_shapes, strict=True
    ):
        try:
            made.append(loss.connector(guided, hint))
        except ValueError as error:
            raise ValueError(
                f"guided layer {pair.guided!r} {guided} cannot be carried to hint layer "
                f"{pair.hint!r} {hint}: {error}"
            ) from None
    return made
