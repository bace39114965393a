"""Summary of a study before it starts: its space, its costs and its number of trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import mean
from typing import Any

from raykd.errors import Infeasible
from raykd.html_card import Card
from raykd.schemes import Teacher, TeacherSpec
from raykd.schemes.base import teacher_chain
from raykd.study.candidate import Candidate
from raykd.study.checks.messages import InvalidStudy
from raykd.study.checks.rules import ranking_summary
from raykd.study.config import Study
from raykd.study.costs import costs_of, measurement_summary, required_costs
from raykd.study.open_study import BoundStudy, OpenStudy
from raykd.study.space.sampling import Scalar, Seeded
from raykd.study.space.size import Dimension, Size

DRAWS = 200
"""Number of random points."""


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`.

    Attributes:
        name: of the study.
        dimensions: the parameters of the samplers.
        size: of the space.
        sample: a feasible concrete study; None if none was drawn.
        sample_values: its parameters.
        params, macs: smallest and largest of the students looked at.
        drawn, feasible: number of random points, and how many of them can be trials.
        reasons: why the others are infeasible, the most frequent first.
        trials: maximum number of trials.
        teachers: number of teachers to train.
        student_epochs, teacher_epochs: maximum epochs of all trainings together: those of trials
            and replicates (with and without the teacher), and those of the teachers themselves.
        student_passes, teacher_passes: maximum number of samples that pass a student (forward and
            backward) and a teacher (forward; its own training too); None if the number of training
            samples is unknown.
        left_out: pairs of layers that are never drawn, with reasons, in sentences.
        proxy: the ranking before the first trial; "" if there is none.
        memory: smallest and largest, in bytes; None if the study does not ask for it.
        measured: measured costs and their device; "" if nothing is measured.
        inputs: of the networks, each with its shape; () if all take whole samples.
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
    proxy: str = ""
    left_out: tuple[str, ...] = ()
    memory: tuple[int, int] | None = None
    measured: str = ""
    inputs: tuple[str, ...] = ()

    @property
    def branches(self) -> dict[str, tuple[Scalar, ...]]:
        """The options of each choice, by its parameter."""
        choices = (dimension for dimension in self.dimensions if dimension.kind == "choice")
        return {choice.name: choice.values for choice in choices}

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Labeled sentences on the size and the costs; a continued one has an empty label."""
        return tuple(self._facts())

    def sample_text(self, dimension: Dimension) -> str:
        """Return the value of a parameter in the sample; "" if it is not drawn there."""
        value = self.sample_values.get(dimension.name)
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    def _facts(self) -> Iterator[tuple[str, str]]:
        size = f"{self.size.combinations:,} combinations"
        if self.size.continuous:
            size += f" x {self.size.continuous} continuous parameters"
        yield "space", size
        costs = f"{_span(self.params)} parameters, {_span(self.macs)} MACs"
        yield "student", costs + (f", {_span(self.memory)} bytes" if self.memory else "")
        for number, line in enumerate(self.inputs):
            yield "inputs" if number == 0 else "", line
        if self.measured:
            yield "measured", self.measured
        feasible = f"{self.feasible / self.drawn:.0%} of {self.drawn} random points"
        yield "feasible", feasible
        for reason, times in self.reasons[:3]:
            yield "", f"{times} infeasible: {reason}"
        for number, line in enumerate(self.left_out):
            yield "excluded" if number == 0 else "", line
        if self.proxy:
            yield "proxy", self.proxy
        yield "trials", f"at most {self.trials}"
        yield "teachers", f"{self.teachers} to train"
        if self.student_passes is not None and self.teacher_passes is not None:
            students, teachers = self.student_passes, self.teacher_passes
            yield "samples", f"at most {students:,} through students, {teachers:,} through teachers"
        else:
            students, teachers = self.student_epochs, self.teacher_epochs
            yield "epochs", f"at most {students:,} for students, {teachers:,} for teachers"


def explain(bound: BoundStudy, seed: int = 0, train_size: int | None = None) -> Explanation:
    """Summarize a study from its corners and from `DRAWS` random points of it.

    Args:
        bound: the study.
        seed: of the random points; the first feasible one is the sample.
        train_size: number of training samples, if known.
    """
    space, settings = bound.space, bound.open_study.settings
    statistics = _Statistics()
    for candidate in bound.corners():
        statistics.add(candidate)
    sample, values = None, {}
    reasons: Counter[str] = Counter()
    for draw in range(DRAWS):
        drawer = Seeded(DRAWS * seed + draw)
        try:
            candidate = _drawn(bound, drawer, statistics)
        except Infeasible as error:
            reasons[str(error)] += 1
            continue
        if sample is None:
            sample, values = candidate.resolved, dict(drawer.params)
    student, teacher = _epochs(bound, statistics)
    return Explanation(
        name=settings.name,
        dimensions=space.dimensions,
        size=space.size,
        sample=sample,
        sample_values=values,
        params=_range(statistics.params),
        macs=_range(statistics.macs),
        drawn=DRAWS,
        feasible=DRAWS - reasons.total(),
        reasons=tuple(reasons.most_common()),
        trials=_trials(bound),
        teachers=len(_trained(bound.open_study)),
        student_epochs=student,
        teacher_epochs=teacher,
        student_passes=None if train_size is None else student * train_size,
        teacher_passes=None if train_size is None else teacher * train_size,
        proxy=ranking_summary(bound, sample),
        left_out=bound.filtered.lines,
        memory=_range(statistics.memory) if statistics.memory else None,
        measured=measurement_summary(settings.search),
        inputs=tuple(sorted(statistics.inputs)),
    )


