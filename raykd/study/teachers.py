"""The networks that must be ready before a concrete study can be trained."""

from __future__ import annotations

from collections.abc import Iterator

from raykd.schemes import Circumstances, Preparation
from raykd.schemes.scheme import origin_of
from raykd.study.schema import Study


def teachers_of(study: Study, seed: int | None = None) -> tuple[Preparation, ...]:
    """Those that teach under the study's scheme, in the scheme's order; () where none do.

    Args:
        study: concrete.
        seed: of the networks that many trials share; None: the study's own.
    """
    return study.scheme.teachers(circumstances(study, seed))


def needed_by(study: Study, seed: int | None = None) -> tuple[Preparation, ...]:
    """All networks that must be ready to train a concrete study; the arguments as `teachers_of`.

    Its teachers in the scheme's order, then the trained network that its student inherits from,
    where it does (even if that one teaches, too).
    """
    origin = origin_of(study.student.model, circumstances(study, seed))
    return teachers_of(study, seed) + (() if origin is None else (origin,))


def circumstances(study: Study, seed: int | None = None) -> Circumstances:
    """What a scheme may choose its teachers by; the arguments as those of `teachers_of`."""
    return Circumstances(
        teacher=study.teacher,
        student=study.student.model,
        train=study.train,
        knowledge=study.knowledge,
        seed=study.seed if seed is None else seed,
        trial_seed=study.seed,
        augment=study.data.augment,
    )


def everyone_behind(prepared: tuple[Preparation, ...]) -> Iterator[Preparation]:
    """These and all that taught them, each once, teachers before those they teach."""
    seen: set[Preparation] = set()

    def walk(one: Preparation) -> Iterator[Preparation]:
        if one not in seen:
            seen.add(one)
            for teacher in one.needs:
                yield from walk(teacher)
            yield one

    for one in prepared:
        yield from walk(one)
