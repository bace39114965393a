"""Loading of study files, with all checks that are possible before anything starts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raykd.data import Source
from raykd.data.unlabeled import check_unlabeled
from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import ModelProfile, Signature
from raykd.models.proxies import RankingProxy
from raykd.python_objects import PythonObject
from raykd.schemes.base import teacher_chain
from raykd.study.candidate import Candidate, ModelError, pairing_losses
from raykd.study.checks.input_rules import open_input_issue
from raykd.study.checks.layer_pairs import PairError, other_side_hint
from raykd.study.checks.messages import InvalidStudy, Issue, parse_study
from raykd.study.checks.rules import (
    import_issues,
    needs_import,
    proxy_signature_issues,
    proxy_space_issues,
    search_issues,
    study_issues,
)
from raykd.study.config import Bounds, Search, Study
from raykd.study.costs import format_cost
from raykd.study.objectives import Cost
from raykd.study.open_study import BoundStudy, OpenStudy, signature_of
from raykd.study.space.domains import NUMBERS, Pairing
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import Point, Space, read_space
from raykd.study.yaml_file import Document, Place, dotted, parse_place, read_document
from raykd.user_code import ALLOW, UserCode, is_python_object, path_of, user_names

Check = Callable[[Study, Signature | None], Iterable[Problem | str]]
"""Check of one concrete study; a problem without a line gets the line of its path."""

OBJECT_KINDS: Mapping[str, str] = {
    "loss": "losses",
    "metrics": "metrics",
    "scheme": "schemes",
    "augment": "augmentations",
    "model": "models",
    "data": "data",
}
"""Keywords by which objects are handed over from Python, by a key of their place in a study."""

MOST_PROBLEMS = 20
MOST_TEACHERS = 16
TRIED = 200
"""Number of random points before a space counts as infeasible."""


def load_study(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    checks: Iterable[Check] = (),
    *,
    allow_import: bool = False,
) -> OpenStudy:
    """Read and check a study file.

    Every branch and both ends of every range are checked: keys and types; rules of schemes,
        teachers
    and objectives; that models can be built; layers and connectors (on the meta device); that
    constraints can be met.  No data are read or downloaded.  If their shape is unknown before they
    are read, call `check_shapes` afterwards.

    Args:
        path: a YAML file.
        overrides: `a.b=value` arguments.
        checks: further checks of every concrete study that is looked at.
        allow_import: allow models to run custom code (import paths, networks from MLflow).

    Raises:
        StudyError: with all problems: file, line, place, and how to fix them.
    """
    document = read_document(path).with_overrides(overrides)
    return open_study(document, checks, allow_import=allow_import)


def open_study(
    document: Document,
    checks: Iterable[Check] = (),
    *,
    allow_import: bool = False,
    objects: Mapping[str, PythonObject] | None = None,
) -> OpenStudy:
    """As `load_study`, for a document that is already read.

    `objects` are those that were handed over from Python, by their name in the study.
    """
    code = import_user_code(document, allow_import=allow_import, objects=objects)
    space, problems, broken = read_space(document)
    report = _IssueCollector(document, problems, broken)
    studies = list(_typed(space, report))
    if not allow_import:
        _refuse_imports(studies, report)
    for point, study in studies:
        for issue in study_issues(study):
            report.add(issue, point.origins)
        for issue in _order_issues(space, point, study):
            report.add(issue)
    for issue in _space_issues(document, space, [study for _, study in studies]):
        report.add(issue)
    report.raise_if_any()
    runs_code = allow_import and any(needs_import(study) for _, study in studies)
    runs_code = runs_code or code is not None
    opened = OpenStudy(document, space, studies[0][1], runs_code, code)
    try:
        signature = signature_of(opened.settings)
    except ValueError as error:
        raise StudyError(document.problem(("data",), str(error))) from None
    if signature is not None:
        check_shapes(opened, signature, checks=checks)
    else:
        _run_checks([(study, point.origins) for point, study in studies], None, checks, report)
        report.raise_if_any()
    return opened


def import_user_code(
    document: Document,
    *,
    allow_import: bool,
    objects: Mapping[str, PythonObject] | None = None,
) -> UserCode | None:
    """Import the files of code that a study names, if that is allowed.

    Args:
        document: the study.
        allow_import: whether its files may be imported.
        objects: handed over from Python, by name: they are allowed.

    Returns:
        The files; None if the study names none.

    Raises:
        StudyError: it is not allowed (nothing is imported), or a file cannot be used.
    """
    names = list(user_names(document.data))
    if not names:
        return None
    objects, folder = objects or {}, Path(document.file).parent
    missing = [(place, name) for place, name in names if name not in objects]
    problems = [
        _missing_object(document, folder, place, name)
        for place, name in missing
        if is_python_object(name) and not (allow_import and (folder / path_of(name)).is_file())
    ]
    if not allow_import:
        message = "'{}' would run code from outside raykd"
        problems += [
            document.problem(place, message.format(name), ALLOW)
            for place, name in missing
            if not is_python_object(name)
        ]
    if problems:
        raise StudyError(problems)
    code: UserCode | None = None
    for number, (place, _) in enumerate(names):  # one by one, so that an error names its place
        try:
            code = UserCode.read(folder, [name for _, name in names[: number + 1]], objects)
            code.register()
        except ValueError as error:
            raise StudyError(document.problem(place, str(error))) from None
    return code


def _missing_object(document: Document, folder: Path, place: Place, name: str) -> Problem:
    """Return the problem of an object that was not handed over from Python."""
    kind = next((kind for key, kind in OBJECT_KINDS.items() if key in place), "models")
    attribute = name.rpartition(":")[2]
    fix = f"hand it over in each call: raykd.search(..., {kind}=[{attribute}])"
    if (folder / path_of(name)).is_file():
        fix += (
            f"; or run its copy {path_of(name)} of this folder: --allow-import (allow_import=True)"
        )
    message = f"'{name}' is an object from Python, and it was not handed over"
    return document.problem(place, message, fix)


def check_shapes(opened: OpenStudy, signature: Signature, checks: Iterable[Check] = ()) -> None:
    """Check everything that depends on the shape of the data: models, layers, connectors,
    constraints.

    Args:
        opened: the study.
        signature: input shape and classes of the models.
        checks: as for `load_study`.

    Raises:
        StudyError: with all problems.
    """
    report = _IssueCollector(opened.document)
    bound = opened.bind(signature)
    for impossible in bound.filtered.impossible:
        report.add(Issue(impossible.place, impossible.message, impossible.fix))
    candidates = list(bound.corners())
    if not candidates:
        _report_failing_models(bound, report)
        if not report.problems:
            report.add(Issue(("knowledge",), "no point of the space can be drawn"))
    _check_pairings(opened.space, candidates, report)
    costs = _Costs()
    for candidate in candidates:
        with report.shapes_of(candidate, costs):
            costs.values.append(candidate.costs)
            candidate.check()
            costs.feasible += 1
    for issue in proxy_signature_issues(opened.settings.search, signature):
        report.add(issue)
    checked = [each for each in candidates if each.has_inputs]
    _run_checks([(each.study, each.origins) for each in checked], signature, checks, report)
    report.raise_if_any()
    if not costs.feasible:
        _search_feasible(bound, costs)
    if not costs.feasible:
        for issue in costs.issues(opened.settings.search):
            report.add(issue)
        report.raise_if_any()


def check_data(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Check that the data are available (a `Check`)."""
    reason = _missing_data(study.data)
    if reason:
        yield Problem(reason, path="data")


