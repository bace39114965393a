"""Reading of many runs of a tracking store at once, for comparisons.

A sqlite file is read with SQL, because MLflow's client needs three seconds for 1,000 runs of 100
params.  The answers of a server are read as JSON, which takes a tenth of the time that MLflow's
client needs to build its objects.  All other stores, and filters of a sqlite file, are read by
MLflow's client.  A page has 1,000 runs.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

from raykd.tracking.mlflow_client import connect
from raykd.tracking.store_uri import absolute, database_file, is_server, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TIMEOUT_S = "120"
"""Seconds to wait for a page: a server needs several for 1,000 runs, and more if it is busy."""

ATTEMPTS = 2
"""Number of times that a page is requested."""

PAGE = 1000
"""Runs of one request; MLflow's pages have at most 50,000."""


SEARCH = "/api/2.0/mlflow/runs/search"
"""Address of the search for runs on a server."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """Run in a tracking store.

    Attributes:
        run_id, experiment_id: MLflow's IDs.
        name: name of the run.
        status: MLflow's status.
        start, end: milliseconds since 1970; None if unknown.
        params, tags: texts by name.
        metrics: last value of each metric.
        datasets: name and digest of each data set, "digits@1f2e3d4c".
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    start: int | None
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    datasets: tuple[str, ...]

    @property
    def study(self) -> str:
        """ID of the study that the run belongs to, or an empty string."""
        return self.tags.get("raykd.study", "")

    @property
    def parent(self) -> str:
        """MLflow's ID of the parent run, or an empty string."""
        return self.tags.get("mlflow.parentRunId", "")


class _Page(NamedTuple):
    """Page of runs, and the token of the next page ("": it is the last one)."""

    runs: list[StoredRun]
    token: str


class RunStore(Protocol):
    """Runs of a tracking store."""

    def experiments(self) -> dict[str, str]:
        """Return the IDs of all active experiments by name."""
        ...

    def run(self, run_id: str) -> StoredRun | None:
        """Return an active run, or None."""
        ...

    def runs(self, experiment_ids: Sequence[str], filter_string: str = "") -> list[StoredRun]:
        """Return the active runs of experiments, the newest first.

        Raises:
            ValueError: MLflow rejects the filter.
        """
        ...


def open_store(uri: str, *, filtered: bool = False) -> RunStore:
    """Return the runs of a store.

    Args:
        uri: URI of the store, checked with `check_store`.
        filtered: `runs` is called with a filter.
    """
    file = database_file(uri)
    if file is not None and not filtered:
        return SqliteRuns(file)
    return ServerRuns(uri) if is_server(uri) else ClientRuns(uri)


