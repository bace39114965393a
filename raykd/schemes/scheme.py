"""The shape every scheme has: who teaches whom, and when.

A scheme option builds a `Distiller`, the module the training loop calls.  The loop does not know
that distillation exists: it calls the distiller, and walks down the gradient of what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn

from raykd.architecture.model import Task
from raykd.data.batch import Batch
from raykd.knowledge import Term
from raykd.knowledge.evidence import Evidence, Progress, Shape
from raykd.knowledge.terms import Terms
from raykd.option import option


@dataclass(frozen=True)
class StepOutput:
    """What one batch gives.

    Attributes:
        loss: the scalar to minimise.
        terms: each part of it by name, detached and unweighted ("task", "kd", "hint" ...).
        logits: (B, classes) of the student that will be deployed, detached.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    logits: Tensor


class TeacherSource(Protocol):
    """Where the teacher's evidence comes from: a live forward, or a cache of one."""

    def __call__(self, batch: Batch) -> Evidence: ...


@dataclass(frozen=True)
class Parts:
    """All that a scheme may build from.

    Attributes:
        student: the network to train.
        build_student: makes another untrained copy of it (for peers), fresh weights each call.
        teacher: evidence of the teacher (its layers named as the pairs name them); None where the
            scheme needs none.
        terms: the knowledge to transfer, pairs resolved to layer names.
        task_loss: (logits, targets) -> scalar, the loss on the labels.
        task: what the networks take and give; the distiller finds the student's layers with it.
        train_size: number of training samples.
        data_size: one more than the largest `Batch.index`.
        guided_shapes / hint_shapes: shape of every layer named in a pair, by the name the pair
            uses, without the batch.
    """

    student: nn.Module
    build_student: Callable[[], nn.Module]
    teacher: TeacherSource | None
    terms: Sequence[Term]
    task_loss: Callable[[Tensor, Tensor], Tensor]
    task: Task
    train_size: int
    data_size: int
    guided_shapes: Mapping[str, Shape] = field(default_factory=dict)
    hint_shapes: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return self.task.classes

    def make_terms(self) -> Terms:
        """The terms made ready, what their losses learn freshly initialised.

        Raises:
            ValueError: layers that cannot be bridged.
        """
        return Terms(
            self.terms,
            classes=self.classes,
            train_size=self.train_size,
            data_size=self.data_size,
            guided_shapes=self.guided_shapes,
            hint_shapes=self.hint_shapes,
        )


class Distiller(nn.Module):
    """A scheme made ready for one trial.

    Every registered parameter is trained; the teacher is not registered.
    """

    student: nn.Module
    """The network that is evaluated and kept."""

    needs_unused_parameter_search: bool = False
    """Whether some parameters may get no gradient in some step (for DDP)."""

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        raise NotImplementedError

    def begin_epoch(self, progress: Progress) -> None:
        """Called before an epoch's first batch."""


@option
class Scheme:
    """Base of every scheme option."""

    name: str
    paper: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    takes_knowledge: ClassVar[bool] = True

    def build(self, parts: Parts) -> Distiller:
        """Make the scheme ready for one trial.

        Raises:
            ValueError: the parts do not fit (no teacher, layers that cannot be bridged).
        """
        raise NotImplementedError
