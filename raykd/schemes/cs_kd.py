"""Class-wise self-knowledge distillation: predictions for samples of one class agree."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from raykd.data.batch import Batch, ExtraInputs
from raykd.losses import Progress
from raykd.losses.logits import softened_kl
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput


@option
class CsKd(Scheme):
    """Match the predictions for two samples of the same class.

    Label loss of x + weight x T^2 KL(p(x') || p(x)), mean over the batch, x' without gradient;
    Yun 2020 (arXiv:2003.13964), section 2, with the same T = 4 and weight 1.  In every epoch x' is
    sampled uniformly from the other samples of the class of x (the sampler of the authors can
    return x itself, which happens here only if x is the only sample of its class).

    A batch of B has B samples x and their B partners: an epoch has the same number of optimizer
    steps and labeled samples as with other schemes, but twice the forward passes (those of partners
    without backward).  The baseline has the same number of epochs.  Partners pass through the
    network separately, and update its batch norm too.
    """

    paper = "Yun 2020, arXiv:2003.13964"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["cs_kd"] = "cs_kd"
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of both predictions")
    ] = 4.0
    weight: Annotated[float, Field(ge=0, description="Weight of the class-wise loss")] = 1.0

    def build(self, parts: SchemeInputs) -> Distiller:
        return ClassWise(self, parts)


class ClassWise(Distiller):
    """A network that sees each sample and its partner."""

    extra_inputs = ExtraInputs(partners=True)

    def __init__(self, scheme: CsKd, parts: SchemeInputs) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of a batch.

        Raises:
            ValueError: the batch has no partners.
        """
        if batch.partners is None:
            raise ValueError(
                "scheme 'cs_kd' needs a partner for each sample and the batch has none; load "
                "batches with the `extra_inputs` of the distiller"
            )
        logits = self.student(batch.inputs).float()
        with torch.no_grad():
            taught = self.student(batch.partners).float()
        task = self.task_loss(logits, batch.targets)
        lesson = softened_kl(logits, taught, self.scheme.temperature)
        total = task + self.scheme.weight * lesson
        values = {"task": task.detach(), "class": lesson.detach()}
        return StepOutput(total, values, logits.detach())
