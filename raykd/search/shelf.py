"""Where the networks that teach are kept: below the storage, found by their content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from raykd.architecture import Model, Task
from raykd.architecture.delivered import expecting
from raykd.architecture.normalization import METADATA, Normalization, to_metadata
from raykd.architecture.weight_files import weight_parts
from raykd.problems import Problem, StudyError
from raykd.schemes import Preparation, Teacher
from raykd.study.models import models_in
from raykd.study.opened import OpenStudy
from raykd.study.place import Place, dotted
from raykd.study.schema import Study
from raykd.study.teachers import everyone_behind, teachers_of
from raykd.training.checkpoint import dump_object, dump_weights, metadata_of, with_metadata
from raykd.training.loading import check_file, load_prepared, reorder_network
from raykd.training.storage import Storage
from raykd.training.teacher import (
    normalization_notes,
    normalization_of,
    own_teacher,
    preparation_key,
)


class Shelf:
    """The networks that teach in a study, and in every other with the same storage.

    Args:
        settings: the study's fixed parts.
        fingerprint: of its data.
        storage: where the files are.
        task: inputs and classes of the data; None: networks are kept as they come.

    Attributes:
        notes: sentences on what was done to networks that were fetched, until they are taken.
    """

    def __init__(
        self, settings: Study, fingerprint: str, storage: Storage, task: Task | None = None
    ) -> None:
        self.notes: list[str] = []
        self._task = task
        self._settings = settings
        self._fingerprint = fingerprint
        self._storage = storage
        self._there: set[str] = set()

    def file(self, prepared: Preparation) -> str:
        """A network's file below the storage; the same for the same content."""
        names = self._task.class_names if self._task is not None else ()
        key = preparation_key(prepared, self._settings, self._fingerprint, names)
        return f"teachers/{key}.{'pt' if prepared.is_mlflow else 'safetensors'}"

    def has(self, file: str) -> bool:
        """Whether a file is there; what was there once is not asked for again."""
        if file not in self._there and self._storage.exists(file):
            self._there.add(file)
        return file in self._there

    def note(self, file: str) -> None:
        """A training has just put this file there."""
        self._there.add(file)

    def fetch(self, prepared: Preparation) -> None:
        """Put a network that is loaded, not trained, on the shelf.

        The notes on a whole network lie beside it, for later studies that read it.

        Raises:
            StudyError: its weights cannot be read.
        """
        file = self.file(prepared)
        if prepared.weights is None:
            return
        beside = file.removesuffix(".pt") + ".notes"
        if not self.has(file):
            before = len(self.notes)
            content = self._content(prepared)
            if len(self.notes) > before:
                self._storage.create(beside, "\n".join(self.notes[before:]).encode())
            self._storage.create(file, content)
        elif prepared.is_mlflow:
            self.notes += (self._storage.read(beside) or b"").decode().splitlines()

    def take_notes(self) -> str:
        """The notes so far, a line each; they are given once."""
        text = "\n".join(dict.fromkeys(self.notes))
        self.notes.clear()
        return text

    def _content(self, prepared: Preparation) -> bytes:
        assert prepared.weights is not None
        try:
            if prepared.is_mlflow:
                return self._whole(prepared)
            return with_normalization(self._weights(prepared), normalization_of(prepared))
        except (OSError, ValueError) as error:
            what = f"the teacher's weights {prepared.weights} cannot be read: {error}"
            raise StudyError(Problem(what, path="teacher.weights")) from None

    def _weights(self, prepared: Preparation) -> bytes:
        assert prepared.weights is not None
        if self._task is None:
            return Path(prepared.weights).expanduser().read_bytes()
        loaded = load_prepared(prepared, self._task)
        if loaded.is_as_read:
            return weight_parts(prepared.weights)[0].read_bytes()
        return dump_weights(loaded.network, dict(loaded.metadata))

    def _whole(self, prepared: Preparation) -> bytes:
        """A network that MLflow keeps, its outputs in the order of the data."""
        from raykd.tracking.models import load_model_uri

        uri = self._settings.tracking.uri
        network = load_model_uri(str(prepared.weights), tracking_uri=uri).cpu().eval()
        if self._task is not None:
            self.notes += reorder_network(network, prepared, self._task)
        network = expecting(network, prepared.normalization)
        return dump_object(network)


def with_normalization(content: bytes, normalization: Normalization | None) -> bytes:
    """The bytes of a safetensors file that say which normalization its network expects.

    Args:
        content: of any safetensors file.
        normalization: None: the data's own.
    """
    metadata = metadata_of(content)
    if normalization is None and METADATA not in metadata:
        return content
    kept = {key: value for key, value in metadata.items() if key != METADATA}
    return with_metadata(content, kept | (to_metadata(normalization) if normalization else {}))


