"""Reading a study file and finding everything that is wrong with it, before anything starts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raykd.data import Source
from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import ModelProfile, Task
from raykd.study.candidate import Candidate, ModelError, pairing_losses
from raykd.study.checks.layer_pairs import PairError, of_the_other
from raykd.study.checks.messages import Finding, InvalidStudy, parse_study
from raykd.study.checks.rules import (
    import_findings,
    search_findings,
    space_findings,
    study_findings,
    task_findings,
)
from raykd.study.config import Bounds, Search, Study
from raykd.study.costs import format_cost
from raykd.study.objectives import Cost
from raykd.study.open_study import BoundStudy, OpenStudy, task_of
from raykd.study.space.domains import NUMBERS, Pairing
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import Point, Space, read_space
from raykd.study.teachers import teacher_chain, teachers_of
from raykd.study.yaml_file import Document, Place, dotted, parse_place, read_document

Check = Callable[[Study, Task | None], Iterable[Problem | str]]
"""Looks at one concrete study; a problem without a line gets that of its path."""

MOST_PROBLEMS = 20
MOST_TEACHERS = 16
TRIED = 200
"""Random points tried before a space is said to hold nothing feasible."""


def load_study(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    checks: Iterable[Check] = (),
    *,
    allow_import: bool = False,
) -> OpenStudy:
    """Read a study file and check all of it.

    Every branch and both ends of every range are checked: keys and types, the rules of schemes,
    teachers and objectives, models that can be built, layers and connectors (on the meta
    device), constraints that can be met.  Nothing is read or downloaded.  Where the shape of the
    data is known only once they are read, call `check_shapes` then.

    Args:
        path: a YAML file.
        overrides: `a.b=value` arguments.
        checks: further ones, called for every concrete study that is looked at.
        allow_import: let models run code of their own (import paths, networks from MLflow).

    Raises:
        StudyError: all that is wrong, with file, line, place, and how to mend it.
    """
    document = read_document(path).with_overrides(overrides)
    return open_study(document, checks, allow_import=allow_import)


def open_study(
    document: Document, checks: Iterable[Check] = (), *, allow_import: bool = False
) -> OpenStudy:
    """As `load_study`, for a document already read."""
    space, problems, broken = read_space(document)
    report = _Report(document, problems, broken)
    studies = list(_typed(space, report))
    if not allow_import:
        _refuse_imports(studies, report)
    for point, study in studies:
        for finding in study_findings(study):
            report.add(finding, point.origins)
        for finding in _order_findings(space, point, study):
            report.add(finding)
    for finding in _space_findings(document, space, [study for _, study in studies]):
        report.add(finding)
    report.raise_if_any()
    opened = OpenStudy(document, space, studies[0][1])
    try:
        task = task_of(opened.settings)
    except ValueError as error:
        raise StudyError(document.problem(("data",), str(error))) from None
    if task is not None:
        check_shapes(opened, task, checks=checks)
    else:
        _run_checks([(study, point.origins) for point, study in studies], None, checks, report)
        report.raise_if_any()
    return opened


def check_shapes(opened: OpenStudy, task: Task, checks: Iterable[Check] = ()) -> None:
    """Check everything that depends on the shape of the data: models, layers, connectors,
    constraints.

    Args:
        opened: the study.
        task: input shape and classes of the models.
        checks: as for `load_study`.

    Raises:
        StudyError: with all problems.
    """
    report = _Report(opened.document)
    bound = opened.bind(task)
    for impossible in bound.narrowed.impossible:
        report.add(Finding(impossible.place, impossible.message, impossible.fix))
    candidates = list(bound.corners())
    if not candidates:
        _report_failing_models(bound, report)
        if not report.problems:
            report.add(Finding(("knowledge",), "no point of the space can be drawn"))
    _check_pairings(opened.space, candidates, report)
    costs = _Costs()
    for candidate in candidates:
        with report.shapes_of(candidate, costs):
            costs.values.append(candidate.costs)
            candidate.check()
            costs.feasible += 1
    for finding in task_findings(opened.settings.search, task):
        report.add(finding)
    _run_checks([(each.study, each.origins) for each in candidates], task, checks, report)
    report.raise_if_any()
    if not costs.feasible:
        _search_feasible(bound, costs)
    if not costs.feasible:
        for finding in costs.findings(opened.settings.search):
            report.add(finding)
        report.raise_if_any()


def check_data(study: Study, task: Task | None) -> Iterator[Problem]:
    """A `Check`: whether the data can be had."""
    reason = _missing_data(study.data)
    if reason:
        yield Problem(reason, path="data")


@lru_cache(maxsize=64)
def _missing_data(source: Source) -> str:
    try:
        source.check()
    except ValueError as error:
        return str(error)
    return ""


class _Report:
    """Collects problems, each once."""

    def __init__(
        self,
        document: Document,
        problems: Iterable[Problem] = (),
        broken: frozenset[Place] = frozenset(),
    ) -> None:
        self.document = document
        self.broken = broken
        self.problems = dict.fromkeys(problems)

    def add(self, finding: Finding, origins: Mapping[Place, Place] | None = None) -> None:
        """Note a finding in a concrete study whose values come from `origins`."""
        place = finding.place
        if any(place[: len(broken)] == broken for broken in self.broken):
            return
        source = place if origins is None else _source(place, origins)
        message = finding.message + _as_written(self.document.get(source))
        fix = finding.fix or _spelled(self.document.spelled.get(source))
        self.problems[self.document.problem(source, message, fix, dotted(place))] = None

    def once(self, finding: Finding, origins: Mapping[Place, Place]) -> None:
        """As `add`, but only the first for its place: others differ in shapes alone."""
        if all(problem.path != dotted(finding.place) for problem in self.problems):
            self.add(finding, origins)

    def note(self, problem: Problem | str, origins: Mapping[Place, Place]) -> None:
        """Note what a check found; where it says no line, its path's is taken."""
        if isinstance(problem, str):
            problem = Problem(problem)
        if problem.file or not problem.path:
            self.problems[problem] = None
        else:
            self.add(Finding(parse_place(problem.path), problem.message, problem.fix), origins)

    @contextmanager
    def shapes_of(self, candidate: Candidate, costs: _Costs) -> Iterator[None]:
        """Note why a candidate cannot be a trial: a mistake in the study, or one draw of many."""
        try:
            yield
        except Infeasible as error:
            costs.reasons[str(error)] += 1
        except PairError as error:
            if _is_drawn(error.place, candidate.origins):
                costs.reasons[str(error)] += 1
            else:
                self.once(Finding(error.place, error.message, error.fix), candidate.origins)
        except ModelError as error:
            self.once(Finding(error.place, error.message), candidate.origins)

    def raise_if_any(self) -> None:
        if not self.problems:
            return
        found = sorted(self.problems, key=lambda problem: problem.line)
        more = len(found) - MOST_PROBLEMS
        if more > 0:
            file = self.document.file
            found = [*found[:MOST_PROBLEMS], Problem(f"and {more} problems more", file=file)]
        raise StudyError(found)


