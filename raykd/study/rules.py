"""What must hold of a concrete study beyond its types."""

from __future__ import annotations

from collections.abc import Iterator

from raykd.schemes import BornAgain, Teacher
from raykd.study.complaints import Finding
from raykd.study.costs import latency_findings
from raykd.study.domains import near
from raykd.study.models import derived_findings
from raykd.study.objectives import OBJECTIVES
from raykd.study.place import parse_place
from raykd.study.schema import Search, Study
from raykd.study.screens import screen_findings, teacher_findings


def study_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with a study whose values are all of the right type."""
    yield from search_findings(study.search)
    if study.teacher is not None:
        yield from _teacher_findings(study.teacher)
    yield from _scheme_findings(study)
    yield from derived_findings(study)
    yield from teacher_findings(study)
    yield from _term_findings(study)


def search_findings(search: Search) -> Iterator[Finding]:
    for name, direction in search.objectives.items():
        place = ("search", "objectives", name)
        if name.startswith("test_"):
            what = (
                "test metrics cannot be objectives: the test split is held out for the final "
                "evaluation of the chosen students"
            )
            yield Finding(place, what, "use val_accuracy or val_loss")
        elif name not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            yield Finding(
                place, f"unknown objective; must be one of {known}", near(name, [*OBJECTIVES])
            )
        elif direction != OBJECTIVES[name]:
            goal = "maximized" if OBJECTIVES[name] == "max" else "minimized"
            mend = f"write `{name}: {OBJECTIVES[name]}`"
            yield Finding(place, f"got '{direction}'; {name} must be {goal}", mend)
    yield from latency_findings(search)
    for cost, bounds in search.constraints.items():
        place = ("search", "constraints", cost)
        for problem in bounds.conflicts():
            yield Finding(place, problem.what, problem.mend)
    yield from screen_findings(search)


def _teacher_findings(teacher: Teacher) -> Iterator[Finding]:
    place = ("teacher",)
    if teacher.weights is None:
        if teacher.model is None:
            mend = "give `model` and let the study train it, or give `weights` as well"
            yield Finding(place, "neither `model` nor `weights` is given", mend)
        if teacher.classes is not None:
            what = "`classes` gives the order of the outputs of `weights`, and there are none"
            mend = "remove `classes`: a trained teacher has the order of the data"
            yield Finding((*place, "classes"), what, mend)
        return
    if teacher.train is not None:
        mend = "remove `train`, or remove `weights` and let the study train the teacher"
        yield Finding((*place, "train"), "a teacher loaded from `weights` is not trained", mend)
    if teacher.model is None and not teacher.is_mlflow:
        mend = "give the `model` whose weights the file holds"
        yield Finding(place, "`model` is missing beside `weights`", mend)


def _scheme_findings(study: Study) -> Iterator[Finding]:
    scheme = study.scheme
    asks = scheme.needs_teacher or (isinstance(scheme, BornAgain) and scheme.first == "teacher")
    if asks and study.teacher is None:
        mend = "add `teacher: {model: ...}`, or take `scheme: {name: alone}`"
        yield Finding((), f"`teacher` is missing; scheme '{scheme.name}' needs one", mend)
    if study.knowledge and not scheme.takes_knowledge:
        mend = "remove `knowledge`, or take another scheme"
        yield Finding(("knowledge",), f"scheme '{scheme.name}' takes no knowledge", mend)
    if scheme.needs_teacher and scheme.takes_knowledge and not study.knowledge:
        mend = "add `knowledge: [{loss: {name: kd}}]`, or take `scheme: {name: alone}`"
        what = f"there is no `knowledge` for scheme '{scheme.name}' to transfer"
        yield Finding(("knowledge",), what, mend)


def _term_findings(study: Study) -> Iterator[Finding]:
    for number, term in enumerate(study.knowledge):
        place = ("knowledge", number)
        unknown = study.teacher is not None and study.teacher.model is None
        takes_pairs = term.loss is not None and term.loss.takes_pairs
        if takes_pairs and term.pairs is None and study.scheme.needs_teacher and unknown:
            mend = "name the `pairs`, or the teacher's `model`"
            what = (
                "the layers of a teacher given by `weights` alone are known only when it is loaded"
            )
            yield Finding(place, what, mend)
        for problem in term.conflicts():
            yield Finding((*place, *parse_place(problem.path)), problem.what, problem.mend)
