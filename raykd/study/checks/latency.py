"""Checks of measured costs before anything starts: this machine can measure them, and a student
can meet their bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from raykd.errors import Infeasible, Problem, StudyError
from raykd.study.candidate import Candidate
from raykd.study.config import Bounds
from raykd.study.costs import (
    StudentCosts,
    check_conditions,
    format_cost,
    measured_costs,
    path_of_cost,
    violation,
)
from raykd.study.objectives import Cost
from raykd.study.open_study import BoundStudy
from raykd.study.space.sampling import Seeded

RANDOM_POINTS = 32
"""Random points, in addition to the corners of the space, from which students are picked."""

MEASURED_FIRST = 4
"""Number of students measured to check a bound: those with the fewest multiply-accumulates, and as
many with the fewest layers (for a lower bound: the most)."""


def check_measured(bound: BoundStudy, costs: StudentCosts) -> None:
    """Check that this machine can measure the costs, and that a student keeps their bounds.

    Does nothing if the study asks for no measured cost.

    Args:
        bound: the study, otherwise checked.
        costs: measures, and remembers what it measured.

    Raises:
        StudyError: a device or a package is missing, no student can be measured, or none of the
            students that should be fastest is fast enough.
    """
    search = bound.open_study.settings.search
    if not measured_costs(search):
        return
    check_conditions(search)
    students = list(_students(bound))
    if not students:
        return  # the search reports why
    _check_measurable(students, costs)
    for cost in measured_costs(search):
        if cost in search.constraints:
            _check_bounds(cost, search.constraints[cost], students, costs)


def _students(bound: BoundStudy) -> Iterator[Candidate]:
    """Candidates with different students that keep all bounds on costs that are not measured."""
    students = set()
    for candidate in _feasible(bound):
        student = candidate.study.student
        if student not in students:
            students.add(student)
            yield candidate


def _feasible(bound: BoundStudy) -> Iterator[Candidate]:
    for point in bound.space.corners():
        with suppress(Infeasible):
            yield bound.fit(point)
    for seed in range(RANDOM_POINTS):
        with suppress(Infeasible):
            yield bound.draw(Seeded(seed))


def _check_measurable(students: list[Candidate], costs: StudentCosts) -> None:
    lightest = sorted(students, key=_macs)[:MEASURED_FIRST]
    reasons: dict[Cost, str] = {}
    for student in lightest:
        reasons = costs.reasons(student)
        if not reasons:
            return
    cost, reason = next(iter(reasons.items()))
    raise StudyError(
        Problem(
            f"{cost} cannot be measured for any of {len(lightest)} student(s): {reason}",
            path=path_of_cost(students[0].study.search, [cost]),
            fix="use other students or another cost",
        )
    )


def _check_bounds(
    cost: Cost, bounds: Bounds, students: list[Candidate], costs: StudentCosts
) -> None:
    """Check that one of the students most likely to keep the bounds does."""
    values: list[float] = []
    for student in _likely(students, most=bounds.max is None):
        value = costs.of(student).get(cost)
        if value is None:
            continue
        if not violation(cost, value, bounds):
            return
        values.append(value)
    if bounds.max is not None and min(values) > bounds.max:
        message = (
            f"no measured student has {cost} <= {format_cost(cost, bounds.max)} ms; the fastest"
        )
        message += f" of {len(values)} takes {format_cost(cost, min(values))} ms"
        fix = "raise the bound, or open the space to smaller students"
    elif bounds.min is not None and max(values) < bounds.min:
        message = (
            f"no measured student has {cost} >= {format_cost(cost, bounds.min)} ms; the slowest"
        )
        message += f" of {len(values)} takes {format_cost(cost, max(values))} ms"
        fix = "lower the bound, or open the space to larger students"
    else:
        return  # some are below and some above the bounds, so others may be within
    raise StudyError(Problem(message, path=f"search.constraints.{cost}", fix=fix))


def _likely(students: list[Candidate], *, most: bool) -> list[Candidate]:
    """Return the students with the fewest or most multiply-accumulates, then by layers."""
    by_macs = sorted(students, key=_macs, reverse=most)[:MEASURED_FIRST]
    by_layers = sorted(students, key=_layers, reverse=most)[:MEASURED_FIRST]
    return list(dict.fromkeys([*by_macs, *by_layers]))


def _macs(candidate: Candidate) -> int:
    return candidate.student.macs


def _layers(candidate: Candidate) -> int:
    return sum(not layer.overwritten for layer in candidate.student.ordered_layers)
