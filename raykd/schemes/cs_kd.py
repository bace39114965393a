"""Class-wise self-knowledge distillation: samples of one class agree."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.knowledge import Progress
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput


@option
class CsKd(Scheme):
    """A sample's prediction follows that of another sample of its class.

    Labels' loss + weight x T^2 KL(p(x') || p(x)), mean over the samples x that have a partner x' of
    their class in the batch (the next one, around the batch's end), x' without gradient; Yun 2020
    (arXiv:2003.13964), Eqs. 2 and 3, which draws partners with a sampler of its own.  With many
    classes take large batches, or few samples find a partner.  T = 4 and weight 1 are the paper's.
    """

    paper = "Yun 2020, arXiv:2003.13964"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["cs_kd"] = "cs_kd"
    temperature: Annotated[float, Field(gt=0, description="softens both softmaxes")] = 4.0
    weight: Annotated[float, Field(ge=0, description="of the partner's teaching")] = 1.0

    def build(self, parts: Parts) -> Distiller:
        return ClassWise(self, parts)


class ClassWise(Distiller):
    """One network and partners within the batch."""

    def __init__(self, scheme: CsKd, parts: Parts) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs).float()
        task = self.task_loss(logits, batch.targets)
        lesson = agreement(logits, batch.targets, self.scheme.temperature)
        total = task + self.scheme.weight * lesson
        values = {"task": task.detach(), "class": lesson.detach()}
        return StepOutput(total, values, logits.detach())


def agreement(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p(partner) || p), mean over the samples with a partner; 0 if none has one."""
    place, paired = partners(targets)
    softened = F.log_softmax(logits / temperature, dim=1)
    taught = softened.detach()[place]
    divergence = (taught.exp() * (taught - softened)).sum(dim=1)
    return (divergence * paired).sum() / paired.sum().clamp_min(1) * temperature**2


def partners(targets: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) -> (B,) the next sample of the same class, around the end; (B,) whether there is one."""
    count = len(targets)
    rows = torch.arange(count, device=targets.device)
    ahead = (rows[None, :] - rows[:, None] - 1) % count
    other = (targets[:, None] == targets[None, :]) & (ahead < count - 1)
    place = torch.where(other, ahead, count).argmin(dim=1)
    return place, other.any(dim=1)
