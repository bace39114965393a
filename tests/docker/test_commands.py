"""Commands of Ray and raykd in containers, scripts and documents: the installed CLIs have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import cli as ray
from typer.main import get_command

from raykd.cli import commands

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted(file for file in (ROOT / "docker").rglob("*") if file.is_file()),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS: dict[str, Any] = {"ray": ray, "raykd": get_command(commands.app)}
COMMAND = re.compile(r"(?<![\w./-])(ray|raykd) ((?:[a-z][\w-]*|--\w[\w-]*)(?: [^\n;|&`#>]*)?)")


def commands_in(text: str) -> Iterator[tuple[Any, str]]:
    """Yield the commands of the programs, each with its arguments as one text."""
    # one line for each command, in shell, YAML and Compose
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\n\s+(?=--)", " ", joined)
    for program, rest in COMMAND.findall(joined):
        command, words = PROGRAMS[program], rest.split()
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        if not hasattr(command, "commands"):
            yield command, " ".join(words)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_their_options_exist(file: Path) -> None:
    for command, arguments in commands_in(file.read_text(encoding="utf-8")):
        options = {option for param in command.params for option in (*param.opts, "--help")}
        options |= {option for param in command.params for option in param.secondary_opts}
        call, *_ = re.split(r"(?:^| )-- ", arguments)  # then another command follows
        words = re.findall(r"(?<![\w-])--[a-z][\w-]*", call)
        assert set(words) <= options, f"{command.name} {call}"


def test_the_commands_are_found() -> None:
    texts = [file.read_text(encoding="utf-8") for file in FILES]
    names = {command.name for text in texts for command, _ in commands_in(text)}
    assert {"start", "submit", "get-auth-token", "drain-node", "search", "doctor"} <= names
