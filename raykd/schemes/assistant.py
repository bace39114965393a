"""A chain of assistants between a teacher and a much smaller student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from raykd.losses import KD, Term
from raykd.losses.terms import any_reads_logits
from raykd.registry import option
from raykd.schemes.base import Scheme, Teacher, TeacherContext, TeacherSpec, independent_teacher
from raykd.schemes.distiller import Distiller, SchemeInputs
from raykd.schemes.multi_teacher import MultiTeacher, MultiTeacherDistiller, Shares
from raykd.schemes.offline import Offline, OfflineDistiller

ASSISTANT_KD = Term(loss=KD(temperature=4.0), weight=1.0)
"""Default knowledge of assistants."""


@option
class Assistant(Scheme):
    """Distill through teacher assistants of intermediate size.

    The teacher teaches the first network of the chain, each network the next one, and the last one
    the student; Mirzadeh 2020 (arXiv:1902.03393, TAKD).  With `dense` every network has all larger
    ones as teachers: the mean of the losses against each of them, i.e. the sum of Son 2021
    (arXiv:2009.08825, DGKD) with its label loss, divided by the number of teachers.  `drop` leaves
    each teacher out of a step with that probability (stochastic teaching in DGKD); one always
    remains.

    An assistant is trained once, before the first trial that needs it, and shared by all trials
    and studies with the same chain up to it.  The `knowledge` of the study is transferred to the
    student; `knowledge` here is transferred to the assistants.
    """

    paper = "Mirzadeh 2020, arXiv:1902.03393"
    unlabeled = "used"

    name: Literal["assistant"] = "assistant"
    chain: Annotated[
        tuple[Teacher, ...],
        Field(
            min_length=1,
            description="Assistants, from largest to smallest. `train` null: trained like "
            "the teacher; assistants with `weights` are not trained",
        ),
    ]
    knowledge: Annotated[
        tuple[Term, ...],
        Field(min_length=1, description="Knowledge terms used to train the assistants"),
    ] = (ASSISTANT_KD,)
    dense: Annotated[
        bool, Field(description="Distill from all larger networks instead of only the previous one")
    ] = False
    drop: Annotated[
        float,
        Field(
            ge=0, lt=1, description="Probability of dropping a teacher in a step. Only with `dense`"
        ),
    ] = 0.0
    task_weight: Annotated[float, Field(ge=0, description="Weight of the label loss")] = 1.0

    def __post_init__(self) -> None:
        if self.drop and not self.dense:
            raise ValueError(
                f"drop is {self.drop} and each network has one teacher; set dense: true, or drop: 0"
            )

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        teachers = super().teachers(around)
        for link in self.chain if teachers else ():
            assistant = independent_teacher(link, around)
            if link.is_trained:
                above = teachers if self.dense else teachers[-1:]
                assistant = replace(
                    assistant,
                    scheme=self._scheme(above),
                    knowledge=self.knowledge,
                    teachers=above,
                )
            teachers = (*teachers, assistant)
        return teachers if self.dense else teachers[-1:]

    def _scheme(self, above: tuple[TeacherSpec, ...]) -> Scheme:
        """Return the scheme by which larger networks teach an assistant."""
        if len(above) == 1:
            return Offline(task_weight=self.task_weight)
        return MultiTeacher(
            others=tuple(spec.as_teacher for spec in above[1:]),
            target="each",
            drop=self.drop,
            task_weight=self.task_weight,
        )

    @property
    def lends_classifier(self) -> bool:
        return not self.dense

    def reads_logits(self, terms: Sequence[Term]) -> bool:
        return self.dense or any_reads_logits(terms)

    def build(self, parts: SchemeInputs) -> Distiller:
        if not self.dense:
            return OfflineDistiller(parts, self.task_weight)
        shares = Shares("mean", len(parts.guides), parts.classes)
        return MultiTeacherDistiller(parts, shares, "each", self.task_weight, self.drop)
