"""What a study's screen asks for: what must hold of it, and what it will do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from statistics import median

import torch

from raykd.architecture import Model, Task
from raykd.architecture.layers import random_inputs
from raykd.architecture.screens import Measured, Ranking, Screening
from raykd.study.complaints import Finding
from raykd.study.opened import BoundStudy, OpenStudy
from raykd.study.schema import Search, Study
from raykd.study.space import Space

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
        mend = "remove `screen`, or take another sampler"
        yield Finding(PLACE, "sampler 'grid' tries every point, whatever a screen says", mend)
    if how.keep is not None and how.keep > search.trials:
        what = f"{how.keep} architectures cannot be kept for {search.trials} trials"
        yield Finding((*PLACE, "keep"), what, "lower it, or raise search.trials")
    if how.keep is not None and how.keep > how.candidates:
        what = f"{how.keep} of {how.candidates} candidates cannot be kept"
        yield Finding((*PLACE, "keep"), what, "lower it, or raise `candidates`")
    if how.name == bin_cost(how, search.objectives):
        what = f"'{how.name}' cannot rank students that are compared at equal {how.name}"
        mend = "take naswot, zen or diswot, or write `per_cost: none`"
        if how.per_cost == "auto":
            what += f" (`{how.name}` is an objective)"
        yield Finding(PLACE, what, mend)


def teacher_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with a screen that compares with a teacher."""
    how = study.search.proxy
    if not how.needs_teacher:
        return
    mend = "give `teacher: {model: ...}`, or take naswot, zen, params or macs"
    if study.teacher is None or study.teacher.model is None:
        what = f"'{how.name}' compares students with the teacher's model, which is not given"
        yield Finding(PLACE, what, mend)


def space_findings(space: Space, search: Search) -> Iterator[Finding]:
    """What is wrong with a screen of this space."""
    how = search.proxy
    if not isinstance(how, Ranking):
        return
    if space.dimensions and not space.part("student").dimensions:
        what = "there is one student in this space, so there is nothing to rank"
        mend = "leave something of `student.model` open, or remove `screen`"
        yield Finding(PLACE, what, mend)
    teachers = space.part("teacher").size.combinations
    if how.needs_teacher and teachers > 1:
        what = f"'{how.name}' compares with one teacher; this space has {teachers}"
        yield Finding(PLACE, what, "give the teacher one value, or take naswot, zen or params")


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
    score = settings.scorer(Screening(task, inputs, targets, teacher_model(bound.open_study), 0))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        score(sample.student.model)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1.0, seconds):.0f} s"
