"""Offline distillation: a frozen, trained teacher teaches the student."""

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
from raykd.tasks.base import ALL_KINDS


@option
class Offline(Scheme):
    """Distill from a frozen teacher.

    loss = task_weight x label loss + sum of weight x term; Gou 2021 (arXiv:2006.05525), section
    3.1, and Hinton 2015 (arXiv:1503.02531).  With `start_epoch` the label loss starts later, for
    methods that train in two stages: FitNets (Romero 2015) is a hint with `stop_epoch: n`, and the
    scheme and a kd term with `start_epoch: n`; ab and fsp of the CRD benchmark are the same with
    their term in place of the hint.  Both stages share one optimizer and one learning rate
    schedule.  Every epoch needs an active loss: the label loss, or a term.
    """

    kinds = ALL_KINDS
    unlabeled = "used"
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
    """A student, a frozen teacher, and the terms between them.

    If a term deploys the student with the classifier of the teacher (`simkd`), the student is that
    network, and the label loss is not used while the term is active.

    Args:
        parts: inputs with a teacher.
        task_weight: weight of the label loss.
        start_epoch: first epoch of the label loss.

    Raises:
        ValueError: there is no teacher, or its classifier cannot be reused.
    """

    def __init__(self, parts: SchemeInputs, task_weight: float = 1.0, start_epoch: int = 0) -> None:
        super().__init__()
        self.teacher = parts.guides[0].teacher
        self.task_weight = task_weight
        self.start_epoch = start_epoch
        self.task_loss = parts.task_loss
        self.terms = parts.make_terms(deployable=True)
        layers, candidates = self.terms.guided_layers, None
        reusing = reuse(parts, self.terms)
        if reusing is not None:
            layers, candidates = (*layers, PROJECTED), reusing.layers
        self.student = reusing or parts.student
        self.watched = HookedModel(self.student, layers, parts.signature, candidates)
        self.needs_unused_parameter_search = self.terms.sometimes_unused or start_epoch > 0

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        teacher_outputs = self.teacher(batch)
        outputs = self.watched(batch.inputs)
        task = self.task_loss(outputs.logits, batch.targets)
        total, values = self.terms(outputs, teacher_outputs, batch.targets, batch.index, progress)
        if progress.epoch >= self.start_epoch and self.terms.deploying not in values:
            total = total + self.task_weight * task
        if self.training and not total.requires_grad:
            raise ValueError(
                f"nothing is trained in epoch {progress.epoch}: the label loss starts in epoch "
                f"{self.start_epoch} and no term is active; keep a term active until then, or "
                "start the label loss earlier"
            )
        return StepOutput(total, {"task": task.detach(), **values}, outputs.logits.detach())
