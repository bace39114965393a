"""Connection to MLflow's tracking store, and lookup of experiments and runs in it.

MLflow is imported inside the functions that need it because its import takes seconds.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import os
import re
import shlex
import socket
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}
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


TRACKING = "MLFLOW_TRACKING_URI"
"""MLflow's environment variable."""


def absolute(uri: str) -> str:
    """Return `uri` in a form that does not depend on the working folder.

    A masked password, as in a journal, is replaced by the one in MLFLOW_TRACKING_URI.
    """
    file = database_file(uri)
    if file is not None:
        query = uri.partition("?")[1:]
        return f"sqlite:///{file}" + "".join(query)
    given = os.environ.get(TRACKING, "")
    return given if HIDDEN in uri and masked(given) == uri else uri


def unusable(uri: str) -> tuple[str, str]:
    """Return the reason MLflow cannot store runs at `uri`, and a fix; empty strings if it can.

    Only the form of the URI is checked.
    """
    scheme, colon, rest = uri.partition(":")
    kind = scheme.split("+")[0]
    advice = "write sqlite:///mlflow.db (a file here), sqlite:////folder/mlflow.db, or the "
    advice += "http(s):// address of an MLflow server"
    if kind == "sqlite" and colon:
        return _unusable_sqlite(uri, rest)
    if _is_server(uri):
        host = urllib.parse.urlsplit(uri).hostname
        return ("", "") if host else (f"{masked(uri)!r} names no host", "write http://host:port")
    if kind in (*DATABASE_PORTS, "databricks", "databricks-uc", "uc") or uri == "databricks":
        return "", ""
    if not colon or kind == "file" or not re.fullmatch(r"[A-Za-z][\w.+-]+", scheme):
        return f"{uri!r} is a folder or file; MLflow keeps runs in a database", advice
    shown = re.sub(r":[^/\s:@]+@", f"{HIDDEN}@", masked(uri))  # the slashes may be missing
    return f"{shown!r} is no tracking store of MLflow", advice


def _unusable_sqlite(uri: str, rest: str) -> tuple[str, str]:
    file = database_file(uri)
    if file is None:
        name = rest.strip("/").partition("?")[0]
        example = f"sqlite:///{name}" if name and name != ":memory:" else "sqlite:///mlflow.db"
        return f"{uri!r} names no file: three slashes come before a file's path", f"write {example}"
    query = uri.partition("?")[2]
    if "?" in str(file) or (query and not QUERY.fullmatch(query)):
        what = f"{str(file) if '?' in str(file) else uri!r}: '?' ends the path of a database"
        return what, "use a folder and a file without '?'"
    if re.search(r"%[0-9A-Fa-f]{2}", str(file)):
        what = f"{file}: MLflow reads '%' and two digits in a path as another character"
        return what, "write the character itself, such as a space, or use another folder"
    if file.is_dir():
        return f"{file} is a folder", f"name a file: {uri.rstrip('/')}/mlflow.db"
    return "", ""


QUERY = re.compile(r"[\w.]+=[^&=?/]*(&[\w.]+=[^&=?/]*)*")


def holds_password(uri: str) -> bool:
    """Return True if `uri` contains a password."""
    return masked(uri) != uri


def database_file(uri: str) -> Path | None:
    """Return the absolute path of a sqlite URI's file, or None for other URIs."""
    prefix, slashes, path = uri.partition(":///")
    if not slashes or prefix.split("+")[0] != "sqlite" or not path or path == ":memory:":
        return None
    path = path.partition("?")[0]
    return Path(os.path.abspath(os.path.expanduser(path))) if path else None


def database_folder(uri: str) -> Path | None:
    """Return the folder of a sqlite URI's file, or None for other URIs."""
    file = database_file(uri)
    return None if file is None else file.parent


def masked(uri: str) -> str:
    """Return `uri` with its password hidden, for use in messages and files."""
    hidden = re.sub(r"(?<=://)([^/@:\s]*):[^/\s]+@", rf"\1{HIDDEN}@", uri)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|token)=)[^&\s]+", r"\1***", hidden)


