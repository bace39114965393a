"""The student without any teacher: the null arm of every study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from raykd.data.batch import Batch
from raykd.knowledge.evidence import Progress
from raykd.option import option
from raykd.schemes.distiller import Distiller, Parts, StepOutput
from raykd.schemes.scheme import Scheme


@option
class Alone(Scheme):
    """Train the student on the labels only, without a teacher."""

    paper = ""
    needs_teacher = False
    takes_knowledge = False

    name: Literal["alone"] = "alone"

    def build(self, parts: Parts) -> Distiller:
        return LearnsAlone(parts.student, parts.task_loss)


class LearnsAlone(Distiller):
    """The task loss and nothing else."""

    def __init__(self, student: nn.Module, task_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.student = student
        self.task_loss = task_loss

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs)
        loss = self.task_loss(logits, batch.targets)
        return StepOutput(loss, {"task": loss.detach()}, logits.detach())
