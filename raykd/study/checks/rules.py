"""Rules of a concrete study beyond the types of its values."""

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
from raykd.models.proxies import NetworkProxy, ProxyContext, RankingProxy
from raykd.schemes import BornAgain, Teacher
from raykd.study.checks.messages import Issue
from raykd.study.config import Search, Study
from raykd.study.costs import latency_issues
from raykd.study.objectives import OBJECTIVES
from raykd.study.open_study import BoundStudy, OpenStudy
from raykd.study.space.domains import near
from raykd.study.space.space import Space
from raykd.study.yaml_file import Place, dotted, parse_place


def models_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, Model]]:
    """Yield every model in a concrete study, or in a part of it, with its place."""
    if isinstance(value, Model):
        yield place, value
    if dataclasses.is_dataclass(value):
        for child in dataclasses.fields(value):
            yield from models_in(getattr(value, child.name), (*place, child.name))
    elif isinstance(value, tuple):
        for number, child in enumerate(value):
            yield from models_in(child, (*place, number))


def import_issues(study: Study) -> Iterator[Issue]:
    """Yield an issue for each model that runs custom code."""
    for place, model in models_in(study):
        if model.runs_code:
            message = f"'{model.name}' would run code from outside raykd"
            fix = "if you trust it, allow it in each command: --allow-import (allow_import=True)"
            yield Issue((*place, "name"), message, fix)


def derived_issues(study: Study) -> Iterator[Issue]:
    """Yield an issue for each compressed model without a base model."""
    for place, model in models_in(study):
        if not isinstance(model, CompressedModel) or model.base is not None:
            continue
        fix = "name the teacher's `model`, or name a model under `base`"
        if place[0] == "teacher":
            reason, fix = "it is the teacher itself", "name a model under `base`"
        elif study.teacher is None:
            reason = "the study has no teacher"
        else:
            reason = "the teacher is given by `weights` alone, without a `model`"
        message = f"nothing says what '{model.name}' is derived from: `base` is null, and {reason}"
        yield Issue((*place, "base"), message, fix)


def check_models(study: Study, task: Task | None) -> Iterator[Problem]:
    """Check that the initial weights of models are available, and download them (a `Check`)."""
    for place, model in models_in(study):
        reason = _missing_weights(model, task) if task is not None else ""
        if reason:
            yield Problem(reason, path=dotted(place))


@lru_cache(maxsize=256)
def _missing_weights(model: Model, task: Task) -> str:
    try:
        model.prepare(task)
    except ValueError as error:
        return str(error)
    return ""


PLACE = ("search", "proxy")


def bin_cost(settings: RankingProxy, objectives: Mapping[str, str]) -> str:
    """The cost that bins the candidates before they are ranked; "" for no bins."""
    if settings.per_cost != "auto":
        return "" if settings.per_cost == "none" else settings.per_cost
    return next((cost for cost in ("params", "macs") if cost in objectives), "")


