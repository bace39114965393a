"""The networks that must be ready before a concrete study can be trained."""

from __future__ import annotations

from collections.abc import Iterator

from raykd.schemes import TeacherContext, TeacherSpec
from raykd.schemes.base import origin_of
from raykd.study.config import Study


def teachers_of(study: Study, seed: int | None = None) -> tuple[TeacherSpec, ...]:
    """Those that teach under the study's scheme, in the scheme's order; () where none do.

    Args:
        study: concrete.
        seed: of the networks that many trials share; None: the study's own.
    """
    return study.scheme.teachers(teacher_context(study, seed))


def required_networks(study: Study, seed: int | None = None) -> tuple[TeacherSpec, ...]:
    """All networks that must be ready to train a concrete study; the arguments as `teachers_of`.

    Its teachers in the scheme's order, then the trained network that its student inherits from,
    where it does (even if that one teaches, too).
    """
    origin = origin_of(study.student.model, teacher_context(study, seed))
    return teachers_of(study, seed) + (() if origin is None else (origin,))


def teacher_context(study: Study, seed: int | None = None) -> TeacherContext:
    """What a scheme may choose its teachers by; the arguments as those of `teachers_of`."""
    return TeacherContext(
        teacher=study.teacher,
        student=study.student.model,
        train=study.train,
        knowledge=study.knowledge,
        seed=study.seed if seed is None else seed,
        trial_seed=study.seed,
        augment=study.data.augment,
    )


def teacher_chain(prepared: tuple[TeacherSpec, ...]) -> Iterator[TeacherSpec]:
    """These and all that taught them, each once, teachers before those they teach."""
    seen: set[TeacherSpec] = set()

    def walk(one: TeacherSpec) -> Iterator[TeacherSpec]:
        if one not in seen:
            seen.add(one)
            for teacher in one.needs:
                yield from walk(teacher)
            yield one

    for one in prepared:
        yield from walk(one)
