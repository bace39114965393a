"""Studies with open values: loaded (`OpenStudy`), and bound to the signature of their data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from raykd.errors import Infeasible, StudyError
from raykd.losses import Loss
from raykd.models import ModelProfile, Signature, profile_model
from raykd.schemes import Teacher
from raykd.study.candidate import Candidate, pairing_losses
from raykd.study.checks.layer_pairs import (
    FilteredSpace,
    SpaceModels,
    aligned_inputs,
    filter_pairs,
    layers_for,
)
from raykd.study.checks.messages import InvalidStudy, parse_study
from raykd.study.config import Study, plain, read_study
from raykd.study.json_schema import study_outline
from raykd.study.space.domains import domain_kind
from raykd.study.space.sampling import Scalar, Seeded, Suggest
from raykd.study.space.size import Dimension, Size
from raykd.study.space.space import Point, Space
from raykd.study.yaml_file import Document, Json, Place, dotted, parse_place
from raykd.user_code import UserCode

PRIVATE = ("tracking", "task")
"""Parts that `flat` omits: they do not describe the trial, and a URI may contain a password."""

_ALIKE = re.compile(r"knowledge\[\d+\]\.pairs\[\d+\]\.(weight|loss)")


@dataclass(frozen=True, repr=False)
class OpenStudy:
    """A loaded and checked study file (`load_study`).

    Attributes:
        document: the file as plain data, with its `--set` overrides.
        space: the fixed and open values; `auto` in pairings is not yet resolved.
        settings: a concrete study, for the parts without domains: name, seed, data (without
            augmentation), search, cluster, cache, tracking.
        runs_code: whether its models, or teachers in MLflow, run code of the user.
        code: files of code that it names.
    """

    document: Document
    space: Space
    settings: Study
    runs_code: bool = False
    code: UserCode | None = None
    _bound: dict[Signature, BoundStudy] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __repr__(self) -> str:
        file = f", {self.document.file}" if self.document.file else ""
        count = len(self.dimensions)
        return f"OpenStudy({self.settings.name!r}, {count} parameter{'s' * (count != 1)}{file})"

    def _repr_html_(self) -> str:
        """Return the study as a card, for notebooks."""
        from raykd.study.explain import study_card  # it imports this module

        return study_card(self).html()

    @property
    def text(self) -> str:
        """Content of the study file."""
        return self.document.text

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set` arguments."""
        return self.document.overrides

    @property
    def signature(self) -> Signature | None:
        """Input shape and classes of the models; None if unknown before the data are read."""
        return signature_of(self.settings)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The parameters of the samplers."""
        return self._known_space.dimensions

    @property
    def size(self) -> Size:
        return self._known_space.size

    @property
    def is_concrete(self) -> bool:
        """True if no value is left open."""
        return not self.dimensions

    @property
    def _known_space(self) -> Space:
        return self.space if self.signature is None else self.bind(self.signature).space

    def bind(self, signature: Signature) -> BoundStudy:
        """Return the study bound to a signature; the same object for the same signature."""
        if signature not in self._bound:
            self._bound[signature] = BoundStudy(self, signature)
        return self._bound[signature]

    def concrete(self) -> Study:
        """Return the study itself, for a study without open values.

        Raises:
            StudyError: names the open values.
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
        """Return the distinct variants of the teacher; () if the study has no teacher."""
        rest = plain(self.settings)
        teachers: list[Teacher] = []
        for point in self.space.part("teacher").points():
            part = study_outline().expanded(point.data).get("teacher")
            teacher = read_study({**rest, "teacher": part}).teacher
            if teacher is not None and teacher not in teachers:
                teachers.append(teacher)
        return tuple(teachers)

    def flat(self, study: Study) -> dict[str, Scalar]:
        """Values of a concrete study by their path, including defaults, without `tracking`.

        The name of an option has the path of the option, as for samplers: `knowledge[0].loss` =
            "kd"
        and `knowledge[0].loss.temperature`.  Null is "none"; a list of scalars is one text.  Weight
        and loss of a pair are omitted if they are the defaults.
        """
        return {
            path: value
            for key, part in plain(study).items()
            if key not in PRIVATE
            for path, value in _flat(part, (key,))
            if not _ALIKE.fullmatch(path) or value not in (1, "none")
        }

    def resolved(self, study: Study | None = None) -> dict[str, Any]:
        """Return a concrete study as plain data, including defaults.

        Without an argument, this study with its defaults filled in and its domains as written.
        """
        if study is not None:
            return plain(study)
        return filled(study_outline().expanded(self.document.data), plain(self.settings))

    def models(self, part: str) -> Iterable[Any]:
        """Yield the models that a part of the study ("teacher", "student") allows."""
        for model, _ in self.networks(part):
            yield model

    def networks(self, part: str) -> Iterator[tuple[Any, str | None]]:
        """Yield the models that a part of the study allows, each with the input that it takes."""
        rest = plain(self.settings)
        for point in self.space.part(part).sketched.corners():
            try:
                study = read_study({**rest, **study_outline().expanded(point.data)})
            except ValidationError:
                continue
            owner = study.student if part == "student" else study.teacher
            if owner is not None and owner.model is not None:
                yield owner.model, owner.input


