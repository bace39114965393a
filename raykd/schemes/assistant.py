"""A chain of assistants between a teacher and a much smaller student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from raykd.losses import KD, Term
from raykd.losses.terms import any_reads_logits
from raykd.registry import option
from raykd.schemes.base import Scheme, TeacherContext, TeacherSpec, independent_teacher
from raykd.schemes.distiller import Distiller, SchemeInputs
from raykd.schemes.multi_teacher import MultiTeacher, MultiTeacherDistiller, Shares
from raykd.schemes.offline import Offline, OfflineDistiller
from raykd.schemes.teachers import Teacher

ASSISTANT_KD = Term(loss=KD(temperature=4.0), weight=1.0)
"""Default knowledge of assistants."""


@option
class Assistant(Scheme):
    """Distill through teacher assistants of intermediate size.

    The teacher teaches the chain's first network, that one the next, the last one the student;
    Mirzadeh 2020 (arXiv:1902.03393, TAKD).  With `dense` every network is taught by all those
    above it: the mean of the losses against each, which is the sum of Son 2021 (arXiv:2009.08825,
    DGKD) and its labels' losses divided by the number of teachers; `drop` leaves each teacher out
    of a step with that probability (DGKD's stochastic teaching), one always stays.

    An assistant is trained once, before the first trial that needs it, and shared by all trials
    and studies whose chain is the same up to it.  The study's `knowledge` is what the student is
    taught; `knowledge` here is what assistants are taught.
    """

    paper = "Mirzadeh 2020, arXiv:1902.03393"

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
        own = super().teachers(around)
        for link in self.chain if own else ():
            assistant = independent_teacher(link, around)
            if link.weights is None:
                above = own if self.dense else own[-1:]
                assistant = replace(
                    assistant,
                    scheme=self._scheme(above),
                    knowledge=self.knowledge,
                    teachers=above,
                )
            own = (*own, assistant)
        return own if self.dense else own[-1:]

    def _scheme(self, above: tuple[TeacherSpec, ...]) -> Scheme:
        """Return the scheme by which larger networks teach an assistant."""
        if len(above) == 1:
            return Offline(task_weight=self.task_weight)
        others = tuple(prepared.as_teacher for prepared in above[1:])
        return MultiTeacher(
            others=others, target="each", drop=self.drop, task_weight=self.task_weight
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