class SqliteRuns:
    """Runs of a sqlite file of MLflow, whose tables have the schema of the installed version.

    Args:
        file: the database.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def experiments(self) -> dict[str, str]:
        query = "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active'"
        with self._open() as base:
            return {name: str(id) for name, id in base.execute(query)}

    def run(self, run_id: str) -> StoredRun | None:
        return next(iter(self._read("run_uuid = ?", (run_id,))), None)

    def runs(self, experiment_ids: Sequence[str], filter_string: str = "") -> list[StoredRun]:
        assert not filter_string, "MLflow's client reads filters"
        marks = ", ".join("?" * len(experiment_ids))
        return self._read(f"experiment_id IN ({marks})", tuple(map(int, experiment_ids)))

    def _open(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True, timeout=30))

    def _read(self, condition: str, values: tuple[str | int, ...]) -> list[StoredRun]:
        condition = f"{condition} AND lifecycle_stage = 'active'"
        chosen = f"run_uuid IN (SELECT run_uuid FROM runs WHERE {condition})"
        columns = "run_uuid, experiment_id, name, status, start_time, end_time"
        with self._open() as base:
            rows = base.execute(
                f"SELECT {columns} FROM runs WHERE {condition} ORDER BY start_time DESC, run_uuid",
                values,
            ).fetchall()
            texts: dict[str, dict[str, dict[str, str]]] = {"params": {}, "tags": {}}
            for table, of_run in texts.items():
                query = f"SELECT run_uuid, key, value FROM {table} WHERE {chosen}"
                for run_id, key, value in base.execute(query, values):
                    of_run.setdefault(run_id, {})[intern(key)] = intern(value or "")
            metrics: dict[str, dict[str, float]] = {}
            query = f"SELECT run_uuid, key, value FROM latest_metrics WHERE {chosen} AND NOT is_nan"
            for run_id, key, value in base.execute(query, values):
                metrics.setdefault(run_id, {})[intern(key)] = value
            datasets = self._datasets(base, chosen, values)
        return [
            StoredRun(
                *(id, str(experiment), name or "", status, start, end),
                params=texts["params"].get(id, {}),
                tags=texts["tags"].get(id, {}),
                metrics=metrics.get(id, {}),
                datasets=tuple(datasets.get(id, ())),
            )
            for id, experiment, name, status, start, end in rows
        ]

    def _datasets(
        self, base: sqlite3.Connection, chosen: str, values: tuple[str | int, ...]
    ) -> dict[str, list[str]]:
        query = (
            "SELECT destination_id, name, digest FROM inputs "
            "JOIN datasets ON dataset_uuid = source_id AND source_type = 'DATASET' "
            f"WHERE destination_id IN (SELECT run_uuid FROM runs WHERE {chosen}) "
            "ORDER BY name, digest"
        )
        datasets: dict[str, list[str]] = {}
        for run_id, name, digest in base.execute(query, values):
            datasets.setdefault(run_id, []).append(intern(f"{name}@{digest}"))
        return datasets


class ClientRuns:
    """Runs of any store, read by MLflow's client.

    Args:
        uri: URI of the store.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)
        self._client: MlflowClient = connect(uri)

    def experiments(self) -> dict[str, str]:
        names: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_experiments(max_results=PAGE, page_token=token)
            names |= {experiment.name: experiment.experiment_id for experiment in page}
            token = page.token
            if not token:
                return names

    def run(self, run_id: str) -> StoredRun | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return _stored(run) if run.info.lifecycle_stage == "active" else None

    def runs(self, experiment_ids: Sequence[str], filter_string: str = "") -> list[StoredRun]:
        return list(self._pages(experiment_ids, filter_string))

    def has_count(self, experiment_ids: Sequence[str], filter_string: str, count: int) -> bool:
        """Return True if a search has exactly `count` results, at least 1.

        The request starts at the last result expected, so that the server reads a run or two
        instead of all of them.
        """
        from mlflow.utils.search_utils import SearchUtils

        token: str | None = None
        if count > 1:
            written: bytes | str = SearchUtils.create_page_token(count - 1)
            token = written.decode() if isinstance(written, bytes) else written
        page = self._client.search_runs(
            list(experiment_ids), filter_string, max_results=2, page_token=token
        )
        return len(page) == 1

    def _pages(self, experiment_ids: Sequence[str], filter_string: str) -> Iterator[StoredRun]:
        token = ""
        while True:
            page = self._repeated(experiment_ids, filter_string, token)
            yield from page.runs
            token = page.token
            if not token:
                return

    def _repeated(self, experiment_ids: Sequence[str], filter_string: str, token: str) -> _Page:
        """Return one page; a request that a busy server drops is sent again."""
        from mlflow.exceptions import MlflowException

        for attempt in range(ATTEMPTS):
            try:
                return self._page(experiment_ids, filter_string, token)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":
                    raise ValueError(
                        f"MLflow at {masked(self._uri)} rejects the filter: {error.message}"
                    ) from None
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(1)
        raise AssertionError("the last attempt returns or raises")

    def _page(self, experiment_ids: Sequence[str], filter_string: str, token: str) -> _Page:
        page = self._client.search_runs(
            list(experiment_ids), filter_string, max_results=PAGE, page_token=token or None
        )
        return _Page(list(map(_stored, page)), page.token or "")


