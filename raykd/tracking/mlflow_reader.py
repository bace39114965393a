"""Reading of another study in MLflow: its best trainings and their params as values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.tracking.events import Metrics
from raykd.tracking.mlflow_client import connect, quoted
from raykd.tracking.store_uri import absolute, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class StoredStudy:
    """Study that was read from one of its runs.

    Attributes:
        name: name of the study.
        text: original text of the study file; empty if it is missing.
        trainings: values of the requested run by ID (`trial-0007`).  If that is the study's own
            run, values of its chosen trials, or of its front if there are none.
        texts: requested artifacts, without missing ones.
        trials: values and last metrics of all trials that ran whole, by ID, if they were requested
            and the requested run is the study's own.
    """

    name: str
    text: str
    trainings: Mapping[str, dict[str, Any]]
    texts: Mapping[str, str]
    trials: Mapping[str, tuple[dict[str, Any], Metrics]]


def stored_study(
    uri: str, run_id: str, artifacts: tuple[str, ...] = (), *, with_trials: bool = False
) -> StoredStudy | None:
    """Return the study of a run, or None if the store has no such run of raykd.

    Args:
        uri: URI of the tracking store.
        run_id: MLflow's ID of a study's run, or of one of its trainings.
        artifacts: paths of artifacts of the study's run.
        with_trials: read all trials of a study's own run.

    Raises:
        ValueError: the store cannot be reached.
    """
    try:
        client = connect(uri)
        run = _run(client, run_id)
        if run is None or "raykd.study" not in run.data.tags:
            return None
        experiments = [each.experiment_id for each in client.search_experiments()]
        study = run.data.tags["raykd.study"]
        stored = client.search_runs(experiments, f"tags.`raykd.study` = {quoted(study)}")
    except Exception as error:
        raise ValueError(f"MLflow at {masked(uri)}: {masked(str(error))}") from error
    runs = {each.data.tags.get("raykd.id", ""): each for each in stored}
    parent = runs.get(study, run)
    parent_id = parent.info.run_id
    is_study = run.info.run_id == parent_id
    trainings = _winners(parent, runs) if is_study else [run]
    whole = _whole_trials(runs) if with_trials and is_study else []
    return StoredStudy(
        name=parent.info.run_name or study,
        text=_text(client, parent_id, "study/study.yaml"),
        trainings={_name(each): values_of(each.data.params) for each in trainings},
        texts={path: text for path in artifacts if (text := _text(client, parent_id, path))},
        trials={_name(each): (values_of(each.data.params), each.data.metrics) for each in whole},
    )


def stored_origin(run_id: str, uri: str | None = None) -> tuple[str, str]:
    """Return the study file that a run came from, and the ID of its training ("": the study).

    Args:
        run_id: MLflow's ID of a study's run, or of one of its trainings.
        uri: URI of the tracking store; None: MLflow's default.

    Raises:
        ValueError: the store cannot be reached, or it has no such run of raykd.
    """
    store = default_store(uri)
    try:
        run = _run(connect(store), run_id)
    except Exception as error:
        raise ValueError(f"MLflow at {masked(store)}: {masked(str(error))}") from error
    if run is None or "raykd.study" not in run.data.tags:
        raise ValueError(f"MLflow at {masked(store)} has no run {run_id} of raykd")
    training = run.data.tags.get("raykd.id", "").partition("/")[2]
    return run.data.tags.get("mlflow.source.name", ""), training


def default_store(uri: str | None = None) -> str:
    """Return the URI of a store; None: MLflow's default."""
    import mlflow

    return absolute(uri or mlflow.get_tracking_uri())


def values_of(params: Mapping[str, str]) -> dict[str, Any]:
    """Return a concrete study's values as nested data, from params in MLflow.

    `knowledge.0.loss` = "kd" beside `knowledge.0.loss.temperature` = "4.0" becomes
    `{"knowledge": [{"loss": {"name": "kd", "temperature": 4.0}}]}`.
    """
    root: dict[str, Any] = {}
    for key in sorted(params):  # a name comes before its fields
        *above, last = key.split(".")
        node = root
        for step in above:
            inner = node.get(step)
            if not isinstance(inner, dict):
                inner = {} if inner is None else {"name": inner}
                node[step] = inner
            node = inner
        node[last] = _value(params[key])
    return _listed(root)


def _listed(value: Any) -> Any:
    """Return the data with mappings whose keys count from 0 converted to lists."""
    if not isinstance(value, dict):
        return value
    items = {key: _listed(inner) for key, inner in value.items()}
    if items and all(key.isdigit() for key in items):
        numbers = {int(key): inner for key, inner in items.items()}
        return [numbers.get(number) for number in range(max(numbers) + 1)]
    return items


def _value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _run(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _whole_trials(runs: Mapping[str, Run]) -> list[Run]:
    """Return the trials that ran whole, by their IDs."""
    whole = {"raykd.role": "trial", "raykd.status": "finished"}
    return sorted(
        (run for run in runs.values() if whole.items() <= run.data.tags.items()), key=_name
    )


def _winners(study: Run, runs: Mapping[str, Run]) -> list[Run]:
    trials = [run for run in runs.values() if run.data.tags.get("raykd.role") == "trial"]
    chosen = [run for run in trials if run.data.tags.get("chosen") == "true"]
    front = study.data.tags.get("front", "").split()
    winners = chosen or [run for run in trials if _name(run) in front]
    return sorted(winners, key=_name)


def _name(run: Run) -> str:
    return run.data.tags.get("raykd.id", run.info.run_id).partition("/")[2] or run.info.run_id


def text_artifact(uri: str, run_id: str, path: str) -> str:
    """Return a text artifact of a run, or an empty string if it is missing.

    Args:
        uri: URI of the tracking store.
        run_id: MLflow's ID of the run.
        path: path among the run's artifacts.
    """
    return _text(connect(uri), run_id, path)


def download_artifact(uri: str, run_id: str, path: str, folder: str) -> Path | None:
    """Download an artifact of a run into a folder; return its file, or None if it is missing.

    Args:
        uri: URI of the tracking store.
        run_id: MLflow's ID of the run.
        path: path among the run's artifacts.
        folder: existing folder.
    """
    return _download(connect(uri), run_id, path, folder)


def _download(client: MlflowClient, run_id: str, path: str, folder: str) -> Path | None:
    try:
        return Path(client.download_artifacts(run_id, path, folder))
    except Exception:  # noqa: BLE001 - artifact stores raise different errors
        return None


def _text(client: MlflowClient, run_id: str, path: str) -> str:
    """Return a text artifact, or an empty string if it is missing."""
    with tempfile.TemporaryDirectory() as folder:
        file = _download(client, run_id, path, folder)
        return file.read_text(encoding="utf-8") if file is not None else ""