def _source(place: Place, origins: Mapping[Place, Place]) -> Place:
    """Where in the document a place of a concrete study comes from."""
    for length in range(len(place), -1, -1):
        if place[:length] in origins:
            return (*origins[place[:length]], *place[length:])
    return place


def _as_written(value: Any) -> str:
    """A reminder that a value is the end of a range."""
    kind = next((kind for kind in NUMBERS if isinstance(value, dict) and kind in value), None)
    return f" (an end of {{{kind}: {value[kind]}}})" if kind is not None else ""


def _spelled(written: str | None) -> str:
    """A remedy for text that YAML reads as true or false."""
    return (
        f'`{written}` is read as true or false; text needs quotes: "{written}"' if written else ""
    )


def _typed(space: Space, report: _Report) -> Iterator[tuple[Point, Study]]:
    """The corners as studies; what is wrong with their types goes to the report."""
    for point in space.sketched.corners():  # real stages are known once the data's shape is
        try:
            yield point, parse_study(point.data)
        except InvalidStudy as error:
            for finding in (*error.findings, *_search_alone(error.data)):
                report.add(finding, point.origins)


def _refuse_imports(studies: Iterable[tuple[Point, Study]], report: _Report) -> None:
    """Nothing may be built where a model would have code of its own run."""
    found = [(finding, point) for point, study in studies for finding in import_findings(study)]
    for finding, point in found:
        report.add(finding, point.origins)
    if found:
        report.raise_if_any()