@dataclass(frozen=True, eq=False, repr=False)
class BoundStudy:
    """An open study bound to the signature of its data: its layers are available for draws.

    Attributes:
        open_study: the study, its domains open.
        signature: input shape and classes of its models.
    """

    open_study: OpenStudy
    signature: Signature

    @property
    def space(self) -> Space:
        """The space with the layers of its pairings named.

        `auto` becomes the stages of the student, or teacher, that has most of them.  Pairs of
        layers that no loss can compare are left out (`filtered` lists them).
        """
        return self.filtered.space

    @cached_property
    def filtered(self) -> FilteredSpace:
        """The space, with the pairs that were left out of it and the reasons."""
        space = self.open_study.space
        if not space.pairings:
            return FilteredSpace(space)
        students = list(_profiles(self.open_study.networks("student"), self.signature))
        teachers = list(_profiles(self.open_study.networks("teacher"), self.signature))
        guided = layers_for(students)
        hint = layers_for(teachers) if teachers else guided
        return filter_pairs(space.with_layers(hint, guided), self._models)

    @property
    def _models(self) -> SpaceModels:
        """The models and losses of the space, as far as they can be built."""
        students: dict[int, ModelProfile] = {}
        teachers: dict[int, ModelProfile] = {}
        losses: dict[Place, dict[str, set[Loss]]] = {}
        aligned = set()
        for candidate in self.sketches():
            try:
                student, profiles = candidate.student, candidate.teacher_profiles
            except ValueError:
                continue
            students[id(student)] = student
            aligned |= {aligned_inputs(candidate.study, each.input) for each in candidate.teachers}
            students_only = () if candidate.study.scheme.needs_teacher else (student,)
            teachers |= {
                id(profile): profile
                for profile in (profiles or students_only)
                if profile is not None
            }
            for source, name, of_pairs in pairing_losses(candidate.study, candidate.origins):
                losses.setdefault(source, {}).setdefault(name, set()).update(of_pairs)
        frozen = {
            source: {name: frozenset(of_pairs) for name, of_pairs in by_name.items()}
            for source, by_name in losses.items()
        }
        return SpaceModels(
            [*students.values()],
            [*teachers.values()],
            frozen,
            self.signature.classes,
            aligned=aligned != {False},
        )

    def candidate(self, study: Study) -> Candidate:
        """Bind a concrete study; shared networks use the seed of the open study."""
        return Candidate(study, self.signature, self.open_study.settings.seed)

    def read(self, point: Point) -> Candidate:
        """Read a drawn point, its pairs not yet resolved.

        Raises:
            InvalidStudy: a ValueError; its values are not valid together.
        """
        study = parse_study(point.data)
        return Candidate(study, self.signature, self.open_study.settings.seed, point.origins)

    def corners(self) -> Iterator[Candidate]:
        """Yield candidates that cover every branch and both ends of every range.

        Their pairs are not yet resolved, and some may be infeasible.
        """
        return self._readable(self.space)

    def sketches(self) -> Iterator[Candidate]:
        """As `corners`, with invented stages for layers that only the models determine."""
        return self._readable(self.open_study.space.sketched)

    def _readable(self, space: Space) -> Iterator[Candidate]:
        for point in space.corners():
            try:
                yield self.read(point)
            except InvalidStudy:
                continue

    def draw(self, suggest: Suggest) -> Candidate:
        """Draw a candidate within the study's constraints.

        Args:
            suggest: gives the open values: an `optuna.Trial`, or a class of `study.suggest`.

        Raises:
            Infeasible: the drawn values cannot be a trial, with the reason.
        """
        return self.fit(self.space.draw(suggest))

    def sample(self, seed: int) -> Candidate:
        """Draw a random candidate, the same for the same seed.

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
        """Read and check a drawn point.

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


def signature_of(study: Study) -> Signature | None:
    """Input shape and classes of the models; None if unknown before the data are read.

    Raises:
        ValueError: the data source is not available.
    """
    shape = study.data.declared_shape()
    kind = study.learning_task.kind
    if shape is None or shape[1] < 1:
        return None
    return Signature(*shape, dense=kind == "dense", boxes=kind == "boxes")


def _profiles(
    networks: Iterable[tuple[Any, str | None]], signature: Signature
) -> Iterator[ModelProfile]:
    for model, input_name in networks:
        try:
            yield profile_model(model, signature.as_input(input_name))
        except (ValueError, RuntimeError):
            continue


def _one_a_path(dimensions: Sequence[Dimension]) -> list[Dimension]:
    by_path: dict[str, Dimension] = {}
    for dimension in dimensions:
        path = dimension.path.partition(".pairs[")[0] + ".pairs" * (".pairs[" in dimension.path)
        by_path.setdefault(path, replace(dimension, path=path))
    return list(by_path.values())


def _place_of_domain(data: Json, path: str) -> Place:
    """Place in the document of the domain of a path, or of the choice that contains it."""
    place: list[str | int] = []
    for step in parse_place(path):
        if domain_kind(data) is not None or not isinstance(data, list | Mapping):
            break
        place.append(step)
        data = data[step]  # type: ignore[index]
    return tuple(place)


def _flat(value: Json, place: Place) -> Iterable[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, place if key == "name" else (*place, key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, child in enumerate(value):
            yield from _flat(child, (*place, i))
    elif isinstance(value, list):
        yield dotted(place), "[" + ", ".join(map(str, value)) + "]"
    else:
        yield dotted(place), "none" if value is None else value


def filled(written: Mapping[str, Json], full: Mapping[str, Json]) -> dict[str, Json]:
    """Return `written` with missing values taken from `full`; domains are kept."""
    if domain_kind(written) is not None:
        return dict(written)
    merged = {key: value for key, value in full.items() if key not in written}
    for key, value in written.items():
        default = full.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            merged[key] = filled(value, default)
        else:
            merged[key] = value
    return merged
