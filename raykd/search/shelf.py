"""Where the networks that teach are kept: below the storage, found by their content."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from raykd.architecture import Task
from raykd.problems import Problem, StudyError
from raykd.schemes import Preparation
from raykd.study.schema import Study
from raykd.study.teachers import everyone_behind, teachers_of
from raykd.training.storage import Storage
from raykd.training.teacher import check_weights, preparation_key


class Shelf:
    """The networks that teach in a study, and in every other with the same storage.

    Args:
        settings: the study's fixed parts.
        fingerprint: of its data.
        storage: where the files are.
    """

    def __init__(self, settings: Study, fingerprint: str, storage: Storage) -> None:
        self._settings = settings
        self._fingerprint = fingerprint
        self._storage = storage
        self._there: set[str] = set()

    def file(self, prepared: Preparation) -> str:
        """A network's file below the storage; the same for the same content."""
        key = preparation_key(prepared, self._settings, self._fingerprint)
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

        Raises:
            StudyError: its weights cannot be had.
        """
        file = self.file(prepared)
        if prepared.weights is not None and not self.has(file):
            self._storage.write(file, _content(prepared, self._settings))


def check_teacher_weights(study: Study, task: Task | None) -> Iterator[Problem]:
    """See that each teacher's file of weights is there and fits its model; nothing is loaded."""
    own = study.teacher.weights if study.teacher is not None else None
    named = [] if study.teacher is None else [study.teacher]
    named += [one.as_teacher for one in everyone_behind(teachers_of(study))]
    for teacher in named:
        weights = teacher.weights
        if weights is None or teacher.model is None or task is None or teacher.is_mlflow:
            continue
        try:
            check_weights(Path(weights).expanduser(), teacher.model, task)
        except ValueError as error:
            yield Problem(str(error), path="teacher.weights" if weights == own else "scheme")


def _content(prepared: Preparation, settings: Study) -> bytes:
    assert prepared.weights is not None
    try:
        if not prepared.is_mlflow:
            return Path(prepared.weights).expanduser().read_bytes()
        import torch

        from raykd.tracking.models import load_model_uri

        module = load_model_uri(prepared.weights, tracking_uri=settings.tracking.uri)
        buffer = io.BytesIO()
        torch.save(module.cpu().eval(), buffer)
        return buffer.getvalue()
    except (OSError, ValueError) as error:
        raise StudyError(
            Problem(
                f"the teacher's weights {prepared.weights} cannot be read: {error}",
                path="teacher.weights",
            )
        ) from None
