"""The student without a teacher: the baseline of every study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from raykd.data.batch import Batch
from raykd.losses.model_outputs import Progress
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput
from raykd.tasks.base import ALL_KINDS


@option
class Alone(Scheme):
    """Train the student on the labels only, without a teacher."""

    kinds = ALL_KINDS
    unlabeled = "left_out"
    paper = ""
    needs_teacher = False
    takes_knowledge = False

    name: Literal["alone"] = "alone"

    def build(self, parts: SchemeInputs) -> Distiller:
        return AloneDistiller(parts.student, parts.task_loss)


class AloneDistiller(Distiller):
    """The label loss only."""

    def __init__(self, student: nn.Module, task_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.student = student
        self.task_loss = task_loss

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs)
        loss = self.task_loss(logits, batch.targets)
        return StepOutput(loss, {"task": loss.detach()}, logits.detach())
