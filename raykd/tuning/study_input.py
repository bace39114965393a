"""Loading and checking what a run starts from: the study file and its data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd.data import Dataset
from raykd.errors import Problem, StudyError
from raykd.study.checks.load import Check, open_study
from raykd.study.checks.rules import check_models, check_user_metrics
from raykd.study.config import Study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import Document, parse_place, read_document
from raykd.tuning.handed_over import read_objects
from raykd.tuning.mlflow_store import with_tracking_store
from raykd.tuning.teacher_store import (
    check_teacher_weights,
    resolve_mlflow_models,
    resolve_model_versions,
)

CHECKS: tuple[Check, ...] = (check_teacher_weights, check_models, check_user_metrics)
"""Checks of files and models that a study names, before anything starts."""


def load_or_use(
    study: OpenStudy | str | Path,
    overrides: Sequence[str] = (),
    checks: Sequence[Check] | None = None,
    *,
    allow_import: bool = False,
    objects: Mapping[str, Any] | None = None,
) -> OpenStudy:
    """Return the study itself, or load and check the file that it names.

    Args:
        study: an open study or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        checks: checks beyond the study itself; None: `CHECKS`.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        objects: handed over from Python, by kind (`PythonObjects`); only with a path.

    Raises:
        StudyError: the study has errors.
    """
    if isinstance(study, OpenStudy):
        if objects:
            text = f"{', '.join(objects)}: objects from Python are read with the study"
            raise StudyError(Problem(text, fix="give the path of the study file"))
        return with_tracking_store(study)
    document = read_document(study).with_overrides(overrides)
    if allow_import:
        document = resolve_model_versions(resolve_mlflow_models(document))
    loaded = open_study(
        document,
        CHECKS if checks is None else checks,
        allow_import=allow_import,
        objects=read_objects(objects or {}, document),
    )
    return with_tracking_store(loaded)


@contextlib.contextmanager
def located_problems(study: OpenStudy) -> Iterator[None]:
    """Add the file and line to each problem that names a path of the study."""
    try:
        yield
    except StudyError as error:
        raise type(error)(
            [
                study.document.problem(parse_place(problem.path), problem.message, problem.fix)
                if problem.path and not problem.file
                else problem
                for problem in error.problems
            ]
        ) from None


def load_data(settings: Study, document: Document | None = None) -> Dataset:
    """Load the data of a study.

    Args:
        settings: the concrete study.
        document: its file; errors then name the line.

    Raises:
        StudyError: the data are missing or cannot be used.
    """
    try:
        settings.data.check()
        return settings.data.load()
    except ValueError as error:
        if document is not None:
            raise StudyError(document.problem(("data",), str(error))) from None
        raise StudyError(Problem(str(error), path="data")) from None
