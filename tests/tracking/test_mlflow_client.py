from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from raykd.tracking import check_store
from raykd.tracking.store_uri import absolute, database_file, masked


@pytest.mark.parametrize(
    ("dialect", "module", "package"),
    [
        ("postgresql", "psycopg2", "psycopg2-binary"),
        ("postgresql+psycopg2", "psycopg2", "psycopg2"),
        ("postgresql+psycopg", "psycopg", "psycopg[binary]"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
        ("mysql+mysqlconnector", "mysql.connector", "mysql-connector-python"),
        ("mssql", "pyodbc", "pyodbc"),
        ("mssql+pymssql", "pymssql", "pymssql"),
    ],
)
def test_missing_driver_is_named(
    dialect: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check = check_store(f"{dialect}://user:secret@127.0.0.1/db")
    assert f"the database driver {module} is missing" in check.message
    assert f"install {package}" in check.fix.replace("'", "")
    assert "secret" not in check.message + check.fix


def test_sqlite_store_has_same_uri_from_every_folder(folder: Path) -> None:
    assert database_file("sqlite:///mlflow.db") == folder / "elsewhere" / "mlflow.db"
    assert database_file("sqlite:////tmp/x.db") == Path("/tmp/x.db")
    assert absolute("sqlite:///mlflow.db") == f"sqlite:///{folder}/elsewhere/mlflow.db"
    assert absolute("http://host:5000") == "http://host:5000"
    assert database_file("sqlite://") is None and database_file("postgresql:///x") is None


def test_passwords_are_masked() -> None:
    assert masked("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"
    assert masked("could not reach http://a:b@c:1/ now") == "could not reach http://a:***@c:1/ now"
    assert masked("http://host:5000/") == "http://host:5000/"


def test_new_sqlite_store_is_fine(folder: Path) -> None:
    check = check_store("sqlite:///new/folder/mlflow.db")
    assert check.ok and "will be created" in check.message
    assert not (folder / "elsewhere" / "new").exists()


def test_used_sqlite_store_is_fine(uri: str) -> None:
    check = check_store(uri)
    assert check.ok and "ready" in check.message, check


def test_store_of_another_mlflow(uri: str, folder: Path) -> None:
    with sqlite3.connect(folder / "mlflow.db") as base:
        base.execute("UPDATE alembic_version SET version_num = '0123'")
    base.close()
    check = check_store(uri)
    assert not check.ok and "schema 0123" in check.message
    assert f"mlflow db upgrade sqlite:///{folder}/mlflow.db" in check.fix


def test_another_programs_database(folder: Path) -> None:
    with sqlite3.connect(folder / "optuna.db") as base:
        base.execute("CREATE TABLE trials (id INTEGER)")
    base.close()
    (folder / "text.db").write_text("no database at all, " * 100)
    assert "another program's" in check_store(f"sqlite:///{folder}/optuna.db").message
    check = check_store(f"sqlite:///{folder}/text.db")
    assert not check.ok and check.fix


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://host/x", "mlruns", ""])
def test_no_store_at_all(uri: str) -> None:
    check = check_store(uri)
    assert not check.ok and "sqlite:///mlflow.db" in check.fix


def test_sqlite_without_file() -> None:
    assert "keeps nothing" in check_store("sqlite://").message


class Answer(BaseHTTPRequestHandler):
    code, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "body", "ok", "text"),
    [
        (200, b'{"experiment": {}}', True, "answers"),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}', True, "answers"),
        (200, b"<html>hello</html>", False, "no MLflow server"),
        (404, b"not found", False, "no MLflow server"),
        (401, b"", False, "MLFLOW_TRACKING_USERNAME"),
        (403, b"Invalid Host header", False, "--allowed-hosts"),
    ],
)
def test_answers_of_server(
    site: str, monkeypatch: pytest.MonkeyPatch, code: int, body: bytes, ok: bool, text: str
) -> None:
    monkeypatch.setattr(Answer, "code", code)
    monkeypatch.setattr(Answer, "body", body)
    check = check_store(site)
    assert check.ok is ok
    assert text in check.message + check.fix


def test_absent_server_is_detected_quickly(site: str) -> None:
    began = time.monotonic()
    check = check_store("http://127.0.0.1:9")
    assert not check.ok and "no answer" in check.message and "journal" in check.fix
    check = check_store("postgresql+json://127.0.0.1:9/x")  # a driver that is installed
    assert not check.ok and "no answer" in check.message
    assert time.monotonic() - began < 5


def test_database_wants_its_driver() -> None:
    check = check_store("mysql+nosuchdriver://host/x")
    assert not check.ok and "nosuchdriver is missing" in check.message
