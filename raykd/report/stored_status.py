"""State of studies as MLflow has it, for machines without their folders."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykd import pareto
from raykd.errors import Problem, StudyError
from raykd.report.status import RunningTraining, StudyStatus
from raykd.study.config import Tracking
from raykd.tracking.mlflow_studies import MlflowStudies, StoredTraining, StudyRun
from raykd.tracking.store_uri import TRACKING
from raykd.tuning.number_format import metric
from raykd.tuning.stored_study import fetched_folder
from raykd.tuning.study_lookup import near_folders

TRAININGS = ("teacher", "trial", "replicate", "alone")


def open_store(uri: str | None, folder: str = "") -> MlflowStudies:
    """Return the studies of a store; None: MLFLOW_TRACKING_URI, else `mlflow.db` here.

    Args:
        uri: URI of the store.
        folder: study that is no folder on this machine, for the error message.

    Raises:
        StudyError: the store does not exist or does not respond.
    """
    try:
        return MlflowStudies(uri or os.environ.get(TRACKING) or Tracking().uri)
    except ValueError as error:
        head = f"{folder} is not a study's folder on this machine; " if folder else ""
        fix = near_folders(folder) if folder and uri is None else ""
        raise StudyError(Problem(f"{head}{error}", fix=fix)) from None


def find_stored_study(store: MlflowStudies, reference: str) -> StudyRun:
    """Return a study by a run ID or by the name of its folder.

    Raises:
        StudyError: the store does not have it.
    """
    try:
        return store.find(reference)
    except ValueError as error:
        text = f"there is no study's folder {reference} on this machine, and {error}"
        raise StudyError(Problem(text, fix=near_folders(reference))) from None


@contextlib.contextmanager
def study_folder(reference: str, uri: str | None) -> Iterator[Path]:
    """Give a temporary folder with the journal of a study in MLflow.

    Args:
        reference: a run ID, or the name of the study's folder on another machine.
        uri: URI of the store; None: as `open_store`.

    Raises:
        StudyError: there is no such study, or MLflow does not have its journal.
    """
    store = open_store(uri, reference)
    study = find_stored_study(store, reference)
    with fetched_folder(store, study) as folder:
        yield folder


def read_stored_status(store: MlflowStudies, reference: str) -> StudyStatus:
    """Read the state of a study from MLflow; three requests, and one per training in progress.

    Raises:
        StudyError: the store does not have the study, or stops responding.
    """
    import yaml

    study = find_stored_study(store, reference)
    try:
        resolved = yaml.safe_load(store.text(study, "resolved.yaml")) or {}
        verb = _verb(store.text(study, "environment.json"))
        trainings = [each for each in store.trainings(study) if each.role in TRAININGS]
    except ValueError as error:
        raise StudyError(Problem(str(error))) from None
    search = resolved.get("search") or {}
    objectives: Mapping[str, str] = search.get("objectives") or {"val_accuracy": "max"}
    trials = [each for each in trainings if each.role == "trial"]
    front = _front(trials, objectives) if verb == "search" else []
    latest = max((each.last_at for each in trainings), default=study.started)
    return StudyStatus(
        **_facts(study),
        verb=verb,
        quiet_seconds=max(0.0, time.time() - max(latest, study.ended) / 1000),
        trials=dict(Counter(each.status for each in trials)),
        planned_trials=search.get("trials") if verb == "search" else None,
        running=[_running(each) for each in trainings if each.status == "running"],
        best=_description(front[0], objectives) if front else "",
        front=[each.id for each in front],
        tested=sum("test_loss" in t.metrics for t in trainings if t.role in ("replicate", "alone")),
        failures=list(
            dict.fromkeys(t.tags.get("raykd.reason", "") for t in trainings if t.status == "failed")
        ),
    )


def list_stored_studies(store: MlflowStudies) -> Iterator[StudyStatus]:
    """Yield the studies of a store, the latest first; one request per 1,000 studies.

    Trials and the best trial are known once a study has ended.

    Raises:
        StudyError: the store stops responding.
    """
    try:
        for study in store.all():
            metrics = study.metrics
            counts = {
                name.removeprefix("trials_"): int(count)
                for name, count in metrics.items()
                if name.startswith("trials_") and name != "trials_a_gpu"
            }
            names = [name for name in metrics if name.startswith("best_")]
            figures = [f"{n[5:]} {metric(n[5:], metrics[n])}" for n in names]
            best = study.tags.get("best", "")
            yield StudyStatus(
                **_facts(study),
                trials=counts,
                best=f"{best}: {', '.join(figures)}" if best else "",
            )
    except ValueError as error:
        raise StudyError(Problem(str(error))) from None


def _facts(study: StudyRun) -> dict[str, Any]:
    return {
        "name": study.name,
        "folder": None,
        "status": study.status,
        "started": study.started / 1000,
        "run_id": study.run_id,
        "page": study.page,
    }


def _verb(environment: str) -> str:
    argv = json.loads(environment).get("argv") if environment else None
    verb = argv[1] if argv and len(argv) > 1 else "search"
    return verb if verb in ("search", "pairs", "distill", "teacher") else "search"


def _running(training: StoredTraining) -> RunningTraining:
    tags = training.tags
    losses = "alone" if training.role == "alone" else tags.get("losses", "")
    pairs = tags.get("pairs", "none")
    network = "teacher" if training.role == "teacher" else "student"
    measured = [n for n in training.metrics if n.startswith("val_") and n != "val_loss"]
    name = measured[0] if measured and "val_accuracy" not in measured else "val_accuracy"
    return RunningTraining(
        id=training.id,
        role=training.role,
        student=tags.get(network, ""),
        learns_from=" ".join(filter(None, [losses, "" if pairs == "none" else pairs])),
        epochs=(training.epochs or 0, _integer(training.params.get("train.epochs"))),
        metric=name,
        value=training.metrics.get(name),
    )


def _integer(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _front(trials: Sequence[StoredTraining], objectives: Mapping[str, str]) -> list[StoredTraining]:
    """Return the non-dominated trials, the best in the first objective first."""
    whole = [
        trial
        for trial in trials
        if trial.status == "finished"
        and all(math.isfinite(trial.metrics.get(name, math.nan)) for name in objectives)
    ]
    points = pareto.losses([trial.metrics for trial in whole], objectives)
    first, direction = next(iter(objectives.items()))
    front = [whole[index] for index in pareto.pareto(points)]
    return sorted(front, key=lambda t: t.metrics[first], reverse=direction == "max")


def _description(trial: StoredTraining, objectives: Mapping[str, str]) -> str:
    figures = [f"{name} {metric(name, trial.metrics.get(name))}" for name in objectives]
    return f"{trial.id} ({trial.tags.get('student', '')}): {', '.join(figures)}"
