"""Offline distillation: a trained teacher, frozen, teaches the student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raykd.data.batch import Batch
from raykd.knowledge.evidence import Progress
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput
from raykd.schemes.watched import Watched


@option
class Offline(Scheme):
    """A frozen teacher teaches the student.

    loss = task_weight x loss on the labels + sum of weight x term; Gou 2021 (arXiv:2006.05525),
    section 3.1, and Hinton 2015 (arXiv:1503.02531).  With `start_epoch` the labels join later:
    FitNets' two stages are a hint with `stop_epoch: n`, the scheme and kd with `start_epoch: n`.
    """

    paper = "Hinton 2015, arXiv:1503.02531"

    name: Literal["offline"] = "offline"
    task_weight: Annotated[float, Field(ge=0, description="weight of the labels' loss")] = 1.0
    start_epoch: Annotated[int, Field(ge=0, description="the labels' loss joins here")] = 0

    def build(self, parts: Parts) -> Distiller:
        return FollowsTeacher(self, parts)


class FollowsTeacher(Distiller):
    """One student, the evidence of a frozen teacher, and the terms between them.

    Raises:
        ValueError: there is no teacher.
    """

    def __init__(self, scheme: Offline, parts: Parts) -> None:
        super().__init__()
        if parts.teacher is None:
            raise ValueError(
                "scheme 'offline' needs a teacher and the study has none; name a `teacher`, or "
                "take a scheme without one (`scheme: {name: alone}`)"
            )
        self.scheme = scheme
        self.teacher = parts.teacher
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.terms = parts.make_terms()
        self.watched = Watched(parts.student, self.terms.guided_layers, parts.task)
        self.needs_unused_parameter_search = self.terms.sometimes_unused or (scheme.start_epoch > 0)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        taught = self.teacher(batch)
        shown = self.watched(batch.inputs)
        task = self.task_loss(shown.logits, batch.targets)
        total, values = self.terms(shown, taught, batch.targets, batch.index, progress)
        if progress.epoch >= self.scheme.start_epoch:
            total = total + self.scheme.task_weight * task
        return StepOutput(total, {"task": task.detach(), **values}, shown.logits.detach())
