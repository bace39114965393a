"""Schemes whose teacher has the architecture of the student and is trained before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from raykd.losses import KD, Term
from raykd.registry import option
from raykd.schemes.base import (
    Scheme,
    TeacherContext,
    TeacherSpec,
    independent_teacher,
    self_teacher,
)
from raykd.schemes.distiller import Distiller, SchemeInputs
from raykd.schemes.offline import Offline, OfflineDistiller

BORN_AGAIN_KD = Term(loss=KD(temperature=1.0), weight=1.0)
"""Cross-entropy between the two outputs, not softened (Furlanello 2018)."""


@option
class BornAgain(Scheme):
    """Train generations of one architecture, each distilled from the previous one.

    The first is trained alone, or is the teacher of the study with `first: teacher`; each later one
    starts from new weights and is trained on the labels and the previous one, the student last;
    Furlanello 2018 (arXiv:1805.04770), section 3.  The `knowledge` of the study is transferred to
    every generation; without any, that of the paper: kd at temperature 1 and weight 1 (its ensemble
    of all generations is not built).  A trial trains `generations` networks before the student with
    `first: alone`, one less with `first: teacher`; the baseline has the budget of the last one
    only.
    """

    paper = "Furlanello 2018, arXiv:1805.04770"
    needs_teacher = False
    unlabeled = "used"

    name: Literal["born_again"] = "born_again"
    generations: Annotated[
        int,
        Field(ge=1, le=10, description="Number of distilled generations, including the student"),
    ] = 1
    first: Annotated[
        Literal["alone", "teacher"], Field(description="Teacher of the first generation")
    ] = "alone"
    task_weight: Annotated[float, Field(ge=0, description="Weight of the label loss")] = 1.0

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        if self.first == "alone":
            forebear = self_teacher(around)
        elif around.teacher is None:
            return ()
        else:
            forebear = independent_teacher(around.teacher, around)
        for generation in range(1, self.generations):
            forebear = replace(
                self_teacher(around, generation),
                scheme=Offline(task_weight=self.task_weight),
                knowledge=transferred(around.knowledge, BORN_AGAIN_KD),
                teachers=(forebear,),
            )
        return (forebear,)

    @property
    def lends_classifier(self) -> bool:
        return self.generations == 1

    def build(self, parts: SchemeInputs) -> Distiller:
        terms = transferred(parts.terms, BORN_AGAIN_KD)
        return OfflineDistiller(parts.with_terms(terms), self.task_weight)


@option
class TfKdSelf(Scheme):
    """Train the student without a teacher, then distill it into a new copy.

    (1 - alpha) x label loss + alpha T^2 KL(p_first || p); Yuan 2020 (arXiv:1909.11723), section
    4 (Tf-KD_self).  T 6 is that of the authors' ResNet-18 on CIFAR-100.  Their alpha there is 0.95,
    with a mean over classes times 50 (half of the divergence used here), for trainings of 200
    epochs; after six epochs the first network is too weak for that (it cost 7 points of the
    accuracy of a small student), so the default is 0.1, which cost nothing.  A trial trains two
    networks; the baseline has the budget of the second only.
    """

    paper = "Yuan 2020, arXiv:1909.11723"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["tf_kd_self"] = "tf_kd_self"
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of student and teacher")
    ] = 6.0
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Weight of the teacher relative to the labels")
    ] = 0.1

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        return (self_teacher(around),)

    def build(self, parts: SchemeInputs) -> Distiller:
        term = Term(loss=KD(temperature=self.temperature), weight=self.alpha)
        return OfflineDistiller(parts.with_terms((term,)), 1 - self.alpha)


def transferred(terms: Sequence[Term], default: Term) -> tuple[Term, ...]:
    """Return the active terms, or the default if there is none."""
    return tuple(term for term in terms if term.active) or (default,)