def _search_alone(data: Any) -> Iterator[Finding]:
    """What the rules say of the `search` part of a study that is wrong elsewhere."""
    try:
        search = TypeAdapter(Search).validate_python(data.get("search") or {})
    except ValidationError:
        return
    yield from search_findings(search)


def _space_findings(document: Document, space: Space, studies: list[Study]) -> Iterator[Finding]:
    teachers = space.part("teacher").size.combinations
    if teachers > MOST_TEACHERS:
        message = f"{teachers} different teachers; at most {MOST_TEACHERS} are trained for a study"
        yield Finding(("teacher",), message, "leave less of the teacher open")
    if not studies:
        return
    first = studies[0]
    yield from space_findings(space, first.search)
    continuous = [found for found in space.dimensions if "uniform" in found.kind]
    if first.search.sampler == "grid" and space.size.points is None:
        names = ", ".join(found.name for found in continuous)
        fix = "give `uniform` a step or list the values, or take another sampler"
        yield Finding(("search", "sampler"), f"'grid' cannot list continuous values: {names}", fix)
    yield from _open_recipes([found.path for found in space.part("train").dimensions], studies)
    unknown = [s for s in studies if s.teacher is not None and s.teacher.model is None]
    for pairing in space.pairings if unknown else ():
        hint = pairing.domain.hint
        if not pairing.domain.is_known and isinstance(hint, str):
            message = (
                f"`hint: {hint}` needs the teacher's `model`, which `weights` alone do not tell"
            )
            fix = "name the teacher's `model`, or list its layers: `hint: [...]`"
            yield Finding(pairing.source, message, fix)


def _order_findings(space: Space, point: Point, study: Study) -> Iterator[Finding]:
    """Pairings that go backwards under a loss that goes from shallow to deep."""
    backwards = {
        node.source
        for node in space.pairings
        if node.domain.order == "reverse" and node.domain.max > 1
    }
    for source, name, losses in pairing_losses(study, point.origins):
        if source in backwards and not all(loss.pairs_apart for loss in losses):
            message = (
                f"loss '{name}' compares all its pairs together, shallow to deep on both sides"
            )
            fix = "write `order: monotone`, or take a loss that compares pairs one by one"
            yield Finding((*source, "pairing", "order"), message, fix)


def _open_recipes(open_train: list[str], studies: list[Study]) -> Iterator[Finding]:
    """Networks that trials share, but whose training would differ from trial to trial."""
    differs = f"but {', '.join(open_train)} differs from trial to trial"
    if open_train and any(_trained_alike(study) for study in studies):
        what = (
            f"`teacher.train` is left out, so the teacher is trained as the student is, {differs}"
        )
        yield Finding(("teacher",), what, "add `train: {...}` to the teacher")
        return
    for study in studies if open_train else ():
        for prepared in teacher_chain(teachers_of(study)):
            if prepared.is_shared and prepared.weights is None and prepared.train == study.train:
                what = f"a network that many trials share is trained as the student is, {differs}"
                yield Finding(("scheme",), what, "add `train: {...}` to it")


def _trained_alike(study: Study) -> bool:
    """Whether the teacher is trained with the student's own settings."""
    teacher = study.teacher
    return teacher is not None and teacher.weights is None and teacher.train is None


def _report_failing_models(bound: BoundStudy, report: _Report) -> None:
    """Report models that cannot be built: without one there are no stages to pair.

    Raises:
        StudyError: there are such models.
    """
    for candidate in bound.sketches():
        try:
            _ = candidate.student
        except ModelError as error:
            report.once(Finding(error.place, error.message), candidate.origins)
    report.raise_if_any()


