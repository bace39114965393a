"""Connection to MLflow's tracking store, and lookup of experiments and runs in it.

MLflow is imported inside the functions that need it because its import takes seconds.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raykd.tracking.mlflow_views import TRAINING, view_link
from raykd.tracking.store_uri import absolute, database_file, database_folder, is_server, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Defaults for variables that the user has not set.  An unreachable server takes seconds instead of
# the four minutes of MLflow's seven retries (raykd retries by itself).  MLflow prints nothing and
# reports no usage.
ENVIRONMENT: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


UI_ADDRESS = "http://127.0.0.1:5000"


def connect(uri: str, *, verbose: bool = False) -> MlflowClient:
    """Return a client of the store at `uri`, which prints only if `verbose`.

    MLflow's process-wide tracking URI is not changed.  The tables of a new sqlite file are created
    here, which takes about 2 s.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if not verbose:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    folder = database_folder(uri)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    full = absolute(uri)
    return MlflowClient(tracking_uri=full, registry_uri=full)


KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes MLflow's pages show curves and models first, not prompts and traces."""


@dataclass(frozen=True)
class Experiment:
    """Experiment of a study.

    Attributes:
        id: MLflow's.
        restored: whether it was deleted before.  MLflow then restores all of its runs, also those
            that had been deleted one by one.
    """

    id: str
    restored: bool = False


def open_experiment(client: MlflowClient, name: str, uri: str) -> Experiment:
    """Return an experiment, which is created if missing and restored if deleted.

    With a sqlite store, new experiments store their files in `mlartifacts/` next to the database.
    MLflow's own default is the working folder of the first process.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            folder = _artifact_folder(name, uri)
            return Experiment(client.create_experiment(name, artifact_location=folder, tags=KIND))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # created by another process
            if experiment is None:
                raise error
    was_deleted = experiment.lifecycle_stage != "active"
    if was_deleted:
        client.restore_experiment(experiment.experiment_id)
    return Experiment(experiment.experiment_id, was_deleted)


StartTimes = Mapping[str, Container[int]]
"""Times, in milliseconds since 1970, at which the runs of a journal started, by `raykd.id`."""


@dataclass(frozen=True)
class StudyRuns:
    """Runs of a study in a store.

    Attributes:
        ids: MLflow's run IDs by `raykd.id`.
        repeated: whether some of them were there more than once.  The one that is left may lack
            what the others had.
    """

    ids: Mapping[str, str]
    repeated: bool


def study_runs(
    client: MlflowClient,
    experiment: Experiment,
    study_id: str,
    start_times: Callable[[], StartTimes] = dict,
) -> StudyRuns:
    """Return the runs of a study, and delete those that are there twice.

    The server may still complete a request that timed out on the client, which creates a run
    twice; a run that was deleted, and sent again, may be restored.  The fullest run is left.  A
    restored experiment may also bring back runs of another journal with the same study ID: they
    started at other times, and are deleted again.

    Args:
        start_times: of the journal; called only if runs are repeated or restored.
    """
    by_id: dict[str, list[Run]] = {}
    for run in search_study_runs(client, experiment.id, study_id):
        by_id.setdefault(run.data.tags.get("raykd.id", ""), []).append(run)
    repeated = any(len(runs) > 1 for runs in by_id.values())
    times = start_times() if repeated or experiment.restored else {}
    ids = {}
    for id, runs in by_id.items():
        same_journal = [run for run in runs if run.info.start_time in times.get(id, ())]
        unclear = not same_journal and not experiment.restored
        candidates = sorted(runs if unclear else same_journal, key=_content)
        if candidates:
            ids[id] = candidates[-1].info.run_id
        for run in runs:
            if run.info.run_id != ids.get(id):
                client.delete_run(run.info.run_id)
    return StudyRuns(ids, repeated)


def search_study_runs(client: MlflowClient, experiment: str, study_id: str) -> Iterator[Run]:
    """Yield all runs of a study, 1,000 per request."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.`raykd.study` = {quoted(study_id)}",
            max_results=1000,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _content(run: Run) -> int:
    return len(run.data.metrics) + len(run.data.params) + len(run.data.tags)


def quoted(text: str) -> str:
    """Return `text` as a string of MLflow's filter language, which has no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _artifact_folder(name: str, uri: str) -> str | None:
    folder = database_folder(uri)
    if folder is None:
        return None
    return str(folder / "mlartifacts" / re.sub(r"[^\w.-]+", "_", name).strip("."))


@dataclass(frozen=True)
class FoundRun:
    """Parent run of a study.

    Attributes:
        run_id, experiment_id: MLflow's IDs.
        status: MLflow's status: RUNNING, FINISHED, FAILED or KILLED.
        page: address of the run's page in MLflow's UI.  For a database it is available while the
            command `raykd ui` runs.
    """

    run_id: str
    experiment_id: str
    status: str
    page: str


def find_run(uri: str, study_id: str) -> FoundRun | None:
    """Return the parent run of study `study_id`, or None.

    Raises:
        ValueError: the store cannot be reached.
    """
    try:
        client = connect(uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(
            experiments, f"tags.`raykd.id` = {quoted(study_id)}", max_results=1
        )
    except Exception as error:
        raise ValueError(f"MLflow at {masked(uri)}: {masked(str(error))}") from error
    if not runs:
        return None
    info = runs[0].info
    page = run_page(uri, info.experiment_id, info.run_id)
    return FoundRun(info.run_id, info.experiment_id, info.status, page)


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page in MLflow's UI."""
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def view_page(uri: str, experiment_id: str, key: str) -> str:
    """Return the address of a saved view (`mlflow_views.view_key`) in MLflow's UI."""
    return f"{_address(uri)}/{view_link(experiment_id, key)}"


def has_run(uri: str, run_id: str) -> bool:
    """Return True if a sqlite store still contains an uploaded run.

    Other stores are not queried, and the result is True.  MLflow is not imported.
    """
    file = database_file(uri)
    if file is None:
        return True
    if not file.exists():
        return False  # connecting would create it
    query = "SELECT count(*) FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2)) as base:
            return bool(base.execute(query, (run_id,)).fetchone()[0])
    except sqlite3.Error:
        return True  # busy, or of another schema


def _address(uri: str) -> str:
    return masked(uri).rstrip("/") if is_server(uri) else UI_ADDRESS
