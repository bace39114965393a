"""Layer pairs: which hint layer teaches which guided layer, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from raykd.architecture import Anatomy
from raykd.knowledge import Loss, LossContext, Pair, Term
from raykd.knowledge.shapes import Shape
from raykd.study.place import Place, dotted
from raykd.study.schema import Study


class PairError(ValueError):
    """Layers that are not there, or that no connector bridges; `place` says where in the study."""

    def __init__(self, place: Place, what: str, mend: str = "") -> None:
        super().__init__(f"{dotted(place)}: {what}")
        self.place = place
        self.what = what
        self.mend = mend


def stages_of(anatomy: Anatomy) -> tuple[str, ...]:
    """A model's stage aliases, shallow to deep."""
    stages = []
    while (name := f"stage{len(stages) + 1}") in anatomy.aliases:
        stages.append(name)
    return tuple(stages)


def resolve_pairs(
    study: Study,
    student: Anatomy,
    teachers: Sequence[Anatomy | None] = (),
    classes: int = 10,
) -> Study:
    """`study` with the pairs of each term that takes some written out and checked.

    Pairs left null become the loss's own default, unless several teachers each have their own.
    Each loss is made ready once for the shapes it would meet, without memory for its weights.

    Args:
        study: a concrete study.
        student: what its model is made of.
        teachers: the same of those who teach under its scheme; None: nothing is known of one.
            Where there is none, the student's own layers are the hint layers, if the scheme needs
            no teacher.
        classes: of the data.

    Raises:
        PairError: a ValueError; a layer that is not there (with what comes near), or a pair that
            cannot be bridged (with both layers and both shapes), and the place in the study.
    """
    hints = list(teachers) or [None if study.scheme.needs_teacher else student]
    resolved = [
        tuple(
            _resolved(term, student, hint, classes, ("knowledge", number))
            for number, term in enumerate(study.knowledge)
        )
        for hint in hints
    ]
    return study if len(hints) > 1 else replace(study, knowledge=resolved[0])


def _resolved(
    term: Term, student: Anatomy, teacher: Anatomy | None, classes: int, place: Place
) -> Term:
    loss = term.loss
    if loss is None or not term.active or not loss.takes_pairs:
        return term
    pairs = term.pairs
    if pairs is None:
        if teacher is None:
            return term
        pairs = _default_pairs(loss, student, teacher, place)
    guided = [
        _shape(student, teacher, pair.guided, "guided", (*place, "pairs", number, "guided"))
        for number, pair in enumerate(pairs)
    ]
    if teacher is None:
        return term
    hint = [
        _shape(teacher, student, pair.hint, "hint", (*place, "pairs", number, "hint"))
        for number, pair in enumerate(pairs)
    ]
    resolved = replace(term, pairs=tuple(pairs))
    shapes = {(p.hint, p.guided): (g, h) for p, g, h in zip(pairs, guided, hint, strict=True)}
    for part in resolved.parts:
        unfit = _unfit(part, shapes, classes)
        if unfit:
            raise PairError(place if term.pairs is None else (*place, "pairs"), unfit)
    return resolved


def _unfit(term: Term, shapes: Mapping[tuple[str, str], tuple[Shape, Shape]], classes: int) -> str:
    """Why a term's loss cannot be made ready for its pairs; empty where it can."""
    assert term.loss is not None
    pairs = term.pairs or ()
    guided, hint = (
        tuple(shapes[pair.hint, pair.guided][side] for pair in pairs) for side in (0, 1)
    )
    return _dry_run(term.loss, pairs, guided, hint, classes)


def why_not(loss: Loss, pair: Pair, guided: Shape, hint: Shape, classes: int) -> str:
    """Why a loss cannot compare two layers of these shapes; empty where it can."""
    count = loss.least_pairs
    anonymous = (Pair(hint="hint", guided="guided"),) * count
    if not _dry_run(loss, anonymous, (guided,) * count, (hint,) * count, classes):
        return ""
    return _dry_run(loss, (pair,) * count, (guided,) * count, (hint,) * count, classes)


def _default_pairs(loss: Loss, student: Anatomy, teacher: Anatomy, place: Place) -> Sequence[Pair]:
    if loss.default_pairs == "none":
        return ()
    if loss.default_pairs == "embedding":
        return (Pair(hint="embedding", guided="embedding"),)
    hints, guided = stages_of(teacher), stages_of(student)
    for stages, who in ((hints, "teacher"), (guided, "student")):
        if not stages:
            what = f"no stages were found in the {who} for {loss.name} to pair; name the `pairs`"
            raise PairError(place, what)
    depth = 1 if loss.default_pairs == "last" else min(len(hints), len(guided))
    return [
        Pair(hint=hint, guided=guided)
        for hint, guided in zip(hints[-depth:], guided[-depth:], strict=True)
    ]


def _shape(anatomy: Anatomy, other: Anatomy | None, name: str, side: str, place: Place) -> Shape:
    try:
        return tuple(anatomy.resolve([name])[0].shape)
    except ValueError as error:
        who = "student" if side == "guided" else "teacher"
        mend = of_the_other(side) if other is not None and name in other.layers else ""
        raise PairError(place, f"{who}: {error}", mend) from None


def of_the_other(side: str) -> str:
    """How to mend a layer that is not there, but in the network of the other side."""
    other = "teacher" if side == "guided" else "student"
    return f"the {other} has such a layer: `hint` names the teacher's, `guided` the student's"


@lru_cache(maxsize=4096)
def _dry_run(
    loss: Loss,
    pairs: tuple[Pair, ...],
    guided: tuple[Shape, ...],
    hint: tuple[Shape, ...],
    classes: int,
) -> str:
    """Why the loss cannot be made ready for these layers; empty where it can."""
    context = LossContext(
        pairs=pairs,
        guided_shapes=guided,
        hint_shapes=hint,
        classes=classes,
        train_size=2,
        data_size=2,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    loss.build(context)
            except RuntimeError:  # something in it needs real memory
                loss.build(context)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""
