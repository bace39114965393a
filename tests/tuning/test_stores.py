"""Tracking store of a study: tracking.uri, MLflow's environment variable, paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.tracking import Tracker, events
from raykd.tracking.events import StudyStarted
from raykd.tracking.store_uri import absolute, masked, unusable
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.mlflow_store import store_notice, with_recorded_store
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

STUDY = """\
name: small
data: {name: digits, limit: 60, val_limit: 30}
student: {model: {name: mlp, depth: 1, width: 4}}
scheme: alone
train: {epochs: 1, batch_size: 32}
search: {trials: 1, replicates: 0, finalists: 1}
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def store(text: str = STUDY, *overrides: str) -> str:
    Path("study.yaml").write_text(text)
    return load_or_use("study.yaml", overrides).settings.tracking.uri


def written(uri: str) -> str:
    return f"{STUDY}tracking: {{uri: '{uri}'}}\n"


def test_default_is_in_working_folder(tmp_path: Path) -> None:
    assert store() == f"sqlite:///{tmp_path}/mlflow.db"


def test_environment_is_used_if_study_sets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert store() == f"sqlite:///{tmp_path}/other.db"
    assert store(written("sqlite:///mine.db")) == f"sqlite:///{tmp_path}/mine.db"
    study = load_or_use("study.yaml")
    assert "is not used" in store_notice(study) and "mine.db" in store_notice(study)
    assert store(written("sqlite:///other.db")) and not store_notice(load_or_use("study.yaml"))
    assert store(STUDY, "tracking.experiment=mine") == f"sqlite:///{tmp_path}/other.db"
    assert store_notice(load_or_use("study.yaml")).startswith("runs go to sqlite")


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", "TMP/mlflow.db"),
        ("sqlite:///below/runs.db", "TMP/below/runs.db"),
        ("sqlite:////TMP/abs.db", "TMP/abs.db"),
        ("sqlite:///~/runs.db", "TMP/home/runs.db"),
        ("sqlite:///my runs/a b.db", "TMP/my runs/a b.db"),
        ("sqlite:///a#b/ü.db", "TMP/a#b/ü.db"),
        ("sqlite:///./x/../y.db", "TMP/y.db"),
        ("sqlite:///x.db?timeout=10", "TMP/x.db?timeout=10"),
    ],
)
def test_paths_of_databases(uri: str, file: str, tmp_path: Path) -> None:
    home = str(tmp_path)
    uri_ = uri.replace("/TMP", home)
    assert store(written(uri_)) == f"sqlite:///{file.replace('TMP', home)}"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "folder or file"),
        ("mlruns", "folder or file"),
        ("mlflow.db", "folder or file"),
        ("~/mlflow.db", "folder or file"),
        ("file:///tmp/mlruns", "folder or file"),
        ("C:/mlruns", "folder or file"),
        ("sqlite://mlflow.db", "three slashes(.|\n)*sqlite:///mlflow.db"),
        ("sqlite:mlflow.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("sqlite:///my%20runs/mlflow.db", "such as a space"),
        ("sqlite:///what?/mlflow.db", "ends the path"),
        ("sqlite:///study.yaml/..", "is a folder"),
        ("http:///x", "names no host"),
        ("ftp://host/x", "is no tracking store"),
        ("http:me:s3cret@host", r"me:\*\*\*@host.*is no tracking store"),
    ],
)
def test_unusable_uris_raise_with_their_place(uri: str, message: str) -> None:
    with pytest.raises(StudyError, match=message) as refused:
        store(written(uri))
    assert "tracking.uri" in str(refused.value) and "study.yaml:7" in str(refused.value)


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_working_folder_that_mlflow_misreads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(StudyError, match=r"ends the path|another character"):
        store()


def test_invalid_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(StudyError, match=r"MLFLOW_TRACKING_URI: '\./mlruns' is a folder"):
        store()
    assert store(written("sqlite:///x.db")).endswith("/x.db")


@pytest.mark.parametrize("uri", ["http://host:5000", "https://host/mlflow", "databricks://prod"])
def test_server_uris_are_unchanged(uri: str) -> None:
    assert store(written(uri)) == uri and unusable(uri) == ("", "")


# Passwords


def test_password_in_study_raises() -> None:
    with pytest.raises(StudyError, match="contains a password") as refused:
        store(written("http://me:s3cret@host:5000"))
    assert "s3cr" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:s3cret@host",
        "postgresql://me:s3c@ret@db/x",
        "mysql+pymysql://u@h/d?password=s3cret",
    ],
)
def test_no_part_of_password_is_printed(uri: str) -> None:
    assert "s3c" not in masked(uri) and "ret" not in masked(uri)


def test_password_of_environment_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "http://me:s3cret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    monkeypatch.setattr(Tracker, "close", lambda self, timeout: self.abandon())
    Path("study.yaml").write_text(STUDY)
    published: list[object] = []
    study = load_or_use("study.yaml")
    assert study.settings.tracking.uri == secret
    result = SearchRun(study, listeners=[published.append]).run(LocalExecutor())
    for file in Path(result.folder).rglob("*"):
        assert file.is_dir() or b"s3cret" not in file.read_bytes(), file
    assert "s3cret" not in str(published)
    assert result.tracking_uri == "http://me:***@127.0.0.1:9"
    assert absolute(result.tracking_uri) == secret
    recorded = events(result.folder / "journal.jsonl")
    assert with_recorded_store(study, recorded).settings.tracking.uri == secret
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(StudyError, match="its password is not stored"):
        with_recorded_store(study, recorded)


def test_resumed_study_keeps_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store()
    first = {"tracking": {"uri": "sqlite:////first/place.db"}}
    started = StudyStarted("a", resolved=first, store_from="MLFLOW_TRACKING_URI")
    assert (
        with_recorded_store(load_or_use("study.yaml"), [started]).settings.tracking.uri
        == first["tracking"]["uri"]
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert (
        with_recorded_store(load_or_use("study.yaml"), [started]).settings.tracking.uri
        == first["tracking"]["uri"]
    )
    plain = StudyStarted("a", resolved=first)  # it began with the default
    assert with_recorded_store(load_or_use("study.yaml"), [plain]).settings.tracking.uri.endswith(
        "/mlflow.db"
    )
    Path("study.yaml").write_text(written("sqlite:///mine.db"))
    assert with_recorded_store(load_or_use("study.yaml"), [plain]).settings.tracking.uri.endswith(
        "/mine.db"
    )


@pytest.mark.parametrize("name", ["a/b", "a:b", "''"])
def test_name_that_registry_rejects(name: str) -> None:
    with pytest.raises(StudyError, match=r"tracking\.register"):
        store(STUDY, f"tracking.register={name}")