def _check_pairings(space: Space, candidates: Iterable[Candidate], report: _Report) -> None:
    """Report the layers of a pairing that no student, or no teacher, of the candidates has."""
    students: list[ModelProfile] = []
    teachers: list[ModelProfile] = []
    for candidate in candidates:
        try:
            students.append(candidate.student)
        except ValueError:
            continue  # reported where the candidate itself is checked
        teachers += [each for each in candidate.teacher_profiles if each is not None]
    for pairing in space.pairings:
        _check_side(pairing, "guided", students, teachers, report)
        _check_side(pairing, "hint", teachers, students, report)


def _check_side(
    pairing: Pairing,
    side: str,
    models: list[ModelProfile],
    others: list[ModelProfile],
    report: _Report,
) -> None:
    for place, name in pairing.domain.written(side):
        reasons = [reason for model in models if (reason := _lacks(model, name))]
        if models and len(reasons) == len(models):
            who = "student" if side == "guided" else "teacher"
            found = Finding((*pairing.source, "pairing", *place), f"{who}: {reasons[0]}")
            elsewhere = any(not _lacks(model, name) for model in others)
            report.add(replace(found, fix=of_the_other(side)) if elsewhere else found)


def _lacks(model: ModelProfile, name: str) -> str:
    try:
        model.resolve([name])
    except ValueError as error:
        return str(error)
    return ""


class _Costs:
    """Costs of the candidates looked at, and the reasons why some are infeasible."""

    def __init__(self) -> None:
        self.feasible = 0
        self.values: list[dict[Cost, float]] = []
        self.reasons: Counter[str] = Counter()

    def findings(self, search: Search) -> Iterator[Finding]:
        """Yield the reasons why no candidate is feasible: constraints out of reach, or others."""
        unmet = [
            Finding(("search", "constraints", cost), *problem)
            for cost, bounds in search.constraints.items()
            if (problem := self._unmet(cost, bounds)) is not None
        ]
        yield from unmet
        if not unmet:
            reason = self.reasons.most_common(1)[0][0] if self.reasons else "unknown"
            what = f"none of {self.reasons.total()} random points can be a trial; the most frequent"
            yield Finding((), f"{what} reason: {reason}")

    def _unmet(self, cost: Cost, bounds: Bounds) -> tuple[str, str] | None:
        """Message and fix for bounds that no candidate can keep; None if one might."""
        values = sorted(costs[cost] for costs in self.values if cost in costs)
        if values and bounds.max is not None and values[0] > bounds.max:
            limit, best = f"<= {format_cost(cost, bounds.max)}", "smallest"
            fix, value = "raise it, or open the space to smaller students", values[0]
        elif values and bounds.min is not None and values[-1] < bounds.min:
            limit, best = f">= {format_cost(cost, bounds.min)}", "largest"
            fix, value = "lower it, or open the space to larger students", values[-1]
        else:
            return None
        message = f"no architecture of this space has {cost} {limit}"
        return f"{message}; the {best} found has {format_cost(cost, value)}", fix


def _is_drawn(place: Place, origins: Mapping[Place, Place]) -> bool:
    """Whether the pairs of the term at `place` were drawn from a pairing domain."""
    pairs = (*place[:2], "pairs")
    return (*pairs, 0) in origins and origins[*pairs, 0] == origins[pairs]


def _search_feasible(bound: BoundStudy, costs: _Costs) -> None:
    """Draw at random until a point is feasible."""
    for seed in range(TRIED):
        try:
            candidate = bound.read(bound.space.draw(Seeded(seed)))
            costs.values.append(candidate.costs)
            candidate.check()
        except ValueError as error:
            costs.reasons[str(error)] += 1
        else:
            costs.feasible += 1
            return


def _run_checks(
    studies: Iterable[tuple[Study, Mapping[Place, Place]]],
    task: Task | None,
    checks: Iterable[Check],
    report: _Report,
) -> None:
    for check in checks:
        for study, origins in studies:
            for problem in islice(check(study, task), MOST_PROBLEMS):
                report.note(problem, origins)
