from __future__ import annotations

import importlib.metadata
import io
import socket
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raykd import doctor
from raykd.cli.commands import app
from raykd.data import SOURCES
from raykd.doctor import CheckResult, Requirements


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "SERVER_TIMEOUT", 0.5)


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_ready_machine_passes_all_checks(tmp_path: Path) -> None:
    digits = SOURCES["digits"]()
    found = list(doctor.run_checks(Requirements("sqlite:///mlflow.db", "studies", digits)))
    about = [finding.subject for finding in found]
    assert {"python", "packages", "ray", "CPUs", "GPUs", "studies", "MLflow"} <= set(about)
    assert about[-1] == "digits"
    assert not [finding for finding in found if finding.fatal]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_failed_essential_check_fails_command() -> None:
    done = CliRunner().invoke(app, ["doctor", "--uri", f"http://127.0.0.1:{unused_port()}"])
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if "MLflow" in line)
    assert line.startswith("error") and "no answer" in line


def test_invalid_study_fails() -> None:
    Path("x.yaml").write_text("name: [")
    assert CliRunner().invoke(app, ["doctor", "x.yaml"]).exit_code == 2


def test_package_versions_are_compared_with_requirements() -> None:
    have = importlib.metadata.version("typer")
    assert doctor._version_problem("typer>=0.1") == ""
    assert doctor._version_problem("typer>=999") == (
        f"typer {have} is installed, typer>=999 is required"
    )
    assert doctor._version_problem("no-such-package>=1") == "no-such-package is not installed"
    assert doctor._version_problem("no-such-package; python_version < '3'") == ""
    wanted, python = doctor._package_requirements()
    assert any(text.startswith("ray") for text in wanted)
    assert python == ">=3.11"


def test_cluster_that_does_not_answer_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    (found,) = doctor._ray(Requirements("sqlite:///mlflow.db", "studies"))
    assert found.fatal
    assert "no process listens" in found.message and "ray start --head" in found.fix


def test_cluster_without_its_dashboard_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{unused_port()}")
    dashboard = doctor._dashboard("127.0.0.1")
    assert dashboard.fatal and "--dashboard-host" in dashboard.fix


def test_folder_that_cannot_be_written_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor._folder("file/studies").fatal
    assert not doctor._folder("fresh/studies").fatal
    assert not doctor._folder("s3://bucket/path").fix


def test_missing_data_matter_to_study_that_names_them() -> None:
    missing = SOURCES["image_folder"](root="nowhere")
    (found,) = doctor._data(missing)
    assert found.fatal and "nowhere" in found.message


@pytest.mark.parametrize(
    ("finding", "mark"),
    [
        (CheckResult("a", "fine"), "ok"),
        (CheckResult("a", "bad", "do this"), "error"),
        (CheckResult("a", "odd", "do this", essential=False), "note"),
    ],
)
def test_finding_shows_fix(finding: CheckResult, mark: str) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(doctor.render(finding))
    text = console.export_text()
    assert text.split()[0] == mark
    assert ("-> do this" in text) == bool(finding.fix)


@pytest.mark.parametrize("name", [".ray/auth_token", ".netrc", ".pgpass", ".aws/credentials"])
def test_secrets_readable_by_others_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr("raykd.runtime.cluster_check.is_exposed", readable_by_others)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    file = home / name
    file.parent.mkdir(parents=True)
    file.write_text("secret")
    file.chmod(0o600)
    assert not list(doctor._exposed_files())
    file.chmod(0o644)
    (result,) = doctor._exposed_files()
    assert str(file) in result.message and result.fix == f"chmod 600 {file}"
    assert not result.fatal and "secret" not in result.message.replace("secrets", "")


def readable_by_others(file: Path) -> bool:
    """As `is_exposed`, where the folder of the tests is private."""
    return file.exists() and bool(file.stat().st_mode & 0o044)
