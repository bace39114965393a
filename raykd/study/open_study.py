"""A study with its domains open: what it holds fixed, what can be drawn from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from raykd.errors import Infeasible, StudyError
from raykd.html_card import Card
from raykd.losses import Loss
from raykd.models import ModelProfile, Task, model_profile
from raykd.schemes import Teacher
from raykd.study.candidate import Candidate, pairing_losses
from raykd.study.checks.layer_pairs import Met, Narrowed, layers_for, narrowed
from raykd.study.checks.messages import InvalidStudy, parse_study
from raykd.study.config import Study, plain, read_study
from raykd.study.json_schema import study_outline
from raykd.study.space.domains import domain_kind
from raykd.study.space.sampling import Scalar, Seeded, Suggest
from raykd.study.space.size import Dimension, Size
from raykd.study.space.space import Point, Space
from raykd.study.yaml_file import Document, Place, dotted, parse_place

PRIVATE = ("tracking",)
"""Parts that `flat` leaves out: they describe no trial, and an address may hold a password."""

_ALIKE = re.compile(r"knowledge\[\d+\]\.pairs\[\d+\]\.(weight|loss)")


@dataclass(frozen=True, repr=False)
class OpenStudy:
    """A study file, read and checked; see `raykd.study.checks.load.load_study`.

    Attributes:
        document: the file as plain data, its `--set` overrides put in.
        space: what may be drawn, `auto` in its pairings not yet known.
        settings: a concrete study, for the parts that no domain may touch: name, seed, data
            (but its augmentation), search, cluster, cache, tracking.
    """

    document: Document
    space: Space
    settings: Study
    _bound: dict[Task, BoundStudy] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __repr__(self) -> str:
        file = f", {self.document.file}" if self.document.file else ""
        count = len(self.dimensions)
        return f"OpenStudy({self.settings.name!r}, {count} parameter{'s' * (count != 1)}{file})"

    def _repr_html_(self) -> str:
        """The study as a card, for notebooks."""
        return study_card(self).html()

    @property
    def given(self) -> str:
        """The study file as it was read."""
        return self.document.text

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set` arguments."""
        return self.document.overrides

    @property
    def task(self) -> Task | None:
        """What the models must take and give, where that is known without reading the data."""
        return task_of(self.settings)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The parameters a sampler sees."""
        return self._known_space.dimensions

    @property
    def size(self) -> Size:
        return self._known_space.size

    @property
    def is_concrete(self) -> bool:
        """Whether nothing is left open."""
        return not self.dimensions

    @property
    def _known_space(self) -> Space:
        return self.space if self.task is None else self.bind(self.task).space

    def bind(self, task: Task) -> BoundStudy:
        """The study bound to the task of its data; the same object for the same task."""
        if task not in self._bound:
            self._bound[task] = BoundStudy(self, task)
        return self._bound[task]

    def concrete(self) -> Study:
        """The study itself, its pairs as they were written.

        Raises:
            StudyError: some of its values are open; names them.
        """
        if self.is_concrete:
            return self.settings
        raise StudyError(
            [
                self.document.problem(
                    _place_of_domain(self.document.data, dimension.path),
                    f"left open: {dimension.text}",
                    f"give one value: --set '{dimension.path}=...'",
                    dimension.path,
                )
                for dimension in _one_a_path(self.dimensions)
            ]
        )

    def teachers(self) -> tuple[Teacher, ...]:
        """The teacher's distinct concrete variants; () where the study has none."""
        rest = plain(self.settings)
        found: list[Teacher] = []
        for point in self.space.part("teacher").points():
            part = study_outline().expanded(point.data).get("teacher")
            teacher = read_study({**rest, "teacher": part}).teacher
            if teacher is not None and teacher not in found:
                found.append(teacher)
        return tuple(found)

    def flat(self, study: Study) -> dict[str, Scalar]:
        """A concrete study's values by their path, defaults included, `tracking` left out.

        What is chosen by name stands under its place, as a sampler's parameters do:
        `knowledge[0].loss` = "kd" beside `knowledge[0].loss.temperature`.  Null is "none"; a list
        of scalars is one text.  A pair's weight and loss are left out where it has none of its own.
        """
        return {
            path: value
            for key, part in plain(study).items()
            if key not in PRIVATE
            for path, value in _flat(part, (key,))
            if not _ALIKE.fullmatch(path) or value not in (1, "none")
        }

    def resolved(self, study: Study | None = None) -> dict[str, Any]:
        """A concrete study as plain data, defaults included.

        Without an argument, this study: its defaults filled in, its domains as they are written.
        """
        if study is not None:
            return plain(study)
        return _filled(study_outline().expanded(self.document.data), plain(self.settings))

    def models(self, part: str) -> Iterable[Any]:
        """The models that may stand in a part of the study, as far as they can be read."""
        rest = plain(self.settings)
        for point in self.space.part(part).sketched.corners():
            try:
                study = read_study({**rest, **study_outline().expanded(point.data)})
            except ValidationError:
                continue
            owner = study.student if part == "student" else study.teacher
            if owner is not None and owner.model is not None:
                yield owner.model


