"""Settings for all tests: isolation from the user's environment."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Before torch is imported: the networks of tests are too small to be worth two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # jobs of GenAI evaluations
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_worker_niceness", "0")  # by default other tests starve Ray's workers

# A shell's background job ignores Ctrl-C, and its processes do too: tests of signals need it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

USER_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "RAY_ADDRESS",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's cluster and tracking server from the environment."""
    for name in USER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _tables_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copy MLflow's tables into the new stores of this process: making them takes seconds."""
    from raykd.tracking import mlflow_client
    from raykd.tracking.store_uri import database_file

    tables = tmp_path_factory.mktemp("tables") / "mlflow.db"
    find_folder = mlflow_client.database_folder

    def copy_tables(uri: str) -> Path | None:
        folder, file = find_folder(uri), database_file(uri)
        if folder is not None and file not in (None, tables) and not file.exists():
            if not tables.exists():
                mlflow_client.connect(f"sqlite:///{tables}")
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tables, file)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_client, "database_folder", copy_tables)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the clone."""
    return Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_user_code_of_other_tests() -> Iterator[None]:
    """Forget the options of user code that a test has registered."""
    yield
    if module := sys.modules.get("raykd.registry"):
        for registry in module.Registry.all:
            if registry._user:
                registry._user.clear()
                module.Registry.version += 1
