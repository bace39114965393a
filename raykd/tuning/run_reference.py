"""References to earlier runs: FOLDER, FOLDER:TRAINING, or the ID of a run in MLflow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from raykd.arguments import near
from raykd.errors import Problem, StudyError
from raykd.tracking.mlflow_reader import default_store, stored_origin
from raykd.tracking.mlflow_studies import DESCRIPTION, MlflowStudies
from raykd.tuning.result import read_result
from raykd.tuning.stored_study import fetched_folder
from raykd.tuning.study_dir import open_folder

RUN_ID = re.compile(r"[0-9a-f]{32}")
TRAINING = re.compile(r"(trial|teacher)-\d+(/\w+-\d+)?")


def is_run_id(reference: str | Path) -> bool:
    """Return True for the ID of a run in MLflow."""
    return RUN_ID.fullmatch(str(reference)) is not None


def split_reference(reference: str | Path) -> tuple[Path, str]:
    """Return the folder and the training of FOLDER or FOLDER:TRAINING; "" without a training."""
    path = Path(reference).expanduser()
    folder, colon, training = str(reference).rpartition(":")
    is_training = TRAINING.fullmatch(training) is not None
    if not path.is_dir() and colon and (is_training or Path(folder).expanduser().is_dir()):
        return Path(folder).expanduser(), training
    return path, ""


@contextlib.contextmanager
def recorded_training(
    reference: str | Path, tracking_uri: str | None = None
) -> Iterator[tuple[Path, str]]:
    """Give the folder of a study, and the ID of a training in it.

    If the folder of an MLflow run is not on this machine, it is a temporary one with the files
    that MLflow has (`fetched_folder`).

    Args:
        reference: FOLDER (its best trial), FOLDER:TRAINING, or the ID of a run in MLflow.
        tracking_uri: URI of the MLflow store of a run ID; None: MLflow's default.

    Raises:
        StudyError: there is no such run or training, or MLflow does not have the study's journal.
    """
    with contextlib.ExitStack() as stack:
        if is_run_id(reference):
            run = _of_store(str(reference), tracking_uri)
            folder, training = stack.enter_context(run)
        else:
            folder, training = split_reference(reference)
        yield folder, _checked_training(folder, training)


def _checked_training(folder: Path, training: str) -> str:
    """Return the ID of a training of a study's folder; "" means the best trial.

    Raises:
        StudyError: it is not a study's folder, or there is no such training.
    """
    opened, _ = open_folder(folder)
    if not training and opened.verb == "pairs":
        fix = f"name one of its trainings: {folder}:none/seed-0"
        raise StudyError(Problem(f"{folder} is the folder of a layer study", fix=fix))
    result = read_result(folder)
    if not training:
        if result.best is None:
            raise StudyError(
                Problem(f"no trial of {folder} has finished", fix="name another study")
            )
        return result.best.id
    if training not in result.records:
        ids = [record.id for record in result.records.of("trial")]
        text = f"{folder} has no training {training!r}; it has {', '.join(ids[:20]) or 'none'}"
        raise StudyError(Problem(text, fix=near(training, ids)))
    return training


@contextlib.contextmanager
def _of_store(run_id: str, tracking_uri: str | None) -> Iterator[tuple[Path, str]]:
    """Give the folder of a run in MLflow, and the ID of its training ("": the study)."""
    try:
        file, training = stored_origin(run_id, tracking_uri)
        store = MlflowStudies(default_store(tracking_uri))
        study = store.find(run_id)
    except ValueError as error:
        raise StudyError(Problem(str(error), fix="name the store with --uri")) from None
    folder = Path(file).parent
    if (folder / DESCRIPTION).is_file():
        yield folder, training
        return
    with fetched_folder(store, study) as fetched:
        yield fetched, training