@lru_cache(maxsize=64)
def _missing_data(source: Source) -> str:
    try:
        source.check()
        if source.unlabeled is not None:
            check_unlabeled(source.unlabeled)
    except ValueError as error:
        return str(error)
    return ""


class _IssueCollector:
    """Collects the problems of a study, each once."""

    def __init__(
        self,
        document: Document,
        problems: Iterable[Problem] = (),
        broken: frozenset[Place] = frozenset(),
    ) -> None:
        self.document = document
        self.broken = broken
        self.problems = dict.fromkeys(problems)

    def add(self, issue: Issue, origins: Mapping[Place, Place] | None = None) -> None:
        """Add an issue of a concrete study whose values come from `origins`."""
        place = issue.place
        if any(place[: len(broken)] == broken for broken in self.broken):
            return
        source = place if origins is None else _source(place, origins)
        message = issue.message + _as_written(self.document.get(source))
        fix = issue.fix or _spelled(self.document.spelled.get(source))
        self.problems[self.document.problem(source, message, fix, dotted(place))] = None

    def once(self, issue: Issue, origins: Mapping[Place, Place]) -> None:
        """As `add`, but only the first for its place: others differ only in shapes."""
        if all(problem.path != dotted(issue.place) for problem in self.problems):
            self.add(issue, origins)

    def note(self, problem: Problem | str, origins: Mapping[Place, Place]) -> None:
        """Add a problem of a check; without a file, it gets the line of its path."""
        if isinstance(problem, str):
            problem = Problem(problem)
        if problem.file or not problem.path:
            self.problems[problem] = None
        else:
            self.add(Issue(parse_place(problem.path), problem.message, problem.fix), origins)

    @contextmanager
    def shapes_of(self, candidate: Candidate, costs: _Costs) -> Iterator[None]:
        """Add the reason why a candidate is infeasible: an error in the study, or of one draw."""
        try:
            yield
        except Infeasible as error:
            costs.reasons[str(error)] += 1
        except PairError as error:
            if _is_drawn(error.place, candidate.origins):
                costs.reasons[str(error)] += 1
            else:
                self.once(Issue(error.place, error.message, error.fix), candidate.origins)
        except ModelError as error:
            self.once(Issue(error.place, error.message), candidate.origins)

    def raise_if_any(self) -> None:
        if not self.problems:
            return
        problems = sorted(self.problems, key=lambda problem: problem.line)
        more = len(problems) - MOST_PROBLEMS
        if more > 0:
            file = self.document.file
            problems = [*problems[:MOST_PROBLEMS], Problem(f"and {more} more problems", file=file)]
        raise StudyError(problems)


