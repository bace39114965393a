from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import raykd
from raykd.compat.packages import is_installed, launcher


def test_packages_are_looked_up_without_import() -> None:
    assert is_installed("json")
    assert not is_installed("no_such_package")
    assert not is_installed("no_such_package.part")


def test_package_that_replaces_its_module_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replacement:
        __spec__ = None

    monkeypatch.setitem(sys.modules, "colorful", Replacement())  # type: ignore[arg-type]
    assert is_installed("colorful")


def test_commands_are_printed_as_raykd_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert launcher() == ""
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert launcher() == "uv run "


EXEMPT = ("run raykd sync {study.folder} --from-start", "Random(", "<!-- raykd")
"""A command for another machine, where raykd may be started in another way; and no commands."""


def test_every_complete_command_has_launcher() -> None:
    """A command with a value filled in can be pasted; a verb in a sentence cannot."""
    command = re.compile(r"raykd (?:[a-z-]+|\{[^}]+\})(?: --?[a-z-]+)* \{")
    missing = [
        f"{file.name}: {line.strip()}"
        for file in Path(raykd.__file__).parent.rglob("*.py")
        for line in file.read_text().splitlines()
        for match in command.finditer(line)
        if not line[: match.start()].endswith(("{launcher()}", "{raykd} "))
        and not any(text in line for text in EXEMPT)
    ]
    assert missing == []
