"""A journal to write, and the stores it is sent to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.mlflow_server import Server
from raykd.tracking import Journal
from raykd.tracking.mlflow_client import connect


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; the working folder is another one, in which nothing may be left.

    (MLflow's default store and its default for files lie there: they show that MLflow was called
    without a tracking URI.)
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield tmp_path
    assert list(elsewhere.iterdir()) == []


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and no runs: making them takes seconds."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def uri(folder: Path, tables: Path) -> str:
    shutil.copyfile(tables, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with Journal(folder / "study" / "journal.jsonl") as journal:
        yield journal


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()
