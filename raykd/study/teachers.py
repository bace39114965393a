"""The networks that must exist before a concrete study can be trained."""

from __future__ import annotations

from collections.abc import Iterator

from raykd.schemes import TeacherContext, TeacherSpec
from raykd.schemes.base import origin_of
from raykd.study.config import Study


def teachers_of(study: Study, seed: int | None = None) -> tuple[TeacherSpec, ...]:
    """The networks that teach under the study's scheme, in the order of the scheme.

    Args:
        study: concrete.
        seed: random seed of the networks that trials share; None: that of the study.
    """
    return study.scheme.teachers(teacher_context(study, seed))


def required_networks(study: Study, seed: int | None = None) -> tuple[TeacherSpec, ...]:
    """All networks that must exist to train a concrete study; arguments as for `teachers_of`.

    They are its teachers in the order of the scheme, then the trained network that its student
    inherits weights from, if it does (even if that network is one of the teachers).
    """
    origin = origin_of(study.student.model, teacher_context(study, seed))
    return teachers_of(study, seed) + (() if origin is None else (origin,))


def teacher_context(study: Study, seed: int | None = None) -> TeacherContext:
    """The facts by which a scheme selects its teachers; arguments as for `teachers_of`."""
    return TeacherContext(
        teacher=study.teacher,
        student=study.student.model,
        train=study.train,
        knowledge=study.knowledge,
        seed=study.seed if seed is None else seed,
        trial_seed=study.seed,
        augment=study.data.augment,
    )


def teacher_chain(networks: tuple[TeacherSpec, ...]) -> Iterator[TeacherSpec]:
    """Yield these networks and all their teachers, each once, teachers before their students."""
    visited: set[TeacherSpec] = set()

    def walk(network: TeacherSpec) -> Iterator[TeacherSpec]:
        if network not in visited:
            visited.add(network)
            for teacher in network.needs:
                yield from walk(teacher)
            yield network

    for network in networks:
        yield from walk(network)
