"""Teacher-free distillation: a virtual teacher, right with a given certainty."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.knowledge import Progress
from raykd.knowledge.response import softened_kl
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput


@option
class TfKd(Scheme):
    """A virtual teacher, certain of the label and indifferent to all else, teaches the student.

    (1 - alpha) x labels' loss + alpha T^2 KL(p_d^T || p_s^T), p_d = `certainty` on the label and
    the rest shared equally; Yuan 2020 (arXiv:1909.11723), Eqs. 9 and 10 (Tf-KD_reg), T = 20, with
    T^2 as in kd.  (The authors' code leaves the student's logits as they are and takes a mean over
    classes too.)  The paper's other form, Tf-KD_self, is the scheme `offline` with a teacher of the
    student's own architecture.
    """

    paper = "Yuan 2020, arXiv:1909.11723"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["tf_kd"] = "tf_kd"
    certainty: Annotated[float, Field(gt=0, lt=1, description="the label's probability")] = 0.99
    temperature: Annotated[float, Field(gt=0, description="softens both softmaxes")] = 20.0
    alpha: Annotated[float, Field(ge=0, le=1, description="teacher against labels")] = 0.1

    def build(self, parts: Parts) -> Distiller:
        return TaughtByVirtue(self, parts)


class TaughtByVirtue(Distiller):
    """One network and a teacher that is only a formula."""

    def __init__(self, scheme: TfKd, parts: Parts) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs).float()
        task = self.task_loss(logits, batch.targets)
        taught = virtual_logits(batch.targets, logits.shape[1], self.scheme.certainty).to(logits)
        lesson = softened_kl(logits, taught, self.scheme.temperature)
        total = (1 - self.scheme.alpha) * task + self.scheme.alpha * lesson
        values = {"task": task.detach(), "virtual": lesson.detach()}
        return StepOutput(total, values, logits.detach())


def virtual_logits(targets: Tensor, classes: int, certainty: float) -> Tensor:
    """(B,) -> (B, K): log-probabilities of the virtual teacher."""
    others = log((1 - certainty) / max(1, classes - 1))
    label = F.one_hot(targets, classes)
    return label * log(certainty) + (1 - label) * others
