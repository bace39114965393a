"""Documents of the repository: their pages and their blocks of code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docker/**/*.md")])

NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
"""Line before a block that a test cannot run, with the reason."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        place: file and line of its fence.
        language: of the fence, "" without one.
        text: the code.
        excuse: reason why no test runs it; "" if it is run.
    """

    place: str
    language: str
    text: str
    excuse: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    name, fence, language, excuse, code = page.relative_to(ROOT), 0, "", "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            if fence:
                code.append(line)
            elif line.strip():
                match = NOT_RUN.match(line)
                excuse = match[1] if match else ""
        elif fence:
            yield Block(f"{name}:{fence}", language, "\n".join([*code, ""]), excuse)
            fence, excuse = 0, ""
        else:
            fence, language, code = number, line[3:].strip(), []


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in these languages."""
    return [each for page in PAGES for each in blocks(page) if each.language in languages]


def user_files(page: Path) -> dict[str, str]:
    """Return the files of user code on a page: Python blocks that begin with `# FILE.py`."""
    code = [each.text for each in blocks(page) if each.language == "python"]
    named = [(re.match(r"# (\w+\.py)\n", text), text) for text in code]
    return {match[1]: text for match, text in named if match is not None}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words: lines joined at `\\`, split at operators."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("&|;<>"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def raykd_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of `raykd` in a command; None if the command does not run it.

    The service `study` of docker compose and the SLURM script run raykd, too.
    """
    if "raykd" in words and words[0] in ("raykd", "uv", "ray"):
        return words[words.index("raykd") + 1 :]
    if words[:2] == ["docker", "compose"] and "study" in words:
        return words[words.index("study") + 1 :]
    if words[:1] == ["sbatch"]:
        script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        return ["search", *words[script + 1 :]]
    return None
