"""Whether what a study wants measured can be measured here, and be met; before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from raykd.architecture import Anatomy, Task, anatomy
from raykd.problems import Infeasible, Problem, StudyError
from raykd.study.costs import Costs, breaks, check_conditions, figure, measured, who_asks
from raykd.study.opened import OpenStudy
from raykd.study.schema import Bounds, Cost, Study
from raykd.study.suggest import Seeded

LOOKED_AT = 32
"""Points drawn at random, beside the space's corners, of which a few students are measured."""

MEASURED_FIRST = 4
"""Students measured to see whether one keeps a bound: those with the fewest multiply-accumulates,
and those with the fewest layers (for a lower bound: the most)."""


def check_measured(
    opened: OpenStudy, task: Task, costs: Costs, teacher: Anatomy | None = None
) -> None:
    """See that measured costs can be had on this machine, and that a student keeps their bounds.

    Does nothing where the study asks for none.

    Args:
        opened: the study, checked otherwise.
        task: what the models take and give.
        costs: measures; what is measured here need not be measured again.
        teacher: its layers, where the study does not say its model.

    Raises:
        StudyError: a device or a package is missing, no student can be measured, or none of those
            that should be the quickest is quick enough.
    """
    search = opened.settings.search
    if not measured(search):
        return
    check_conditions(search)
    students = list(_students(opened, task, teacher))
    if not students:
        return  # the search will say why there is none
    _check_measurable(students, costs, task)
    for cost in measured(search):
        if cost in search.constraints:
            _check_bounds(cost, search.constraints[cost], students, costs, task)


def _students(opened: OpenStudy, task: Task, teacher: Anatomy | None) -> Iterator[Study]:
    """Concrete studies with different students, that keep all bounds that need no measurement."""
    space = opened.space_for(task, teacher)
    seen = set()
    points = [*space.corners(), *(space.draw(Seeded(seed)) for seed in range(LOOKED_AT))]
    for point in points:
        try:
            study = opened.fitted(point, task, teacher)
        except Infeasible:
            continue
        if study.student.model not in seen:
            seen.add(study.student.model)
            yield study


def _check_measurable(students: list[Study], costs: Costs, task: Task) -> None:
    lightest = sorted(students, key=lambda study: _macs(study, task))[:MEASURED_FIRST]
    reasons: dict[Cost, str] = {}
    for study in lightest:
        reasons = costs.reasons(study)
        if not reasons:
            return
    cost, reason = next(iter(reasons.items()))
    search = students[0].search
    raise StudyError(
        Problem(
            f"{cost} cannot be measured of the {len(lightest)} student(s) looked at: {reason}",
            path=who_asks(search, [cost]),
            mend="take other students, or another cost",
        )
    )


def _check_bounds(
    cost: Cost, bounds: Bounds, students: list[Study], costs: Costs, task: Task
) -> None:
    """See that one of the students that should keep the bounds does."""
    found: list[float] = []
    for study in _likely(students, task, most=bounds.max is None):
        value = costs.of(study).get(cost)
        if value is None:
            continue
        if not breaks(cost, value, bounds):
            return
        found.append(value)
    if bounds.max is not None and min(found) > bounds.max:
        what = f"no student measured has {cost} <= {figure(cost, bounds.max)} ms; the quickest of"
        what += f" {len(found)} takes {figure(cost, min(found))} ms"
        mend = "raise it, or open the space to smaller students"
    elif bounds.min is not None and max(found) < bounds.min:
        what = f"no student measured has {cost} >= {figure(cost, bounds.min)} ms; the slowest of"
        what += f" {len(found)} takes {figure(cost, max(found))} ms"
        mend = "lower it, or open the space to larger students"
    else:
        return  # some lie below and some above: others may lie between
    raise StudyError(Problem(what, path=f"search.constraints.{cost}", mend=mend))


def _likely(students: list[Study], task: Task, *, most: bool) -> list[Study]:
    """Those with the fewest (or most) multiply-accumulates, then those with the fewest layers."""
    by_macs = sorted(students, key=lambda study: _macs(study, task), reverse=most)
    by_layers = sorted(students, key=lambda study: _layers(study, task), reverse=most)
    chosen = [*by_macs[:MEASURED_FIRST], *by_layers[:MEASURED_FIRST]]
    return [study for i, study in enumerate(chosen) if study not in chosen[:i]]


def _macs(study: Study, task: Task) -> int:
    return anatomy(study.student.model, task).macs


def _layers(study: Study, task: Task) -> int:
    return sum(not one.overwritten for one in anatomy(study.student.model, task).found)
