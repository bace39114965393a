"""Study folders by the name of their study, and messages about paths that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raykd.cli.commands import app
from raykd.cli.parameters import folder_of
from raykd.tuning.study_dir import create_folder
from raykd.tuning.study_lookup import find_folder, list_folders, near_folders

NAMES = ("first-20260101-120000", "first-20260103-120000", "second-20260102-120000")


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        created = create_folder(name.partition("-")[0], "studies", "", ())
        created.path.rename(created.path.with_name(name))
    (tmp_path / "studies" / "teachers").mkdir()
    return Path("studies")


def test_name_of_study_means_its_newest_folder(studies: Path) -> None:
    assert [folder.name for folder in list_folders(studies)] == [NAMES[1], NAMES[2], NAMES[0]]
    assert find_folder("first") == studies / NAMES[1]
    assert find_folder("second") == studies / NAMES[2]
    assert find_folder(NAMES[0]) == studies / NAMES[0]
    assert find_folder(studies / NAMES[0]) == studies / NAMES[0]
    assert find_folder("teachers") is None and find_folder("studies/first") is None
    assert folder_of("first", None) == studies / NAMES[1]
    assert folder_of("first", "sqlite:///mlflow.db") is None, "MLflow is asked"
    assert folder_of(f"studies/{NAMES[0]}", "sqlite:///mlflow.db") == studies / NAMES[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("studies/frist", f"did you mean studies/{NAMES[1]}?"),
        ("frist", f"did you mean studies/{NAMES[1]}?"),
        ("studies/secnd-20260102-120000", f"did you mean studies/{NAMES[2]}"),
        ("studies/TYPO", f"studies/ has {NAMES[1]}, {NAMES[2]}, {NAMES[0]} (raykd ls)"),
    ],
)
def test_near_folders_are_named(studies: Path, path: str, text: str) -> None:
    assert text in near_folders(path)


def test_without_studies_their_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "below `cluster.storage`" in near_folders("studies/TYPO")


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "studies/frist"),
        ("status", "studies/frist"),
        ("ui", "studies/frist"),
        ("stop", "studies/frist"),
        ("sync", "studies/frist"),
        ("extend", "studies/frist", "--trials", "+2"),
        ("search", "--resume", "studies/frist"),
        ("distill", "studies/frist:trial-0001"),
        ("reproduce", "studies/frist:trial-0001"),
        ("export", "studies/frist", "--to", "onnx"),
        ("register", "studies/frist", "--name", "digits"),
    ],
)
def test_every_command_names_near_folders(studies: Path, arguments: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(app, [*arguments])
    output = " ".join(refused.output.split())
    assert refused.exit_code == 2, output
    assert "studies/frist" in output and f"did you mean studies/{NAMES[1]}" in output
    assert "Traceback" not in output and not Path("mlflow.db").exists()
