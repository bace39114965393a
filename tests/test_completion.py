"""Shell completion, as the shell asks for it: by a process of its own, without heavy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from raykd.cli import completion
from raykd.cli.completion_words import text

TELLS_IMPORTS = """
import sys
import raykd.cli.commands
try:
    raykd.cli.commands.app(prog_name="raykd")
finally:
    print(*sorted({"torch", "ray", "mlflow", "optuna", "pandas"} & set(sys.modules)))
"""


def completed(line: str, folder: Path) -> list[str]:
    """The words that bash gets for a command line, then the heavy packages that were imported."""
    words = line.split(" ")
    asked = {
        "_RAYKD_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    ran = subprocess.run(
        [sys.executable, "-c", TELLS_IMPORTS],
        env={**os.environ, **asked},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    *found, heavy = ran.stdout.split("\n")[:-1]
    assert heavy == "", f"{line!r} imported {heavy}"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("digits-20260101-000000", "digits-20260102-000000"):
        study = tmp_path / "studies" / name
        study.mkdir(parents=True)
        (study / "journal.jsonl").touch()
    os.utime(tmp_path / "studies/digits-20260101-000000/journal.jsonl", (0, 0))
    (tmp_path / "studies" / "teachers").mkdir()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raykd list lo", ["losses"]),
        ("raykd list losses dk", ["dkd"]),
        ("raykd list schemes tf", ["tf_kd", "tf_kd_self"]),
        ("raykd layers wide", ["wide_resnet"]),
        ("raykd search --set search.tr", ["search.trials="]),
        ("raykd distill x.yaml --set knowledge[0].loss.temp", ["knowledge[0].loss.temperature="]),
        ("raykd validate mi", ["mine.yaml"]),
        (
            "raykd report studies/d",
            ["studies/digits-20260102-000000", "studies/digits-20260101-000000"],
        ),
        ("raykd search --resume stu", ["studies/digits-20260102-000000"]),
    ],
)
def test_shell_completes(line: str, expected: list[str], folder: Path) -> None:
    words = completed(line, folder)
    assert words[: len(expected)] == expected


def test_completion_words_are_up_to_date() -> None:
    stored = files("raykd.cli").joinpath("completions.json").read_text(encoding="utf-8")
    assert stored == text(), "run: python -m raykd.cli.completion_words"


def test_names_of_other_packages_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "cosine"
        dist = None

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()])
    assert ("cosine", "") in completion._plugins("losses")