@dataclass(frozen=True, eq=False, repr=False)
class BoundStudy:
    """An open study bound to the task of its data: its layers are known, so it can be drawn from.

    Attributes:
        open_study: the study, its domains open.
        task: input shape and classes of its models.
    """

    open_study: OpenStudy
    task: Task

    @property
    def space(self) -> Space:
        """The space with the layers of its pairings named.

        `auto` becomes the stages of the student, or teacher, that has most of them.  Pairs of
        layers that no loss can compare are left out (`narrowed` says which).
        """
        return self.narrowed.space

    @cached_property
    def narrowed(self) -> Narrowed:
        """The space, with the pairs that were left out of it and the reasons."""
        space = self.open_study.space
        if not space.pairings:
            return Narrowed(space)
        students = list(_profiles(self.open_study.models("student"), self.task))
        teachers = list(_profiles(self.open_study.models("teacher"), self.task))
        guided = layers_for(students)
        hint = layers_for(teachers) if teachers else guided
        return narrowed(space.with_layers(hint, guided), self._met)

    @property
    def _met(self) -> Met:
        """The models and losses that the space brings together, as far as they can be read."""
        students: dict[int, ModelProfile] = {}
        teachers: dict[int, ModelProfile] = {}
        losses: dict[Place, dict[str, set[Loss]]] = {}
        for candidate in self.sketches():
            try:
                student, profiles = candidate.student, candidate.teacher_profiles
            except ValueError:
                continue
            students[id(student)] = student
            own = () if candidate.study.scheme.needs_teacher else (student,)
            teachers |= {id(one): one for one in (profiles or own) if one is not None}
            for source, name, of_pairs in pairing_losses(candidate.study, candidate.origins):
                losses.setdefault(source, {}).setdefault(name, set()).update(of_pairs)
        frozen = {
            source: {name: frozenset(of_pairs) for name, of_pairs in by_name.items()}
            for source, by_name in losses.items()
        }
        return Met([*students.values()], [*teachers.values()], frozen, self.task.classes)

    def candidate(self, study: Study) -> Candidate:
        """A concrete study with the facts of this task; networks that trials share keep the open
        study's seed."""
        return Candidate(study, self.task, self.open_study.settings.seed)

    def read(self, point: Point) -> Candidate:
        """A drawn point, its pairs not yet resolved.

        Raises:
            InvalidStudy: a ValueError; its values cannot stand together.
        """
        study = parse_study(point.data)
        return Candidate(study, self.task, self.open_study.settings.seed, point.origins)

    def corners(self) -> Iterator[Candidate]:
        """Candidates with every branch and both ends of every range; their pairs are not yet
        resolved, and not all of them need be feasible."""
        return self._readable(self.space)

    def sketches(self) -> Iterator[Candidate]:
        """As `corners`, with invented stages in the pairings whose layers only the models tell."""
        return self._readable(self.open_study.space.sketched)

    def _readable(self, space: Space) -> Iterator[Candidate]:
        for point in space.corners():
            try:
                yield self.read(point)
            except InvalidStudy:
                continue

    def draw(self, suggest: Suggest) -> Candidate:
        """One candidate, its layer pairs resolved, within the study's constraints.

        Args:
            suggest: answers for the open values: an `optuna.Trial`, or one of `study.suggest`.

        Raises:
            Infeasible: the drawn values cannot be a trial, with the reason.
        """
        return self.fit(self.space.draw(suggest))

    def sample(self, seed: int) -> Candidate:
        """A random candidate, the same for the same seed.

        Raises:
            Infeasible: none of 200 draws is feasible; gives the most frequent reason.
        """
        reasons: Counter[str] = Counter()
        for draw in range(200):
            try:
                return self.draw(Seeded(1000 * seed + draw))
            except Infeasible as error:
                reasons[str(error)] += 1
        raise Infeasible(reasons.most_common(1)[0][0])

    def fit(self, point: Point) -> Candidate:
        """A drawn point as a checked candidate.

        Raises:
            Infeasible: the point cannot be a trial, with the reason.
        """
        try:
            candidate = self.read(point)
            candidate.check()
        except Infeasible:
            raise
        except ValueError as error:
            raise Infeasible(str(error)) from None
        return candidate


