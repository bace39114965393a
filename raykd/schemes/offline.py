"""Offline distillation: a trained teacher, frozen, teaches the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from raykd.data.batch import Batch
from raykd.losses import Term
from raykd.losses.base import PROJECTED
from raykd.losses.model_outputs import Progress
from raykd.losses.terms import any_reads_logits
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.classifier_reuse import reuse
from raykd.schemes.distiller import Distiller, HookedModel, SchemeInputs, StepOutput


@option
class Offline(Scheme):
    """Distill from a frozen teacher.

    loss = task_weight x loss on the labels + sum of weight x term; Gou 2021 (arXiv:2006.05525),
    section 3.1, and Hinton 2015 (arXiv:1503.02531).  With `start_epoch` the labels join later, for
    methods that train in two stages: FitNets' (Romero 2015) are a hint with `stop_epoch: n`, the
    scheme and a kd with `start_epoch: n`; ab and fsp of the CRD benchmark the same with their own
    term in place of the hint.  Both stages share one optimizer and one learning rate schedule.
    In each epoch something must be trained: the labels' loss, or a term.
    """

    paper = "Hinton 2015, arXiv:1503.02531"

    name: Literal["offline"] = "offline"
    task_weight: Annotated[float, Field(ge=0, description="Weight of the label loss")] = 1.0
    start_epoch: Annotated[int, Field(ge=0, description="First epoch that uses the label loss")] = 0

    @property
    def lends_classifier(self) -> bool:
        return True

    def reads_logits(self, terms: Sequence[Term]) -> bool:
        return any_reads_logits(terms)

    def build(self, parts: SchemeInputs) -> Distiller:
        return OfflineDistiller(parts, self.task_weight, self.start_epoch)


class OfflineDistiller(Distiller):
    """One student, the evidence of a frozen teacher, and the terms between them.

    Args:
        parts: with a teacher.
        task_weight: weight of the labels' loss.
        start_epoch: the labels' loss joins here.

    Where a term deploys the student with the teacher's classifier (`simkd`), the student is that
    network, and the labels' loss has no part while the term acts.

    Raises:
        ValueError: there is no teacher, or it cannot lend its classifier.
    """

    def __init__(self, parts: SchemeInputs, task_weight: float = 1.0, start_epoch: int = 0) -> None:
        super().__init__()
        self.teacher = parts.guides[0].teacher
        self.task_weight = task_weight
        self.start_epoch = start_epoch
        self.task_loss = parts.task_loss
        self.terms = parts.make_terms(deployable=True)
        layers, known = self.terms.guided_layers, None
        reusing = reuse(parts, self.terms)
        if reusing is not None:
            layers, known = (*layers, PROJECTED), reusing.layers
        self.student = reusing or parts.student
        self.watched = HookedModel(self.student, layers, parts.task, known)
        self.needs_unused_parameter_search = self.terms.sometimes_unused or start_epoch > 0

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        taught = self.teacher(batch)
        shown = self.watched(batch.inputs)
        task = self.task_loss(shown.logits, batch.targets)
        total, values = self.terms(shown, taught, batch.targets, batch.index, progress)
        if progress.epoch >= self.start_epoch and self.terms.deploying not in values:
            total = total + self.task_weight * task
        if self.training and not total.requires_grad:
            raise ValueError(
                f"nothing is trained in epoch {progress.epoch}: the labels' loss joins in epoch "
                f"{self.start_epoch} and no term acts; let a term act until then, or the labels "
                "join earlier"
            )
        return StepOutput(total, {"task": task.detach(), **values}, shown.logits.detach())