def number_kept(settings: RankingProxy, trials: int) -> int:
    """Number of the first trials that come from the ranking."""
    return max(1, trials // 2) if settings.keep is None else min(settings.keep, trials)


def teacher_model(opened: OpenStudy) -> Model | None:
    """The model of the study's teacher; None if there is no teacher, or only its weights."""
    teachers = opened.teachers()
    return teachers[0].model if teachers else None


def proxy_issues(search: Search) -> Iterator[Issue]:
    """Yield the issues of a proxy whose values have the right types."""
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
        return
    if search.sampler.needs_finite_space:
        fix = "remove `proxy`, or use another sampler"
        message = f"sampler '{search.sampler.name}' tries every point, so a ranking has no effect"
        yield Issue(PLACE, message, fix)
    if settings.keep is not None and settings.keep > search.trials:
        message = f"cannot keep {settings.keep} architectures for {search.trials} trials"
        yield Issue((*PLACE, "keep"), message, "lower it, or raise search.trials")
    if settings.keep is not None and settings.keep > settings.candidates:
        message = f"cannot keep {settings.keep} of {settings.candidates} candidates"
        yield Issue((*PLACE, "keep"), message, "lower it, or raise `candidates`")
    if settings.name == bin_cost(settings, search.objectives):
        message = (
            f"'{settings.name}' cannot rank students that are compared at equal {settings.name}"
        )
        fix = "use naswot, zen or diswot, or write `per_cost: none`"
        if settings.per_cost == "auto":
            message += f" (`{settings.name}` is an objective)"
        yield Issue(PLACE, message, fix)


def proxy_teacher_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of a proxy that compares students with the teacher."""
    settings = study.search.proxy
    if not settings.needs_teacher:
        return
    fix = "give `teacher: {model: ...}`, or use naswot, zen, params or macs"
    if study.teacher is None or study.teacher.model is None:
        message = f"'{settings.name}' compares students with the teacher's model, which is missing"
        yield Issue(PLACE, message, fix)


def proxy_space_issues(space: Space, search: Search) -> Iterator[Issue]:
    """Yield the issues of a proxy in this space."""
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
        return
    if space.dimensions and not space.part("student").dimensions:
        message = "this space has a single student, so there is nothing to rank"
        fix = "leave a value of `student.model` open, or remove `proxy`"
        yield Issue(PLACE, message, fix)
    teachers = space.part("teacher").size.combinations
    if settings.needs_teacher and teachers > 1:
        message = f"'{settings.name}' compares students with one teacher; this space has {teachers}"
        yield Issue(PLACE, message, "give the teacher one value, or use naswot, zen or params")


def proxy_task_issues(search: Search, task: Task) -> Iterator[Issue]:
    """Yield the issues of a proxy for this task."""
    try:
        search.proxy.check(task)
    except ValueError as error:
        yield Issue(PLACE, str(error))


def ranking_summary(bound: BoundStudy, sample: Study | None) -> str:
    """The ranking before the first trial and its duration on this machine; "" if there is none.

    Args:
        bound: the study.
        sample: one of its concrete studies; it is scored to estimate the duration.
    """
    search = bound.open_study.settings.search
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
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


def _seconds(bound: BoundStudy, settings: RankingProxy, sample: Study) -> float:
    """Seconds for one score: the median of three, after one to warm up."""
    cpu, task = torch.device("cpu"), bound.task
    count = settings.batch if isinstance(settings, NetworkProxy) else 2
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


def study_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of a study whose values have the right types."""
    yield from search_issues(study.search)
    if study.teacher is not None:
        yield from _teacher_part_issues(study.teacher)
    yield from _scheme_issues(study)
    yield from derived_issues(study)
    yield from proxy_teacher_issues(study)
    yield from _term_issues(study)


def search_issues(search: Search) -> Iterator[Issue]:
    """Yield the issues of the `search` part."""
    for name, direction in search.objectives.items():
        place = ("search", "objectives", name)
        if name.startswith("test_"):
            message = (
                "test metrics cannot be objectives: the test split is held out for the final "
                "evaluation of the finalists"
            )
            yield Issue(place, message, "use val_accuracy or val_loss")
        elif name not in OBJECTIVES:
            names = ", ".join(OBJECTIVES)
            yield Issue(
                place, f"unknown objective; must be one of {names}", near(name, [*OBJECTIVES])
            )
        elif direction != OBJECTIVES[name]:
            goal = "maximized" if OBJECTIVES[name] == "max" else "minimized"
            fix = f"write `{name}: {OBJECTIVES[name]}`"
            yield Issue(place, f"got '{direction}'; {name} must be {goal}", fix)
    yield from latency_issues(search)
    for cost, bounds in search.constraints.items():
        place = ("search", "constraints", cost)
        for problem in bounds.conflicts():
            yield Issue(place, problem.message, problem.fix)
    yield from proxy_issues(search)


def _teacher_part_issues(teacher: Teacher) -> Iterator[Issue]:
    place = ("teacher",)
    if teacher.weights is None:
        if teacher.model is None:
            fix = "give a `model` for the study to train, or `weights`"
            yield Issue(place, "`model` and `weights` are missing", fix)
        if teacher.classes is not None:
            message = "`classes` is the order of the outputs of `weights`, which are not given"
            fix = "remove `classes`: a trained teacher has the order of the data"
            yield Issue((*place, "classes"), message, fix)
        return
    if teacher.train is not None:
        fix = "remove `train`, or remove `weights` and let the study train the teacher"
        yield Issue((*place, "train"), "a teacher loaded from `weights` is not trained", fix)
    if teacher.model is None and not teacher.is_mlflow:
        fix = "give the `model` that the weights belong to"
        yield Issue(place, "`weights` without `model`", fix)


def _scheme_issues(study: Study) -> Iterator[Issue]:
    scheme = study.scheme
    asks = scheme.needs_teacher or (isinstance(scheme, BornAgain) and scheme.first == "teacher")
    if asks and study.teacher is None:
        fix = "add `teacher: {model: ...}`, or use `scheme: {name: alone}`"
        yield Issue((), f"`teacher` is missing; scheme '{scheme.name}' needs one", fix)
    if study.knowledge and not scheme.takes_knowledge:
        fix = "remove `knowledge`, or use another scheme"
        yield Issue(("knowledge",), f"scheme '{scheme.name}' uses no `knowledge`", fix)
    if scheme.needs_teacher and scheme.takes_knowledge and not study.knowledge:
        fix = "add `knowledge: [{loss: {name: kd}}]`, or use `scheme: {name: alone}`"
        message = f"`knowledge` is missing; scheme '{scheme.name}' needs it"
        yield Issue(("knowledge",), message, fix)


def _term_issues(study: Study) -> Iterator[Issue]:
    for number, term in enumerate(study.knowledge):
        place = ("knowledge", number)
        unknown = study.teacher is not None and study.teacher.model is None
        takes_pairs = term.loss is not None and term.loss.takes_pairs
        if takes_pairs and term.pairs is None and study.scheme.needs_teacher and unknown:
            fix = "name the `pairs`, or the teacher's `model`"
            message = (
                "the layers of a teacher given by `weights` alone are unknown before it is loaded"
            )
            yield Issue(place, message, fix)
        for problem in term.conflicts():
            yield Issue((*place, *parse_place(problem.path)), problem.message, problem.fix)
