"""`raykd init`: study files to start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.study.checks.load import load_study
from raykd.study.starters import STARTERS, starter_text, write_starter


@pytest.mark.parametrize("name", STARTERS)
def test_starters_equal_files_of_repository(name: str, repository: Path) -> None:
    shipped = repository / "raykd/study/templates" / f"{name}.yaml"
    assert shipped.read_text() == (repository / "search_spaces" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", STARTERS)
def test_commands_contain_file_name(name: str) -> None:
    text = starter_text(name, "mine.yaml")
    assert f"raykd {STARTERS[name].verb} mine.yaml" in text
    assert "search_spaces" not in text


def test_quickstart_is_valid(tmp_path: Path) -> None:
    study = load_study(write_starter("quickstart", tmp_path / "study.yaml"))
    assert study.settings.name == "quickstart"


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("mine")
    with pytest.raises(StudyError, match=r"already exists\n    -> use another file, or add --f"):
        write_starter("quickstart", file)
    assert file.read_text() == "mine"
    write_starter("quickstart", file, force=True)
    assert file.read_text().startswith("# Handwritten digits")


def test_unwritable_file_raises(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"unknown study 'quikstart'.*\n.*did you mean 'quickst"):
        write_starter("quikstart", tmp_path / "study.yaml")
    with pytest.raises(StudyError, match="is a folder"):
        write_starter("text", tmp_path)
    with pytest.raises(StudyError, match="cannot be written: No such file"):
        write_starter("text", tmp_path / "no" / "study.yaml")


def test_command_prints_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "--from", "pairing", "my study.yaml"])
    assert done.exit_code == 0, done.output
    assert "raykd validate 'my study.yaml'" in done.stdout
    assert "raykd pairs 'my study.yaml'" in done.stdout
    assert CliRunner().invoke(app, ["init", "my study.yaml"]).exit_code == 2
    printed = CliRunner().invoke(app, ["init", "-"])
    assert printed.stdout == starter_text("quickstart", "FILE")
    assert {path.name for path in tmp_path.iterdir()} == {"my study.yaml"}