def study_card(study: OpenStudy) -> Card:
    """Return a card of a study for notebooks: its parts, and what `raykd validate` shows."""
    settings, signature = study.settings, study.signature
    search = settings.search
    card = Card(f"study {settings.name}", study.document.file or "")
    parts = [
        ("data", settings.data.name),
        ("teacher model", ", ".join(_model_names(study.models("teacher")))),
        ("student models", ", ".join(_model_names(study.models("student")))),
        ("objectives", ", ".join(f"{way} {name}" for name, way in search.objectives.items())),
        ("sampler", search.sampler.name),
        ("training", f"{settings.train.epochs} epochs a trial"),
    ]
    if signature is None:  # nothing more is known before the data are read
        points = study.size.points
        parts += [("space", "infinite" if points is None else f"{points:,} points")]
        card.facts([*parts, ("trials", f"at most {search.trials}")])
        rows = [(each.path, each.text, each.when) for each in study.dimensions]
        card.table("Parameters", ("parameter", "values", "drawn if"), rows)
        return card
    explanation = explain(study.bind(signature))
    card.facts([*parts, *explanation.facts])
    described = [
        (each.name, each.text, each.when, explanation.sample_text(each))
        for each in explanation.dimensions
    ]
    card.table("Parameters", ("parameter", "values", "drawn if", "sample"), described)
    return card


def _model_names(models: Iterable[Any]) -> list[str]:
    """Return the distinct names of models, in order."""
    return list(dict.fromkeys(str(model.name) for model in models))


def _drawn(bound: BoundStudy, drawer: Seeded, statistics: _Statistics) -> Candidate:
    """Return a random candidate, counted in the statistics even if it is infeasible.

    Raises:
        Infeasible: it cannot be a trial, with the reason.
    """
    point = bound.space.draw(drawer)
    with suppress(InvalidStudy):
        statistics.add(bound.read(point))
    return bound.fit(point)


class _Statistics:
    """Costs and epochs of the candidates looked at."""

    def __init__(self) -> None:
        self.inputs: set[str] = set()
        self.params: list[int] = []
        self.macs: list[int] = []
        self.memory: list[int] = []
        self.epochs: list[int] = []
        self.taught: list[bool] = []
        self.shared: set[TeacherSpec] = set()
        self.unshared_epochs: list[int] = []

    def add(self, candidate: Candidate) -> None:
        """Note what the student costs and how long it would train."""
        study = candidate.study
        try:
            student = candidate.student
            self.params.append(student.params)
            self.macs.append(student.macs)
            if "memory" in required_costs(study.search):
                costs = costs_of(study.student.model, candidate.signature, ["memory"])
                self.memory.append(int(costs["memory"]))
        except ValueError:
            return
        self.inputs |= set(_inputs(candidate))
        self.epochs.append(study.train.epochs)
        self.taught.append(any(each.outputs is None for each in candidate.teachers))
        trained = [each for each in teacher_chain(candidate.teachers) if each.is_trained]
        self.shared |= {each for each in trained if each.is_shared}
        self.unshared_epochs.append(sum(e.train.epochs for e in trained if not e.is_shared))


def _inputs(candidate: Candidate) -> Iterator[str]:
    """Describe what the networks take of a sample, if one of them takes a part."""
    teachers = [("teacher", each.input) for each in candidate.teachers if each.outputs is None]
    networks = [("student", candidate.study.student.input), *teachers]
    if any(name is not None for _, name in networks):
        for role, name in networks:
            shape = candidate.data_signature.as_input(name).input_shape
            yield f"{role}: {name or 'the whole sample'} ({'x'.join(map(str, shape))})"


def _epochs(bound: BoundStudy, statistics: _Statistics) -> tuple[int, int]:
    """Maximum epochs of students and of teachers."""
    opened = bound.open_study
    search = opened.settings.search
    each = mean(statistics.epochs) if statistics.epochs else 0.0
    taught = mean(statistics.taught) if statistics.taught else 0.0
    trials = _trials(bound) * each
    replicates = search.finalists * search.replicates * each
    of_teachers = sum(
        (teacher.train or opened.settings.train).epochs for teacher in _trained(opened)
    )
    models = [teacher.model for teacher in opened.teachers()]
    of_teachers += sum(t.train.epochs for t in statistics.shared if t.model not in models)
    if each and statistics.unshared_epochs:  # networks that a trial trains before its student
        more = mean(statistics.unshared_epochs) / each
        trials, replicates = trials * (1 + more), replicates * (1 + more / 2)
    return round(trials + 2 * replicates), round(taught * (trials + replicates)) + of_teachers


def _trials(bound: BoundStudy) -> int:
    trials, points = bound.open_study.settings.search.trials, bound.space.size.points
    return trials if points is None else min(trials, points)


def _trained(opened: OpenStudy) -> list[Teacher]:
    return [teacher for teacher in opened.teachers() if teacher.is_trained]


def _range(values: Sequence[int]) -> tuple[int, int]:
    return (min(values), max(values)) if values else (0, 0)


def _span(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
