"""What is deployed of a concrete study: the student, or a network made of it and its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch

from raykd.architecture import Anatomy, Model, Task, dissect
from raykd.architecture.macs import Unfilled
from raykd.knowledge import Loss, LossContext, Pair, Term
from raykd.knowledge.evidence import Shape
from raykd.problems import Infeasible
from raykd.schemes.reuse import Reusing
from raykd.study.pairing import PairError
from raykd.study.schema import Study
from raykd.study.teachers import everyone_behind, teachers_of


def deployed(study: Study, student: Anatomy, task: Task) -> Anatomy:
    """`student` with the parameters and multiply-accumulates of the network that is kept.

    These are the student's own, unless a loss of the study deploys it with its teacher's
    classifier (`Loss.deploys`).

    Args:
        study: concrete, its pairs resolved.
        student: what its model is made of.
        task: what the models take and give.

    Raises:
        Infeasible: the scheme does not go with such a loss.
        PairError: the teacher cannot be cut where the pair says, or another term looks at a layer
            of the student that is left out.
    """
    _check_assistants(study)
    found = list(_deploying(study.knowledge)) if study.scheme.takes_knowledge else []
    if not found:
        return student
    number, loss, pairs = found[0]
    if len(found) > 1:
        raise PairError(
            ("knowledge", found[1][0]),
            f"loss '{loss.name}' replaces the student's classifier and stands here twice; keep one",
        )
    if not study.scheme.lends_classifier:
        raise Infeasible(
            f"loss '{loss.name}' gives the student the classifier of the one teacher it has, which "
            f"scheme '{study.scheme.name}' does not lend as it is set; take `scheme: {{name: "
            "offline}`, or another loss"
        )
    (teacher,) = teachers_of(study)
    if teacher.model is None:
        raise PairError(
            ("knowledge", number),
            f"loss '{loss.name}' deploys a part of the teacher, whose size is known only when its "
            "`model` is; name it under `teacher`",
        )
    (pair,) = pairs
    others = tuple(
        other.guided for term in study.knowledge if term.active for other in term.pairs or ()
    )
    try:
        whole = _anatomy(study.student.model, teacher.model, loss, pair, others, task)
    except ValueError as error:
        raise PairError(("knowledge", number, "pairs"), str(error)) from None
    return replace(student, params=whole.params, macs=whole.macs)


def _deploying(terms: tuple[Term, ...]) -> Iterator[tuple[int, Loss, tuple[Pair, ...]]]:
    for number, term in enumerate(terms):
        if term.active and term.loss is not None and term.loss.deploys:
            yield number, term.loss, term.pairs or ()


def _check_assistants(study: Study) -> None:
    """A network that teaches is kept as the weights of its own model."""
    for prepared in everyone_behind(teachers_of(study)):
        for _, loss, _ in _deploying(prepared.knowledge):
            raise Infeasible(
                f"loss '{loss.name}' replaces the classifier of whom it teaches, and those who "
                "teach others are kept as their model's weights alone; take another loss for them"
            )


@lru_cache(maxsize=1024)
def _anatomy(
    student: Model, teacher: Model, loss: Loss, pair: Pair, others: tuple[str, ...], task: Task
) -> Anatomy:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), Unfilled():
        ours, theirs = student.build(task), teacher.build(task)
        context = LossContext(
            pairs=(pair,),
            guided_shapes=(_shape(dissect(ours, task), pair.guided),),
            hint_shapes=(_shape(dissect(theirs, task), pair.hint),),
            classes=task.classes,
            train_size=1,
            data_size=1,
        )
        projector = loss.build(context).give_projector(signed=False)
        whole = Reusing(ours, theirs, pair, projector, task)
        whole.check_left(others)
    return dissect(whole, task)


def _shape(anatomy: Anatomy, name: str) -> Shape:
    return anatomy.resolve([name])[0].shape