def _source(place: Place, origins: Mapping[Place, Place]) -> Place:
    """Place in the document of a place in a concrete study."""
    for length in range(len(place), -1, -1):
        if place[:length] in origins:
            return (*origins[place[:length]], *place[length:])
    return place


def _as_written(value: Any) -> str:
    """Note for a value that is the end of a range."""
    kind = next((kind for kind in NUMBERS if isinstance(value, dict) and kind in value), None)
    return f" (an end of {{{kind}: {value[kind]}}})" if kind is not None else ""


def _spelled(written: str | None) -> str:
    """Fix for text that YAML reads as true or false."""
    return (
        f'`{written}` is read as true or false; text needs quotes: "{written}"' if written else ""
    )


def _typed(space: Space, report: _IssueCollector) -> Iterator[tuple[Point, Study]]:
    """Yield the corners as studies; invalid ones go to the report."""
    for point in space.sketched.corners():  # stages are unknown before the shape of the data
        try:
            yield point, parse_study(point.data)
        except InvalidStudy as error:
            for issue in (*error.issues, *_search_alone(error.data)):
                report.add(issue, point.origins)


def _refuse_imports(studies: Iterable[tuple[Point, Study]], report: _IssueCollector) -> None:
    """Refuse models that run custom code before any model is built."""
    refused = [(issue, point) for point, study in studies for issue in import_issues(study)]
    for issue, point in refused:
        report.add(issue, point.origins)
    if refused:
        report.raise_if_any()


def _search_alone(data: Any) -> Iterator[Issue]:
    """Issues of the `search` part of a study that is invalid elsewhere."""
    try:
        search = TypeAdapter(Search).validate_python(data.get("search") or {})
    except ValidationError:
        return
    yield from search_issues(search)