class ServerRuns(ClientRuns):
    """Runs of an MLflow server, read from the JSON of its answers.

    Requests of several threads run in parallel; their answers are parsed one after the other, so
    that only one is in memory as Python objects.

    Args:
        uri: address of the server.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._parsing = threading.Lock()

    def _page(self, experiment_ids: Sequence[str], filter_string: str, token: str) -> _Page:
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request_safe

        query: dict[str, str | int | list[str]] = {
            "experiment_ids": list(experiment_ids),
            "filter": filter_string,
            "max_results": PAGE,
            "page_token": token,
        }
        # MLflow adds the login, the certificates and the headers of its plugins.
        login = get_default_host_creds(absolute(self._uri).rstrip("/"))
        answer = http_request_safe(login, SEARCH, "POST", json=query)
        with self._parsing:
            content: _PageJson = json.loads(answer.content)
            runs = [_run_of_json(run) for run in content.get("runs", ())]
        return _Page(runs, content.get("next_page_token", ""))


def _stored(run: Run) -> StoredRun:
    """Return a run of MLflow's client, whose strings are shared with those of other runs."""
    data, info = run.data, run.info
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    datasets = sorted(f"{each.dataset.name}@{each.dataset.digest}" for each in inputs)
    return StoredRun(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        name=info.run_name or "",
        status=info.status,
        start=info.start_time,
        end=info.end_time,
        params={intern(key): intern(value) for key, value in data.params.items()},
        tags={intern(key): intern(value) for key, value in data.tags.items()},
        metrics={intern(k): v for k, v in data.metrics.items() if v == v},
        datasets=tuple(map(intern, datasets)),
    )


class _Text(TypedDict):
    key: str
    value: str


class _Value(TypedDict):
    key: str
    value: float | str  # "NaN" and "Infinity" are texts


class _DataJson(TypedDict, total=False):
    params: list[_Text]
    tags: list[_Text]
    metrics: list[_Value]


class _InfoJson(TypedDict, total=False):
    run_id: str
    experiment_id: str
    run_name: str
    status: str
    start_time: int | str
    end_time: int | str


class _Dataset(TypedDict):
    name: str
    digest: str


class _InputJson(TypedDict):
    dataset: _Dataset


class _InputsJson(TypedDict, total=False):
    dataset_inputs: list[_InputJson]


class _RunJson(TypedDict, total=False):
    info: _InfoJson
    data: _DataJson
    inputs: _InputsJson


class _PageJson(TypedDict, total=False):
    runs: list[_RunJson]
    next_page_token: str


def _run_of_json(run: _RunJson) -> StoredRun:
    """Return a run of a server's answer, which leaves out empty fields."""
    info, data = run.get("info", {}), run.get("data", {})
    inputs = [each["dataset"] for each in run.get("inputs", {}).get("dataset_inputs", ())]
    metrics = [(each["key"], float(each["value"])) for each in data.get("metrics", ())]
    return StoredRun(
        run_id=info.get("run_id", ""),
        experiment_id=info.get("experiment_id", ""),
        name=info.get("run_name", ""),
        status=info.get("status", ""),
        start=_milliseconds(info.get("start_time")),
        end=_milliseconds(info.get("end_time")),
        params=_texts(data.get("params", ())),
        tags=_texts(data.get("tags", ())),
        metrics={intern(key): value for key, value in metrics if value == value},
        datasets=tuple(sorted(intern(f"{each['name']}@{each['digest']}") for each in inputs)),
    )


def _texts(pairs: Iterable[_Text]) -> dict[str, str]:
    return {intern(pair["key"]): intern(pair.get("value", "")) for pair in pairs}


def _milliseconds(time: int | str | None) -> int | None:
    return None if time is None else int(time)
