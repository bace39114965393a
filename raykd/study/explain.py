"""What a study will do, worked out before it is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any

from rich.console import Group
from rich.text import Text

from raykd.architecture import Task
from raykd.problems import Infeasible
from raykd.schemes import Preparation
from raykd.study.costs import asked, costs_of, described
from raykd.study.extent import Dimension, Size
from raykd.study.opened import OpenStudy, anatomies
from raykd.study.outline import study_outline
from raykd.study.schema import Study, read_study
from raykd.study.screens import foretold
from raykd.study.space import Point
from raykd.study.suggest import Scalar, Seeded
from raykd.study.teachers import everyone_behind, teachers_of
from raykd.tables import Column, Grid, Labeled

DRAWS = 200
"""Random points looked at."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        name: the study's.
        dimensions: the parameters a sampler sees.
        size: of the space.
        sample: one feasible concrete study; None where none was found.
        sample_values: its parameters.
        params, macs: smallest and largest of the students looked at.
        drawn, feasible: random points looked at, and how many of them can be trials.
        reasons: why the others cannot, the most frequent first.
        trials: how many the study runs at most.
        teachers: how many teachers it trains.
        student_epochs, teacher_epochs: epochs of all trainings together at most: those of trials
            and replicates (with and without the teacher), and those of the teachers themselves.
        student_passes, teacher_passes: samples that go through a student (forward and backward)
            and through a teacher (forward; its own training too) at most; None while the number
            of training samples is not known.
        left_out: pairs of layers that are never drawn, and why, in sentences.
        screen: what is ranked before the first trial; empty: nothing.
        memory: as `params`, in bytes; None where the study does not ask for it.
        measured: which costs are measured, and on what; empty: none.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    size: Size
    sample: Study | None
    sample_values: dict[str, Scalar]
    params: tuple[int, int]
    macs: tuple[int, int]
    drawn: int
    feasible: int
    reasons: tuple[tuple[str, int], ...]
    trials: int
    teachers: int
    student_epochs: int
    teacher_epochs: int
    student_passes: int | None
    teacher_passes: int | None
    screen: str = ""
    left_out: tuple[str, ...] = ()
    memory: tuple[int, int] | None = None
    measured: str = ""

    @property
    def branches(self) -> dict[str, tuple[Scalar, ...]]:
        """The options of each choice, by its parameter."""
        chosen = (found for found in self.dimensions if found.kind == "choice")
        return {found.name: found.values for found in chosen}

    def render(self) -> Group:
        """The same to be read, for a `rich` console."""
        return Group(Text(f"study {self.name}", style="bold"), *_dimensions(self), *_facts(self))


def explain(
    opened: OpenStudy, task: Task, seed: int = 0, train_size: int | None = None
) -> Explanation:
    """Look at a study's corners and at `DRAWS` random points of it.

    Args:
        opened: the study.
        task: what the models must take and give.
        seed: of the random points; the first feasible one is the sample.
        train_size: number of training samples, where it is known.
    """
    space = opened.space_for(task)
    seen = _Seen(opened, task)
    for point in space.corners():
        seen.look(point)
    sample, values = None, {}
    for draw in range(DRAWS):
        drawer = Seeded(DRAWS * seed + draw)
        found = seen.draw(drawer)
        if found is not None and sample is None:
            sample, values = found, dict(drawer.params)
    student, teacher = _epochs(opened, seen)
    return Explanation(
        name=opened.settings.name,
        dimensions=space.dimensions,
        size=space.size,
        sample=sample,
        sample_values=values,
        params=_range(cost.params for cost in seen.students),
        macs=_range(cost.macs for cost in seen.students),
        drawn=DRAWS,
        feasible=DRAWS - seen.reasons.total(),
        reasons=tuple(seen.reasons.most_common()),
        trials=_trials(opened, space.size),
        teachers=len(_trained(opened)),
        student_epochs=student,
        teacher_epochs=teacher,
        student_passes=None if train_size is None else student * train_size,
        teacher_passes=None if train_size is None else teacher * train_size,
        screen=foretold(opened, task, sample),
        left_out=opened.narrowed(task).lines,
        memory=_range(seen.memory) if seen.memory else None,
        measured=described(opened.settings.search),
    )