HIDDEN = ":***"


KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes MLflow's pages show curves and models first, not prompts and traces."""


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the ID of an experiment, which is created if missing and restored if deleted.

    With a sqlite store, new experiments store their files in `mlartifacts/` next to the database.
    MLflow's own default is the working folder of the first process.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(
                name, artifact_location=_artifact_folder(name, uri), tags=KIND
            )
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # created by another process
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def run_ids(client: MlflowClient, experiment: str, study_id: str) -> dict[str, str]:
    """Return MLflow's run IDs of a study by `raykd.id`.

    The server may still complete a request that timed out on the client, which creates a run
    twice.  The run with less content is deleted.
    """
    found: dict[str, Run] = {}
    for run in _study_runs(client, experiment, study_id):
        id = run.data.tags.get("raykd.id", "")
        emptier, fuller = sorted((found.get(id, run), run), key=_content)
        if emptier is not fuller:
            client.delete_run(emptier.info.run_id)
        found[id] = fuller
    return {id: run.info.run_id for id, run in found.items()}


def _study_runs(client: MlflowClient, experiment: str, study_id: str) -> Iterator[Run]:
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
            command of `ui_command` runs.
    """

    run_id: str
    experiment_id: str
    status: str
    page: str

    @property
    def experiment_page(self) -> str:
        """Return the address of the experiment's page, which compares and filters all trials."""
        return self.page.rpartition("/runs/")[0]


def find_run(uri: str, study_id: str) -> FoundRun | None:
    """Return the parent run of study `study_id`, or None.

    Raises:
        ValueError: the store cannot be reached.
    """
    try:
        client = connect(uri)
        everywhere = [found.experiment_id for found in client.search_experiments()]
        runs = client.search_runs(
            everywhere, f"tags.`raykd.id` = {quoted(study_id)}", max_results=1
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
    return f"{_address(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


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


def ui_command(uri: str) -> str:
    """Return the address of a server, or the command that opens the store in MLflow's UI.

    A password in `uri` is omitted from the command and has to be filled in.
    """
    if _is_server(uri):
        return masked(uri).rstrip("/")
    return f"mlflow ui --backend-store-uri {shlex.quote(masked(uri))}"


def _address(uri: str) -> str:
    return masked(uri).rstrip("/") if _is_server(uri) else UI_ADDRESS


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@dataclass(frozen=True)
class StoreCheck:
    """Result of a check of a tracking store.

    Attributes:
        ok: True if the store can be used.
        message: result of the check in words.
        fix: suggested fix; empty if `ok`.
    """

    ok: bool
    message: str
    fix: str = ""


def check_store(uri: str, *, timeout: float = 4.0) -> StoreCheck:
    """Check the store within about `timeout` s, without writing to it or importing MLflow."""
    if database_file(uri) is not None:
        return _check_sqlite(uri)
    if _is_server(uri):
        return _check_server(uri, timeout)
    scheme = uri.partition(":")[0].split("+")[0] if ":" in uri else ""
    if scheme in DATABASE_PORTS:
        return _check_database(uri, scheme, timeout)
    if scheme == "databricks":
        return StoreCheck(True, "Databricks: not looked at; MLflow reads its own settings")
    if scheme == "sqlite":
        what = f"{uri!r} keeps nothing: a sqlite URI names a file after three slashes"
        return StoreCheck(False, what, "write for example sqlite:///mlflow.db")
    return StoreCheck(
        False,
        f"{masked(uri)!r} is no tracking store: MLflow keeps runs in a database or on a server, "
        "no longer in a folder",
        "use sqlite:///mlflow.db, the http(s):// address of an MLflow server, or "
        "postgresql://user@host/database",
    )


def _check_sqlite(uri: str) -> StoreCheck:
    file = database_file(uri)
    assert file is not None
    if not file.exists():
        folder = next(parent for parent in file.parents if parent.exists())
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return StoreCheck(True, f"{file}: will be created")
        return StoreCheck(False, f"{file}: {folder} cannot be written", "use another folder")
    if not os.access(file, os.R_OK | os.W_OK) or not os.access(file.parent, os.W_OK):
        fix = "make the file and its folder writable, or use another file"
        return StoreCheck(False, f"{file}: cannot be written", fix)
    return _check_tables(file)


def _check_tables(file: Path) -> StoreCheck:
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2)) as base:
            tables = {row[0] for row in base.execute("SELECT name FROM sqlite_master")}
            query = "SELECT version_num FROM alembic_version"
            versions = [row[0] for row in base.execute(query)] if "runs" in tables else []
    except sqlite3.Error as error:
        return StoreCheck(False, f"{file}: {error}", "use another file for MLflow's runs")
    if tables and "runs" not in tables:
        return StoreCheck(False, f"{file}: another program's database", "use another file")
    if versions and versions[0] != (newest := _newest_schema()) and newest:
        return StoreCheck(
            False,
            f"{file}: its tables are of another MLflow version (schema {versions[0]}, here "
            f"{newest})",
            f"back the file up, then: mlflow db upgrade sqlite:///{file}",
        )
    return StoreCheck(True, f"{file}: ready")


