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
from raykd.study.opened import OpenStudy
from raykd.study.schema import Search, Study
from raykd.study.space import Space

PLACE = ("search", "screen")


def within_bins_of(how: Ranking, objectives: Mapping[str, str]) -> str:
    """The cost by which candidates are parted before they are ranked; empty: they are not."""
    if how.per_cost != "auto":
        return "" if how.per_cost == "none" else how.per_cost
    return next((cost for cost in ("params", "macs") if cost in objectives), "")


def kept(how: Ranking, trials: int) -> int:
    """How many of the first trials are the screen's."""
    return max(1, trials // 2) if how.keep is None else min(how.keep, trials)


def teacher_of(opened: OpenStudy) -> Model | None:
    """The model of the study's teacher; None where it has none, or does not say."""
    teachers = opened.teachers()
    return teachers[0].model if teachers else None


def screen_findings(search: Search) -> Iterator[Finding]:
    """What is wrong with a screen whose values are all of the right type."""
    how = search.screen
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
    if how.name == within_bins_of(how, search.objectives):
        what = f"'{how.name}' cannot rank students that are compared at equal {how.name}"
        mend = "take naswot, zen or diswot, or write `per_cost: none`"
        if how.per_cost == "auto":
            what += f" (`{how.name}` is an objective)"
        yield Finding(PLACE, what, mend)


def teacher_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with a screen that compares with a teacher."""
    how = study.search.screen
    if not how.needs_teacher:
        return
    mend = "give `teacher: {model: ...}`, or take naswot, zen, params or macs"
    if study.teacher is None or study.teacher.model is None:
        what = f"'{how.name}' compares students with the teacher's model, which is not given"
        yield Finding(PLACE, what, mend)


def space_findings(space: Space, search: Search) -> Iterator[Finding]:
    """What is wrong with a screen of this space."""
    how = search.screen
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
        search.screen.check(task)
    except ValueError as error:
        yield Finding(PLACE, str(error))


def foretold(opened: OpenStudy, task: Task, sample: Study | None) -> str:
    """What the screen will do and how long that will take here; empty where there is none.

    Args:
        opened: the study.
        task: what its students take and give.
        sample: one of its concrete studies; it is scored to see how long that takes.
    """
    search = opened.settings.search
    how = search.screen
    if not isinstance(how, Ranking):
        return ""
    cost = within_bins_of(how, search.objectives)
    best = kept(how, search.trials)
    parted = f" in {min(how.bins, best)} bins of like {cost}" if cost else ""
    points = opened.size.points
    most = how.candidates if points is None else min(how.candidates, points)
    text = (
        f"{how.name}: students of {most} random points are ranked{parted}, the best {best} "
        "are tried first"
    )
    if sample is None:
        return text
    return f"{text}; about {_spoken(most * _seconds(opened, how, task, sample))}"


def _seconds(opened: OpenStudy, how: Ranking, task: Task, sample: Study) -> float:
    """How long one score takes: the median of three, after one that warms up."""
    cpu = torch.device("cpu")
    count = how.batch if isinstance(how, Measured) else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, targets = random_inputs(task, count, cpu), torch.randint(task.classes, (count,))
    score = how.scorer(Screening(task, inputs, targets, teacher_of(opened), 0))
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        score(sample.student.model)
        taken.append(time.perf_counter() - begun)
    return median(taken[1:])


def _spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1.0, seconds):.0f} s"