class _Seen:
    """What the points looked at have shown."""

    def __init__(self, opened: OpenStudy, task: Task) -> None:
        self.opened = opened
        self.task = task
        self.students: list[Any] = []
        self.memory: list[int] = []
        self.epochs: list[int] = []
        self.taught: list[bool] = []
        self.shared: set[Preparation] = set()
        self.own_kind: list[int] = []
        self.reasons: Counter[str] = Counter()

    def look(self, point: Point) -> None:
        """Note what the student costs and how long it would train."""
        try:
            study = read_study(study_outline().expanded(point.data))
            self.students.append(anatomies(study, self.task)[0])
            if "memory" in asked(study.search):
                self.memory.append(
                    int(costs_of(study.student.model, self.task, ["memory"])["memory"])
                )
        except ValueError:
            return
        self.epochs.append(study.train.epochs)
        teachers = teachers_of(study, self.opened.settings.seed)
        self.taught.append(bool(teachers))
        behind = [one for one in everyone_behind(teachers) if one.weights is None]
        self.shared |= {one for one in behind if one.is_shared}
        self.own_kind.append(sum(one.train.epochs for one in behind if not one.is_shared))

    def draw(self, drawer: Seeded) -> Study | None:
        """One random point; None where it is infeasible, with the reason noted."""
        try:
            point = self.opened.space_for(self.task).draw(drawer)
            self.look(point)
            return self.opened.fitted(point, self.task)
        except Infeasible as error:
            self.reasons[str(error)] += 1
            return None


def _epochs(opened: OpenStudy, seen: _Seen) -> tuple[int, int]:
    """Epochs that students and teachers go through, at most."""
    search = opened.settings.search
    each = mean(seen.epochs) if seen.epochs else 0.0
    taught = mean(seen.taught) if seen.taught else 0.0
    trials = _trials(opened, opened.size) * each
    replicates = search.chosen * search.replicates * each
    own = sum(_teacher_epochs(opened, teacher) for teacher in _trained(opened))
    models = [teacher.model for teacher in opened.teachers()]
    own += sum(one.train.epochs for one in seen.shared if one.model not in models)
    if each and seen.own_kind:  # those that a trial trains before its own: a student's epochs
        more = mean(seen.own_kind) / each
        trials, replicates = trials * (1 + more), replicates * (1 + more / 2)
    return round(trials + 2 * replicates), round(taught * (trials + replicates)) + own


def _trials(opened: OpenStudy, size: Size) -> int:
    trials = opened.settings.search.trials
    return trials if size.points is None else min(trials, size.points)


def _trained(opened: OpenStudy) -> list[Any]:
    return [teacher for teacher in opened.teachers() if teacher.weights is None]


def _teacher_epochs(opened: OpenStudy, teacher: Any) -> int:
    return (teacher.train or opened.settings.train).epochs


def _range(values: Iterable[int]) -> tuple[int, int]:
    found = list(values)
    return (min(found), max(found)) if found else (0, 0)


def _dimensions(found: Explanation) -> Iterable[Any]:
    """The parameters, those of one branch under its condition."""
    if not found.dimensions:
        yield Text("no open parameters: a single trial")
        return
    when = ""
    table = _table_of_dimensions(found.dimensions)
    for dimension in found.dimensions:
        if dimension.when != when:
            yield table
            when = dimension.when
            yield Text(f"if {when}:" if when else "always:", style="italic")
            table = _table_of_dimensions(found.dimensions, heading=False)
        value = found.sample_values.get(dimension.name)
        shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        indent = "  " if when else ""
        table.add(indent + dimension.name, dimension.text, shown)
    yield table


def _table_of_dimensions(dimensions: Iterable[Dimension], *, heading: bool = True) -> Grid:
    """An empty table; those of one space have columns of the same width."""
    longest = max(len(dimension.name) for dimension in dimensions) + 2
    columns = [Column("parameter", whole=True), Column("values"), Column("sample")]
    widths = (longest, 0, 0)
    return Grid(columns, header_style="bold", header=heading, gap=1, widths=widths)


def _facts(found: Explanation) -> Iterable[Any]:
    table = Labeled(gap=1)
    for label, text in _fact_lines(found):
        table.add(Text(label, style="dim"), text)
    yield table


def _fact_lines(found: Explanation) -> Iterable[tuple[str, str]]:
    size = f"{found.size.combinations:,} combinations"
    if found.size.continuous:
        size += f" x {found.size.continuous} continuous parameters"
    yield "space", size
    costs = f"{_span(found.params)} parameters, {_span(found.macs)} MACs"
    yield "student", costs + (f", {_span(found.memory)} bytes" if found.memory else "")
    if found.measured:
        yield "measured", found.measured
    feasible = f"{found.feasible / found.drawn:.0%} of {found.drawn} random points"
    yield "feasible", feasible
    for reason, times in found.reasons[:3]:
        yield "", f"{times} infeasible: {reason}"
    for number, line in enumerate(found.left_out):
        yield "excluded" if number == 0 else "", line
    if found.screen:
        yield "screen", found.screen
    yield "trials", f"at most {found.trials}"
    yield "teachers", f"{found.teachers} to train"
    if found.student_passes is not None and found.teacher_passes is not None:
        students, teachers = found.student_passes, found.teacher_passes
        yield "samples", f"at most {students:,} through students, {teachers:,} through teachers"
    else:
        students, teachers = found.student_epochs, found.teacher_epochs
        yield "epochs", f"at most {students:,} for students, {teachers:,} for teachers"


def _span(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