def _newest_schema() -> str:
    """Return the schema that the installed MLflow expects, which is its last migration."""
    spec = importlib.util.find_spec("mlflow")
    places = list(spec.submodule_search_locations or ()) if spec else []
    revisions: set[str] = set()
    followed: set[str] = set()
    for place in places:
        for file in Path(place, "store", "db_migrations", "versions").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            revisions.update(re.findall(r'^revision = "(\w+)"', text, re.MULTILINE))
            followed.update(re.findall(r'^down_revision = "(\w+)"', text, re.MULTILINE))
    newest = revisions - followed
    return newest.pop() if len(newest) == 1 else ""


def _check_server(uri: str, timeout: float) -> StoreCheck:
    address = masked(uri).rstrip("/")
    try:
        request = _request(uri)
    except ValueError as error:
        return StoreCheck(False, f"{address}: {error}", "write http://host:port")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            body = answer.read(100_000)
    except urllib.error.HTTPError as error:
        return _check_refusal(address, error)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fix = (
            "start it (mlflow server), or correct tracking.uri; until then runs are stored in the "
        )
        return StoreCheck(False, f"{address}: no answer ({reason})", fix + "journal of the study")
    return _check_answer(address, body)


def _check_refusal(address: str, error: urllib.error.HTTPError) -> StoreCheck:
    body = error.read(100_000)
    if error.code == 401:
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN"
        return StoreCheck(False, f"{address}: asks for credentials", fix)
    if error.code == 403:
        fix = "start the server with --allowed-hosts naming this host, or ask for access"
        return StoreCheck(False, f"{address}: refuses ({error.reason})", fix)
    return _check_answer(address, body)


def _check_answer(address: str, body: bytes) -> StoreCheck:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and ("experiment" in answer or "error_code" in answer):
        return StoreCheck(True, f"{address}: answers")
    return StoreCheck(False, f"{address}: answers, but is no MLflow server", "correct tracking.uri")


def _request(uri: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(uri)
    if not parts.hostname:
        raise ValueError("no host")
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/") + "/api/2.0/mlflow/experiments/get-by-name"
    query = "experiment_name=Default"
    url = urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
    request = urllib.request.Request(url)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", parts.username)
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD", parts.password)
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user and password:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    return request


def _check_database(uri: str, scheme: str, timeout: float) -> StoreCheck:
    parts = urllib.parse.urlsplit(uri)
    named = uri.partition(":")[0].partition("+")[2]
    driver = named or DRIVERS[scheme]
    if importlib.util.find_spec(driver) is None:
        return StoreCheck(False, f"{masked(uri)}: Python's {driver} is missing", "install it")
    place = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[scheme])
    try:
        socket.create_connection(place, timeout=timeout).close()
    except OSError as error:
        fix = "start the database, or correct tracking.uri"
        return StoreCheck(False, f"{place[0]}:{place[1]}: no answer ({error})", fix)
    return StoreCheck(True, f"{place[0]}:{place[1]}: answers; its tables were not looked at")
