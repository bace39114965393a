"""Progressive self-knowledge distillation: predictions of the last epoch soften the labels."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.losses import Progress
from raykd.losses.functional import from_all_workers
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput


@option
class PsKd(Scheme):
    """Soften the labels with the student's predictions from the previous epoch.

    Cross-entropy with (1 - a_t) label + a_t p_(t-1), a_t = alpha t / epochs for t = 1, 2, ...; Kim
    2021 (arXiv:2006.12000), section 3.  Its alpha is 0.8, for 300 epochs; the default is half of
    that, because in six epochs 0.8 cost 2 points of the accuracy of a small student and 0.4 half a
    point.  In the first epoch the label replaces the past prediction, as in the authors' code.  The
    last prediction for every sample, under the augmentation of that epoch, is stored (data size x
    classes, half precision) and is part of the saved state; workers exchange theirs in every step.
    """

    paper = "Kim 2021, arXiv:2006.12000"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["ps_kd"] = "ps_kd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Weight of the past predictions in the last epoch")
    ] = 0.4

    def build(self, parts: SchemeInputs) -> Distiller:
        return Progressive(self, parts)


class Progressive(Distiller):
    """A network, with its predictions for every sample in the previous epoch."""

    predictions: Tensor
    has_prediction: Tensor

    def __init__(self, scheme: PsKd, parts: SchemeInputs) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        predictions = torch.zeros(parts.data_size, parts.classes, dtype=torch.float16)
        self.register_buffer("predictions", predictions)
        self.register_buffer("has_prediction", torch.zeros(parts.data_size, dtype=torch.bool))

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.student(batch.inputs).float()
        task = self.task_loss(logits, batch.targets)
        share = self.scheme.alpha * (progress.epoch + 1) / progress.epochs
        lesson = F.cross_entropy(logits, self._past(batch, logits))
        self._remember(logits.detach(), batch.index)
        total = (1 - share) * task + share * lesson
        return StepOutput(total, {"task": task.detach(), "past": lesson.detach()}, logits.detach())

    def _past(self, batch: Batch, logits: Tensor) -> Tensor:
        """(B, K): last prediction for each sample, or its label if there is none."""
        labels = F.one_hot(batch.targets, logits.shape[1]).to(logits.dtype)
        past = self.predictions[batch.index].to(logits.dtype)
        return torch.where(self.has_prediction[batch.index, None], past, labels)

    @torch.no_grad()
    def _remember(self, logits: Tensor, index: Tensor) -> None:
        if self.training:
            rows = from_all_workers(index)
            self.predictions[rows] = from_all_workers(logits.softmax(dim=1)).to(
                self.predictions.dtype
            )
            self.has_prediction.index_fill_(0, rows, True)