def study_card(study: OpenStudy) -> Card:
    """A study for notebooks: its parts, its parameters and the size of its space."""
    settings = study.settings
    search = settings.search
    card = Card(f"study {settings.name}", study.document.file or "")
    points = study.size.points
    card.facts(
        [
            ("data", settings.data.name),
            ("teacher", ", ".join(_model_names(study.models("teacher")))),
            ("students", ", ".join(_model_names(study.models("student")))),
            ("objectives", ", ".join(f"{way} {name}" for name, way in search.objectives.items())),
            ("search", f"{search.sampler}, up to {search.trials} trials"),
            ("epochs", f"{settings.train.epochs} a trial"),
            ("space", "infinite" if points is None else f"{points:,} points"),
        ]
    )
    rows = [(each.path, each.kind, each.text, each.when) for each in study.dimensions]
    card.table("Parameters", ("parameter", "domain", "values", "drawn when"), rows)
    return card


def _model_names(models: Iterable[Any]) -> list[str]:
    """Distinct names of models, in their order."""
    return list(dict.fromkeys(str(model.name) for model in models))


def task_of(study: Study) -> Task | None:
    """What the models must take and give, where that is known without reading the data.

    Raises:
        ValueError: the data source says that it cannot be had.
    """
    shape = study.data.task_shape()
    return None if shape is None or shape[1] < 1 else Task(*shape)


def _profiles(models: Iterable[Any], task: Task) -> Iterator[ModelProfile]:
    for model in models:
        try:
            yield model_profile(model, task)
        except (ValueError, RuntimeError):
            continue


def _one_a_path(dimensions: Sequence[Dimension]) -> list[Dimension]:
    by_path: dict[str, Dimension] = {}
    for dimension in dimensions:
        path = dimension.path.partition(".pairs[")[0] + ".pairs" * (".pairs[" in dimension.path)
        by_path.setdefault(path, replace(dimension, path=path))
    return list(by_path.values())


def _place_of_domain(data: Any, path: str) -> Place:
    """Where the document writes the domain for a concrete path, or the choice that holds it."""
    place: list[str | int] = []
    for step in parse_place(path):
        if domain_kind(data) is not None or not isinstance(data, list | Mapping):
            break
        place.append(step)
        data = data[step]  # type: ignore[index]
    return tuple(place)


def _flat(value: Any, place: Place) -> Iterable[tuple[str, Scalar]]:
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _flat(held, place if key == "name" else (*place, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, held in enumerate(value):
            yield from _flat(held, (*place, i))
    elif isinstance(value, list):
        yield dotted(place), "[" + ", ".join(map(str, value)) + "]"
    else:
        yield dotted(place), "none" if value is None else value


def _filled(written: Any, full: Any) -> Any:
    """`written` with what it leaves out taken from `full`; domains stay as they are."""
    if not isinstance(written, Mapping) or not isinstance(full, Mapping):
        return written
    if domain_kind(written) is not None:
        return dict(written)
    return {
        **{key: value for key, value in full.items() if key not in written},
        **{key: _filled(value, full.get(key)) for key, value in written.items()},
    }
