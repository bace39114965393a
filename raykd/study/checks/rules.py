"""What must hold of a concrete study beyond its types."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from statistics import median
from typing import Any

import torch

from raykd.errors import Problem
from raykd.models import CompressedModel, Model, Task
from raykd.models.introspection.layers import random_inputs
from raykd.models.proxies import Measured, ProxyContext, Ranking
from raykd.schemes import BornAgain, Teacher
from raykd.study.checks.messages import Finding
from raykd.study.config import Search, Study
from raykd.study.costs import latency_findings
from raykd.study.objectives import OBJECTIVES
from raykd.study.open_study import BoundStudy, OpenStudy
from raykd.study.space.domains import near
from raykd.study.space.space import Space
from raykd.study.yaml_file import Place, dotted, parse_place


def models_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, Model]]:
    """Every model in a concrete study, or in a part of it, with its place."""
    if isinstance(value, Model):
        yield place, value
    if dataclasses.is_dataclass(value):
        for held in dataclasses.fields(value):
            yield from models_in(getattr(value, held.name), (*place, held.name))
    elif isinstance(value, tuple):
        for number, held in enumerate(value):
            yield from models_in(held, (*place, number))


def import_findings(study: Study) -> Iterator[Finding]:
    """The models that would have code of their own run."""
    for place, model in models_in(study):
        if model.runs_code:
            message = f"'{model.name}' would run code that is not raykd's"
            fix = "if you trust it, allow it each time: --allow-import (allow_import=True)"
            yield Finding((*place, "name"), message, fix)


def derived_findings(study: Study) -> Iterator[Finding]:
    """The models of which nothing says what they are derived from."""
    for place, model in models_in(study):
        if not isinstance(model, CompressedModel) or model.base is not None:
            continue
        fix = "name the teacher's `model`, or name a model under `base`"
        if place[0] == "teacher":
            why, fix = "it is the teacher itself", "name a model under `base`"
        elif study.teacher is None:
            why = "the study has no teacher"
        else:
            why = "the teacher is given by `weights` alone, which do not tell its architecture"
        message = f"nothing says what '{model.name}' is derived from: `base` is null, and {why}"
        yield Finding((*place, "base"), message, fix)


def check_models(study: Study, task: Task | None) -> Iterator[Problem]:
    """A `Check`: whether the weights that models start from can be had; fetches them."""
    for place, model in models_in(study):
        reason = _lacks(model, task) if task is not None else ""
        if reason:
            yield Problem(reason, path=dotted(place))


@lru_cache(maxsize=256)
def _lacks(model: Model, task: Task) -> str:
    try:
        model.prepare(task)
    except ValueError as error:
        return str(error)
    return ""


PLACE = ("search", "proxy")


def bin_cost(settings: Ranking, objectives: Mapping[str, str]) -> str:
    """The cost that bins the candidates before they are ranked; "" for no bins."""
    if settings.per_cost != "auto":
        return "" if settings.per_cost == "none" else settings.per_cost
    return next((cost for cost in ("params", "macs") if cost in objectives), "")


def number_kept(settings: Ranking, trials: int) -> int:
    """Number of the first trials that come from the ranking."""
    return max(1, trials // 2) if settings.keep is None else min(settings.keep, trials)


def teacher_model(opened: OpenStudy) -> Model | None:
    """The model of the study's teacher; None if there is no teacher, or only its weights."""
    teachers = opened.teachers()
    return teachers[0].model if teachers else None


def screen_findings(search: Search) -> Iterator[Finding]:
    """What is wrong with a screen whose values are all of the right type."""
    how = search.proxy
    if not isinstance(how, Ranking):
        return
    if search.sampler == "grid":
        fix = "remove `screen`, or take another sampler"
        yield Finding(PLACE, "sampler 'grid' tries every point, whatever a screen says", fix)
    if how.keep is not None and how.keep > search.trials:
        message = f"{how.keep} architectures cannot be kept for {search.trials} trials"
        yield Finding((*PLACE, "keep"), message, "lower it, or raise search.trials")
    if how.keep is not None and how.keep > how.candidates:
        message = f"{how.keep} of {how.candidates} candidates cannot be kept"
        yield Finding((*PLACE, "keep"), message, "lower it, or raise `candidates`")
    if how.name == bin_cost(how, search.objectives):
        message = f"'{how.name}' cannot rank students that are compared at equal {how.name}"
        fix = "take naswot, zen or diswot, or write `per_cost: none`"
        if how.per_cost == "auto":
            message += f" (`{how.name}` is an objective)"
        yield Finding(PLACE, message, fix)