def check_teacher_weights(study: Study, task: Task | None) -> Iterator[Problem]:
    """A `Check`: whether each teacher's file of weights is there and holds its model's weights."""
    yield from _normalization_problems(study, task)
    own = study.teacher
    for teacher in _from_files(study):
        found = _file(teacher, task) if task is not None else None
        if found is not None and found.problem:
            path = "teacher.weights" if own and teacher.weights == own.weights else "scheme"
            yield Problem(found.problem, path=path)


def check_started_models(study: Study, task: Task | None) -> Iterator[Problem]:
    """A `Check`: whether the files that models start from hold their weights; downloads nothing."""
    for place, model in _starting(study) if task is not None else ():
        assert task is not None
        problem = _started(model, task, task.class_names).problem
        if problem:
            yield Problem(problem, path=dotted(place))


@dataclass(frozen=True)
class Remarks:
    """What is said of the weights that a study loads, in sentences.

    Attributes:
        notes: what was done to them.
        warnings: what may make results wrong.
        problem: why they cannot be loaded; empty if they can.
    """

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""


def remarks_on_weights(study: OpenStudy, task: Task) -> Remarks:
    """All remarks on the weights that a study's teachers and models load from files.

    Raises:
        StudyError: they cannot be loaded.
    """
    if not re.search(r"weights|pretrained", str(study.document.data)):
        return Remarks()
    notes: dict[str, None] = {}
    warnings: dict[str, None] = {}
    for candidate in study.bind(task).corners():
        concrete = candidate.study
        problems = [*check_teacher_weights(concrete, task), *check_started_models(concrete, task)]
        if problems:
            raise StudyError(problems)
        found = [_file(teacher, task) for teacher in _from_files(concrete)]
        found += [_started(model, task, task.class_names) for _, model in _starting(concrete)]
        for where, prepared in _prepared(concrete):
            found.append(Remarks(*normalization_notes(prepared, where, task)))
        for one in found:
            notes |= dict.fromkeys(one.notes)
            warnings |= dict.fromkeys(one.warnings)
    return Remarks(tuple(notes), tuple(warnings))


def _from_files(study: Study) -> list[Teacher]:
    """The teachers whose weights are files."""
    named = [] if study.teacher is None else [study.teacher]
    named += [one.as_teacher for one in everyone_behind(teachers_of(study))]
    return [one for one in named if one.weights and one.model and not one.is_mlflow]


def _starting(study: Study) -> list[tuple[Place, Model]]:
    """The models whose networks start from files that are here, each with its place."""
    filled = {teacher.model for teacher in _from_files(study)}
    return [
        (place, model)
        for place, model in models_in(study)
        if not (place[0] in ("teacher", "scheme") and model in filled)
        if getattr(model, "weights", None) is not None
        or (getattr(model, "pretrained", False) and model.files() and not model.runs_code)
    ]


def _file(teacher: Teacher, task: Task) -> Remarks:
    assert teacher.weights is not None and teacher.model is not None
    classes = tuple(map(str, teacher.classes or ()))
    return _checked_file(teacher.weights, teacher.model, classes, task, task.class_names)


@lru_cache(maxsize=64)
def _checked_file(
    weights: str, model: Model, classes: tuple[str, ...], task: Task, _: tuple[str, ...]
) -> Remarks:
    try:
        return Remarks(*check_file(weights, model, task, classes))
    except ValueError as error:
        return Remarks(problem=str(error))


def _prepared(study: Study) -> list[tuple[str, Preparation]]:
    """All networks that teach, each with its place in the study."""
    own = [] if study.teacher is None else [own_teacher(study)]
    others = [one for one in everyone_behind(teachers_of(study)) if one not in own]
    return [("teacher", one) for one in own] + [("scheme", one) for one in others]


def _normalization_problems(study: Study, task: Task | None) -> Iterator[Problem]:
    """See that the normalization of each teacher is known and fits the data's pictures."""
    for where, one in _prepared(study):
        path = "teacher.normalization" if where == "teacher" else "scheme"
        try:
            if one.normalization != "auto":
                _check_use(one, task)
            normalization = normalization_of(one)
            if normalization is not None and task is not None and task.text is None:
                normalization.check(task.input_shape[0])
        except ValueError as error:
            yield Problem(str(error), path=path)


def _check_use(prepared: Preparation, task: Task | None) -> None:
    if prepared.weights is None:
        raise ValueError(
            "`normalization` is for loaded `weights`; a teacher that the study trains takes the "
            "data's own mean and standard deviation; remove it"
        )
    if task is not None and (task.text is not None or len(task.input_shape) != 3):
        raise ValueError("`normalization` is for pictures, and the data are none; remove it")


@lru_cache(maxsize=64)
def _started(model: Model, task: Task, _: tuple[str, ...]) -> Remarks:
    try:
        with torch.random.fork_rng(devices=[]):
            return Remarks(model.remarks(task))
    except ValueError as error:
        return Remarks(problem=str(error))
