"""Checks of a tracking store before a study starts, without MLflow."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import socket
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from raykd.compat.packages import is_installed
from raykd.tracking.store_uri import DATABASE_PORTS, database_file, is_server, masked

DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg": ("psycopg", "'psycopg[binary]'"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mysql+mysqldb": ("MySQLdb", "mysqlclient"),
    "mysql+mysqlconnector": ("mysql.connector", "mysql-connector-python"),
    "mssql": ("pyodbc", "pyodbc"),
}
"""Module and package of SQLAlchemy's driver for a scheme.  Others have the name of the driver."""


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
    if is_server(uri):
        return _check_server(uri, timeout)
    scheme = uri.partition(":")[0].split("+")[0] if ":" in uri else ""
    if scheme in DATABASE_PORTS:
        return _check_database(uri, scheme, timeout)
    if scheme == "databricks":
        return StoreCheck(True, "Databricks: not looked at; MLflow reads its own settings")
    if scheme == "sqlite":
        reason = f"{uri!r} keeps nothing: a sqlite URI names a file after three slashes"
        return StoreCheck(False, reason, "write for example sqlite:///mlflow.db")
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
    dialect = uri.partition(":")[0]
    name = dialect.partition("+")[2]
    module, package = DRIVERS.get(dialect, (name, name))
    if not is_installed(module):
        problem = f"{masked(uri)}: the database driver {module} is missing"
        return StoreCheck(False, problem, f"python -m pip install {package}")
    place = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[scheme])
    try:
        socket.create_connection(place, timeout=timeout).close()
    except OSError as error:
        fix = "start the database, or correct tracking.uri"
        return StoreCheck(False, f"{place[0]}:{place[1]}: no answer ({error})", fix)
    return StoreCheck(True, f"{place[0]}:{place[1]}: answers; its tables were not looked at")
