"""Layer pairs: which hint layer teaches which guided layer, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from raykd.architecture import Anatomy
from raykd.knowledge import Loss, LossContext, Pair, Term
from raykd.knowledge.evidence import Shape
from raykd.study.place import Place, dotted
from raykd.study.schema import Study


class PairError(ValueError):
    """Layers that are not there, or that no connector bridges; `place` says where in the study."""

    def __init__(self, place: Place, what: str) -> None:
        super().__init__(f"{dotted(place)}: {what}")
        self.place = place
        self.what = what


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
        _shape(student, pair.guided, "student", (*place, "pairs", number, "guided"))
        for number, pair in enumerate(pairs)
    ]
    if teacher is None:
        return term
    hint = [
        _shape(teacher, pair.hint, "teacher", (*place, "pairs", number, "hint"))
        for number, pair in enumerate(pairs)
    ]
    unfit = _dry_run(loss, tuple(pairs), tuple(guided), tuple(hint), classes)
    if unfit:
        raise PairError(place if term.pairs is None else (*place, "pairs"), unfit)
    return replace(term, pairs=tuple(pairs))


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


def _shape(anatomy: Anatomy, name: str, who: str, place: Place) -> Shape:
    try:
        return tuple(anatomy.resolve([name])[0].shape)
    except ValueError as error:
        raise PairError(place, f"{who}: {error}") from None


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
