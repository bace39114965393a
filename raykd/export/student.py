"""Trained students, found in a study's folder or in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from raykd.compat.network_files import read_network
from raykd.compat.packages import launcher
from raykd.data import AnySource, Dataset
from raykd.errors import Problem, StudyError
from raykd.models.preprocessing import RawInputModel
from raykd.study.short_names import training_names
from raykd.tracking.events import Event, ModelSaved
from raykd.tracking.mlflow_students import stored_student
from raykd.tuning.records import Record, teacher_name
from raykd.tuning.result import RunResult, read_run, saved_models
from raykd.tuning.run_reference import is_run_id, split_reference
from raykd.user_code import register_copies


@dataclass(frozen=True)
class SavedStudent:
    """A trained network with its record.

    Attributes:
        network: raw samples -> logits, on the CPU, in eval mode.
        name: such as `digits-resnet-d8-w4-kd`.
        id: of the training, such as `trial-0015/replicate-1`.
        origin: study folder or MLflow run.
        study: the concrete study of the training as plain data.
        metrics: of the training.
        about: further facts on its accuracy, from the study.
        teachers: name and test accuracy of each teacher; empty if unknown.
    """

    network: RawInputModel
    name: str
    id: str
    origin: str
    study: Mapping[str, Any]
    metrics: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[tuple[str, float], ...] = ()

    def load_data(self) -> Dataset:
        """Load the data the network was trained on, as it takes them.

        Raises:
            ValueError: the data are unknown, missing, or cannot be read.
        """
        source = TypeAdapter(AnySource).validate_python(self.study.get("data"))
        source.check()
        return source.load().as_input(self.study.get("student", {}).get("input"))

    def names(self) -> Mapping[str, str]:
        """Return short names of the network, losses and layer pairs, see `training_names`.

        Empty if the record lacks a part of the study, as models without a run in MLflow.
        """
        try:
            return training_names(self.study)
        except (KeyError, TypeError, ValueError):
            return {}


def find_student(
    source: str | Path, *, tracking_uri: str | None = None, allow_import: bool = False
) -> SavedStudent:
    """Load a trained student.

    Args:
        source: a study's folder (its best student), `FOLDER:trial-0007`, `FOLDER:TRAINING`, an
            MLflow run ID of a study, trial or training, or an MLflow model URI (`models:/...`).
        tracking_uri: URI of the MLflow store; None: MLflow's default.
        allow_import: let the network run code: one from MLflow, which anyone with access to the
            store may write, or one of your own code.

    Raises:
        StudyError: there is no such study or run, the network was not saved, or it needs
            `allow_import`.
    """
    text = str(source)
    if is_run_id(text) or text.startswith(("models:/", "runs:/")):
        if not allow_import:
            raise StudyError(
                Problem(
                    f"{text}: loading a network from MLflow runs the code it was saved with",
                    fix="add --allow-import (allow_import=True) if you trust the store",
                )
            )
        return _from_mlflow(text, tracking_uri)
    return _from_folder(*split_reference(text), allow_import)


def _from_folder(path: Path, training: str, allow_import: bool) -> SavedStudent:
    run, _, history = read_run(path)
    return student_of_run(run, history, training, allow_import=allow_import)


def student_of_run(
    run: RunResult, history: Sequence[Event], training: str, *, allow_import: bool = False
) -> SavedStudent:
    """Load a trained student of a run that was read before.

    Args:
        run: the run.
        history: events of its journal.
        training: ID of a trial or training; "": the best student.
        allow_import: let the network run code of its own.

    Raises:
        StudyError: see `find_student`.
    """
    path, saved = run.folder, saved_models(history)
    event = _select(saved, training, path)
    file = path / event.path
    if not file.is_file():
        raise StudyError(
            Problem(
                f"{file} is missing: the network of {event.id} was moved or removed",
                fix=f"restore the file, or train it again with {launcher()}raykd distill "
                f"{path}:{event.id.partition('/')[0]}",
            )
        )
    record = next(r for r in run.records.of("replicate", "trial") if r.id == event.id)
    try:
        if allow_import:
            register_copies(record.job.study, path)
        network = read_network(file, str(file), allow_code=allow_import)
    except ValueError as error:
        raise StudyError(Problem(str(error))) from None
    return SavedStudent(
        network=_raw_input_model(network, str(file)),
        name=event.name or path.name,
        id=event.id,
        origin=path.name,
        study=record.job.study,
        metrics={**record.job.metrics, **record.metrics, **event.metrics},
        about=event.about,
        teachers=tuple(_accuracies(run.teachers)),
    )


def _select(saved: Mapping[str, ModelSaved], training: str, folder: Path) -> ModelSaved:
    """Return the saved network of a training or of its trial; the first one for ""."""
    for name, event in saved.items():
        if training in ("", name, name.partition("/")[0]):
            return event
    listed = ", ".join(dict.fromkeys(name.partition("/")[0] for name in saved)) or "none"
    problem = f"no network of {training or 'a student'} was saved in {folder}; saved: {listed}"
    fix = (
        f"train it again with {launcher()}raykd distill {folder}:{training}"
        if training
        else "set search.replicates to 1 or more; the networks of the finalists are saved"
    )
    raise StudyError(Problem(problem, fix=fix))


def _from_mlflow(source: str, tracking_uri: str | None) -> SavedStudent:
    try:
        stored = stored_student(source, tracking_uri)
    except ValueError as error:
        raise StudyError(
            Problem(str(error), fix="name the store with --tracking-uri, and another run or model")
        ) from None
    return SavedStudent(
        network=_raw_input_model(stored.network, source),
        name=stored.name,
        id=stored.training,
        origin=source,
        study=stored.study,
        metrics=stored.metrics,
        about=stored.about,
    )


def _raw_input_model(network: nn.Module, source: str) -> RawInputModel:
    if not isinstance(network, RawInputModel):
        raise StudyError(
            Problem(
                f"{source} holds a {type(network).__name__} without its preprocessing",
                fix="export a student of a study, or use torch.export for other networks",
            )
        )
    return network.eval()


def _accuracies(teachers: Iterable[Record]) -> Iterable[tuple[str, float]]:
    for record in teachers:
        if "test_accuracy" in record.metrics:
            yield teacher_name(record), record.metrics["test_accuracy"]