def _space_issues(document: Document, space: Space, studies: list[Study]) -> Iterator[Issue]:
    teachers = space.part("teacher").size.combinations
    if teachers > MOST_TEACHERS:
        message = f"{teachers} different teachers; a study trains at most {MOST_TEACHERS}"
        yield Issue(("teacher",), message, "leave less of the teacher open")
    if not studies:
        return
    first = studies[0]
    yield from proxy_space_issues(space, first.search)
    inputs = {study.student.input for study in studies}
    if len(inputs) > 1 and isinstance(first.search.proxy, RankingProxy):
        yield open_input_issue(first)
    continuous = [dimension for dimension in space.dimensions if "uniform" in dimension.kind]
    if first.search.sampler.needs_finite_space and space.size.points is None:
        names = ", ".join(dimension.name for dimension in continuous)
        fix = "give `uniform` a `step`, list the values, or use another sampler"
        message = f"'{first.search.sampler.name}' cannot list continuous values: {names}"
        yield Issue(("search", "sampler"), message, fix)
    yield from _open_recipes(
        [dimension.path for dimension in space.part("train").dimensions], studies
    )
    numbers = [each for each in space.dimensions if each.kind in NUMBERS and not each.when]
    if first.search.sampler.needs_numbers and not numbers:
        message = f"'{first.search.sampler.name}' learns only numbers that all trials have"
        fix = "leave such a number open, or use another sampler"
        yield Issue(("search", "sampler"), f"{message}; this space has none", fix)
    unknown = [s for s in studies if s.teacher is not None and s.teacher.model is None]
    for pairing in space.pairings if unknown else ():
        hint = pairing.domain.hint
        if not pairing.domain.is_known and isinstance(hint, str):
            message = f"`hint: {hint}` needs the teacher's `model`; there are only `weights`"
            fix = "name the teacher's `model`, or list its layers: `hint: [...]`"
            yield Issue(pairing.source, message, fix)


def _order_issues(space: Space, point: Point, study: Study) -> Iterator[Issue]:
    """Issues of pairings in reverse order under losses that go from shallow to deep."""
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
            fix = "write `order: monotone`, or use a loss that compares pairs one by one"
            yield Issue((*source, "pairing", "order"), message, fix)


def _open_recipes(open_train: list[str], studies: list[Study]) -> Iterator[Issue]:
    """Issues of shared networks whose training would differ from trial to trial."""
    differs = f"but {', '.join(open_train)} differs from trial to trial"
    if open_train and any(_trained_alike(study) for study in studies):
        message = f"without `teacher.train`, the teacher is trained like the student, {differs}"
        yield Issue(("teacher",), message, "add `train: {...}` to the teacher")
        return
    for study in studies if open_train else ():
        for prepared in teacher_chain(study.teacher_specs()):
            if prepared.is_shared and prepared.is_trained and prepared.train == study.train:
                message = f"a network that trials share is trained like the student, {differs}"
                yield Issue(("scheme",), message, "add `train: {...}` to it")


def _trained_alike(study: Study) -> bool:
    """Return whether the teacher is trained with the settings of the student."""
    teacher = study.teacher
    return teacher is not None and teacher.is_trained and teacher.train is None


def _report_failing_models(bound: BoundStudy, report: _IssueCollector) -> None:
    """Report models that cannot be built: without one there are no stages to pair.

    Raises:
        StudyError: there are such models.
    """
    for candidate in bound.sketches():
        try:
            _ = candidate.student
        except ModelError as error:
            report.once(Issue(error.place, error.message), candidate.origins)
    report.raise_if_any()


def _check_pairings(space: Space, candidates: Iterable[Candidate], report: _IssueCollector) -> None:
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
    other_models: list[ModelProfile],
    report: _IssueCollector,
) -> None:
    for place, name in pairing.domain.written(side):
        reasons = [reason for model in models if (reason := _lacks(model, name))]
        if models and len(reasons) == len(models):
            role = "student" if side == "guided" else "teacher"
            issue = Issue((*pairing.source, "pairing", *place), f"{role}: {reasons[0]}")
            elsewhere = any(not _lacks(model, name) for model in other_models)
            report.add(replace(issue, fix=other_side_hint(side)) if elsewhere else issue)


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

    def issues(self, search: Search) -> Iterator[Issue]:
        """Yield the reasons why no candidate is feasible: constraints out of reach, or others."""
        unmet = [
            Issue(("search", "constraints", cost), *problem)
            for cost, bounds in search.constraints.items()
            if (problem := self._unmet(cost, bounds)) is not None
        ]
        yield from unmet
        if not unmet:
            reason = self.reasons.most_common(1)[0][0] if self.reasons else "unknown"
            message = (
                f"none of {self.reasons.total()} random points can be a trial; the most frequent"
            )
            yield Issue((), f"{message} reason: {reason}")

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
    """Return whether the pairs of the term at `place` were drawn from a pairing domain."""
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
    signature: Signature | None,
    checks: Iterable[Check],
    report: _IssueCollector,
) -> None:
    for check in checks:
        for study, origins in studies:
            for problem in islice(check(study, signature), MOST_PROBLEMS):
                report.note(problem, origins)