def teacher_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with a screen that compares with a teacher."""
    how = study.search.proxy
    if not how.needs_teacher:
        return
    fix = "give `teacher: {model: ...}`, or take naswot, zen, params or macs"
    if study.teacher is None or study.teacher.model is None:
        message = f"'{how.name}' compares students with the teacher's model, which is not given"
        yield Finding(PLACE, message, fix)


def space_findings(space: Space, search: Search) -> Iterator[Finding]:
    """What is wrong with a screen of this space."""
    how = search.proxy
    if not isinstance(how, Ranking):
        return
    if space.dimensions and not space.part("student").dimensions:
        message = "there is one student in this space, so there is nothing to rank"
        fix = "leave something of `student.model` open, or remove `screen`"
        yield Finding(PLACE, message, fix)
    teachers = space.part("teacher").size.combinations
    if how.needs_teacher and teachers > 1:
        message = f"'{how.name}' compares with one teacher; this space has {teachers}"
        yield Finding(PLACE, message, "give the teacher one value, or take naswot, zen or params")


def task_findings(search: Search, task: Task) -> Iterator[Finding]:
    """What is wrong with a screen of networks for such a task."""
    try:
        search.proxy.check(task)
    except ValueError as error:
        yield Finding(PLACE, str(error))


def ranking_summary(bound: BoundStudy, sample: Study | None) -> str:
    """The ranking before the first trial and its duration on this machine; "" if there is none.

    Args:
        bound: the study.
        sample: one of its concrete studies; it is scored to estimate the duration.
    """
    search = bound.open_study.settings.search
    settings = search.proxy
    if not isinstance(settings, Ranking):
        return ""
    cost = bin_cost(settings, search.objectives)
    best = number_kept(settings, search.trials)
    bins = f" in {min(settings.bins, best)} bins of similar {cost}" if cost else ""
    points = bound.space.size.points
    count = settings.candidates if points is None else min(settings.candidates, points)
    text = (
        f"{settings.name}: students of {count} random points are ranked{bins}, the best {best} "
        "are tried first"
    )
    if sample is None:
        return text
    return f"{text}; about {_duration(count * _seconds(bound, settings, sample))}"


def _seconds(bound: BoundStudy, settings: Ranking, sample: Study) -> float:
    """Seconds for one score: the median of three, after one to warm up."""
    cpu, task = torch.device("cpu"), bound.task
    count = settings.batch if isinstance(settings, Measured) else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, targets = random_inputs(task, count, cpu), torch.randint(task.classes, (count,))
    score = settings.scorer(ProxyContext(task, inputs, targets, teacher_model(bound.open_study), 0))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        score(sample.student.model)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1.0, seconds):.0f} s"


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
            message = (
                "test metrics cannot be objectives: the test split is held out for the final "
                "evaluation of the chosen students"
            )
            yield Finding(place, message, "use val_accuracy or val_loss")
        elif name not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            yield Finding(
                place, f"unknown objective; must be one of {known}", near(name, [*OBJECTIVES])
            )
        elif direction != OBJECTIVES[name]:
            goal = "maximized" if OBJECTIVES[name] == "max" else "minimized"
            fix = f"write `{name}: {OBJECTIVES[name]}`"
            yield Finding(place, f"got '{direction}'; {name} must be {goal}", fix)
    yield from latency_findings(search)
    for cost, bounds in search.constraints.items():
        place = ("search", "constraints", cost)
        for problem in bounds.conflicts():
            yield Finding(place, problem.message, problem.fix)
    yield from screen_findings(search)


def _teacher_findings(teacher: Teacher) -> Iterator[Finding]:
    place = ("teacher",)
    if teacher.weights is None:
        if teacher.model is None:
            fix = "give `model` and let the study train it, or give `weights` as well"
            yield Finding(place, "neither `model` nor `weights` is given", fix)
        if teacher.classes is not None:
            message = "`classes` gives the order of the outputs of `weights`, and there are none"
            fix = "remove `classes`: a trained teacher has the order of the data"
            yield Finding((*place, "classes"), message, fix)
        return
    if teacher.train is not None:
        fix = "remove `train`, or remove `weights` and let the study train the teacher"
        yield Finding((*place, "train"), "a teacher loaded from `weights` is not trained", fix)
    if teacher.model is None and not teacher.is_mlflow:
        fix = "give the `model` whose weights the file holds"
        yield Finding(place, "`model` is missing beside `weights`", fix)


def _scheme_findings(study: Study) -> Iterator[Finding]:
    scheme = study.scheme
    asks = scheme.needs_teacher or (isinstance(scheme, BornAgain) and scheme.first == "teacher")
    if asks and study.teacher is None:
        fix = "add `teacher: {model: ...}`, or take `scheme: {name: alone}`"
        yield Finding((), f"`teacher` is missing; scheme '{scheme.name}' needs one", fix)
    if study.knowledge and not scheme.takes_knowledge:
        fix = "remove `knowledge`, or take another scheme"
        yield Finding(("knowledge",), f"scheme '{scheme.name}' takes no knowledge", fix)
    if scheme.needs_teacher and scheme.takes_knowledge and not study.knowledge:
        fix = "add `knowledge: [{loss: {name: kd}}]`, or take `scheme: {name: alone}`"
        message = f"there is no `knowledge` for scheme '{scheme.name}' to transfer"
        yield Finding(("knowledge",), message, fix)


def _term_findings(study: Study) -> Iterator[Finding]:
    for number, term in enumerate(study.knowledge):
        place = ("knowledge", number)
        unknown = study.teacher is not None and study.teacher.model is None
        takes_pairs = term.loss is not None and term.loss.takes_pairs
        if takes_pairs and term.pairs is None and study.scheme.needs_teacher and unknown:
            fix = "name the `pairs`, or the teacher's `model`"
            message = (
                "the layers of a teacher given by `weights` alone are known only when it is loaded"
            )
            yield Finding(place, message, fix)
        for problem in term.conflicts():
            yield Finding((*place, *parse_place(problem.path)), problem.message, problem.fix)
