"""Reading of another study in MLflow: its best trainings and their params as values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.tracking.mlflow_client import connect, masked, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class StoredStudy:
    """Study that was read from one of its runs.

    Attributes:
        name: name of the study.
        given: original text of the study file; empty if it is missing.
        trainings: values of the requested run by ID (`trial-0007`).  If that is the study's own
            run, values of its chosen trials, or of its front if there are none.
        texts: requested artifacts, without missing ones.
    """

    name: str
    given: str
    trainings: Mapping[str, dict[str, Any]]
    texts: Mapping[str, str]


def stored_study(uri: str, run_id: str, artifacts: tuple[str, ...] = ()) -> StoredStudy | None:
    """Return the study of a run, or None if the store has no such run of raykd.

    Args:
        uri: URI of the tracking store.
        run_id: MLflow's ID of a study's run, or of one of its trainings.
        artifacts: paths of artifacts of the study's run.

    Raises:
        ValueError: the store cannot be reached.
    """
    try:
        client = connect(uri)
        run = _run(client, run_id)
        if run is None or "raykd.study" not in run.data.tags:
            return None
        everywhere = [found.experiment_id for found in client.search_experiments()]
        study = run.data.tags["raykd.study"]
        found = client.search_runs(everywhere, f"tags.`raykd.study` = {quoted(study)}")
    except Exception as error:
        raise ValueError(f"MLflow at {masked(uri)}: {masked(str(error))}") from error
    runs = {one.data.tags.get("raykd.id", ""): one for one in found}
    own = runs.get(study, run)
    wanted = [run] if run.info.run_id != own.info.run_id else _winners(own, runs)
    return StoredStudy(
        name=own.info.run_name or study,
        given=_text(client, own, "study/given.yaml"),
        trainings={_name(one): values_of(one.data.params) for one in wanted},
        texts={path: text for path in artifacts if (text := _text(client, own, path))},
    )


def values_of(params: Mapping[str, str]) -> dict[str, Any]:
    """Return a concrete study's values as nested data, from params in MLflow.

    `knowledge.0.loss` = "kd" beside `knowledge.0.loss.temperature` = "4.0" becomes
    `{"knowledge": [{"loss": {"name": "kd", "temperature": 4.0}}]}`.
    """
    root: dict[str, Any] = {}
    for key in sorted(params):  # a name comes before its fields
        *above, last = key.split(".")
        held = root
        for step in above:
            inner = held.get(step)
            if not isinstance(inner, dict):
                inner = {} if inner is None else {"name": inner}
                held[step] = inner
            held = inner
        held[last] = _value(params[key])
    return _listed(root)


def _listed(value: Any) -> Any:
    """Return the data with mappings whose keys count from 0 converted to lists."""
    if not isinstance(value, dict):
        return value
    held = {key: _listed(inner) for key, inner in value.items()}
    if held and all(key.isdigit() for key in held):
        numbers = {int(key): inner for key, inner in held.items()}
        return [numbers.get(number) for number in range(max(numbers) + 1)]
    return held


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


def _winners(study: Run, runs: Mapping[str, Run]) -> list[Run]:
    trials = [run for run in runs.values() if run.data.tags.get("raykd.role") == "trial"]
    chosen = [run for run in trials if run.data.tags.get("chosen") == "true"]
    front = study.data.tags.get("front", "").split()
    found = chosen or [run for run in trials if _name(run) in front]
    return sorted(found, key=_name)


def _name(run: Run) -> str:
    return run.data.tags.get("raykd.id", run.info.run_id).partition("/")[2] or run.info.run_id


def _text(client: MlflowClient, run: Run, path: str) -> str:
    """Return a text artifact, or an empty string if it is missing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text()
        except Exception:  # noqa: BLE001 - artifact stores raise different errors
            return ""
