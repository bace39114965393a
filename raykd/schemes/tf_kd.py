"""Teacher-free distillation: a virtual teacher that is correct with a fixed probability."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.losses import Progress
from raykd.losses.logits import softened_kl
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput


@option
class TfKd(Scheme):
    """Distill from a virtual teacher: high for the label, uniform for other classes.

    (1 - alpha) x label loss + alpha x distillation loss, p_d = `certainty` for the label and the
    rest shared equally; Yuan 2020 (arXiv:1909.11723), section 4 (Tf-KD_reg), certainty 0.99,
    T = 20, alpha 0.1.  form:

    - paper: T^2 KL(p_d^T || p^T), both softened, T^2 as in kd.
    - code: KL(softmax(p_d / T) || p), as in the authors' code: the probabilities are softened as if
      they were logits, which makes them nearly equal for all classes, and those of the student are
      not softened.  That code also takes the mean over classes and multiplies by 100, which cancels
      out on CIFAR-100.

    The other form of the paper, Tf-KD_self, is the scheme `tf_kd_self`.
    """

    paper = "Yuan 2020, arXiv:1909.11723"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["tf_kd"] = "tf_kd"
    certainty: Annotated[
        float, Field(gt=0, lt=1, description="Probability of the correct class")
    ] = 0.99
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of student and teacher")
    ] = 20.0
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Weight of the teacher relative to the labels")
    ] = 0.1
    form: Annotated[
        Literal["paper", "code"],
        Field(description="Form of the loss: as in the paper, or as in the authors' code"),
    ] = "paper"

    def build(self, parts: SchemeInputs) -> Distiller:
        return TaughtByVirtue(self, parts)


class TaughtByVirtue(Distiller):
    """A network and a teacher that is only a formula."""

    def __init__(self, scheme: TfKd, parts: SchemeInputs) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs).float()
        task = self.task_loss(logits, batch.targets)
        lesson = virtual_lesson(logits, batch.targets, self.scheme)
        total = (1 - self.scheme.alpha) * task + self.scheme.alpha * lesson
        values = {"task": task.detach(), "virtual": lesson.detach()}
        return StepOutput(total, values, logits.detach())


def virtual_lesson(logits: Tensor, targets: Tensor, scheme: TfKd) -> Tensor:
    """Return the distance of (B, K) logits from the virtual teacher, mean over the batch."""
    label = F.one_hot(targets, logits.shape[1]).to(logits)
    rest = (1 - scheme.certainty) / max(1, logits.shape[1] - 1)
    if scheme.form == "code":
        softened = (label * scheme.certainty + (1 - label) * rest) / scheme.temperature
        return softened_kl(logits, softened, 1.0)
    teacher_logits = label * log(scheme.certainty) + (1 - label) * log(rest)
    return softened_kl(logits, teacher_logits, scheme.temperature)
