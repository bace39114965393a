"""Texts that users read contain none of the phrases that raykd's older texts were full of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import raykd
from benchmarks.readability import PHRASE
from raykd.cli.commands import app

PACKAGE = Path(raykd.__file__).parent
ERRORS = {
    "Problem",
    "ValueError",
    "StudyError",
    "Infeasible",
    "Malformed",
    "Finding",
    "BadParameter",
}


def help_pages() -> Iterator[tuple[str, list[str]]]:
    group = typer.main.get_command(app)
    yield "raykd", []
    for name in group.commands:  # pyright: ignore[reportAttributeAccessIssue]
        yield f"raykd {name}", [name]
    for name in ("ls", "verify", "rm"):
        yield f"raykd cache {name}", ["cache", name]


@pytest.mark.parametrize("words", [words for _, words in help_pages()], ids=" ".join)
def test_help_is_plain_english(words: list[str]) -> None:
    page = CliRunner().invoke(app, [*words, "--help"]).output
    assert "Usage" in page
    assert [match[0] for match in PHRASE.finditer(" ".join(page.split()))] == []


ROOT = PACKAGE.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("search_spaces/*.yaml"),
    ]
)


def without_code(text: str) -> str:
    """Remove code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_documents_are_plain_english(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.parent.name == "benchmarks":  # their code blocks are output of earlier versions
        text = without_code(text)
    assert [line for line in text.splitlines() if PHRASE.search(line)] == []


def test_all_documents_are_checked() -> None:
    assert without_code("One\n```\n$ raykd search\ntold\n```\ntwo\n") == "One\n\ntwo\n"
    assert len(DOCUMENTS) > 20


def texts_of_errors(file: Path) -> Iterator[str]:
    """The string constants in arguments of errors, with their places."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in ERRORS:
            continue
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            for part in ast.walk(argument):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield f"{file.relative_to(PACKAGE)}:{part.lineno}: {part.value}"


def test_errors_are_plain_english() -> None:
    texts = [text for file in sorted(PACKAGE.rglob("*.py")) for text in texts_of_errors(file)]
    assert len(texts) > 500, "the errors were collected"
    odd = [text for text in texts if PHRASE.search(text.split(": ", 1)[1])]
    assert odd == []
