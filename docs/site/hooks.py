"""Hooks of MkDocs: pages from outside of docs/, notebooks as pages, reference from the code.

Links are written for the repository, so that they also work where its files are shown as they
are.  The site has the same folders without `docs/`; the README is its index.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import raykd
from raykd.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of docs/ that the navigation does not name to its part "How to"."""
    parts = {title: pages for part in config.nav or [] for title, pages in part.items()}
    listed = {page for pages in parts.values() for page in pages}
    parts["How to"] += sorted({path.name for path in ROOT.glob("docs/*.md")} - listed)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/, and the files that they link to."""
    generated = {
        "commands.md": commands_page(),
        "python.md": python_page(),
        **{f"notebooks/{path.stem}.md": notebook_page(path) for path in notebooks()},
    }
    for uri, text in generated.items():
        files.append(File.generated(config, uri, content=text))
    linked = {path for file in files.documentation_pages() for path in outside(file)}
    pending = [*PAGES, *sorted(linked - {*PAGES})]
    copied: set[str] = set()
    while pending:
        path = pending.pop()
        if path in copied or not (ROOT / path).is_file():
            continue
        copied.add(path)
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, site_uri(path), content=rewrite(text, path)))
            pending += [each for each in targets(text, path) if not each.startswith("docs/")]
        else:
            source = str(ROOT / path)
            files.append(File.generated(config, site_uri(path), abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt the links of a page of docs/ to the folders of the site."""
    if page.file.generated_by:
        return markdown
    return rewrite(markdown, f"docs/{page.file.src_uri}")


def site_uri(path: str) -> str:
    """Return the place of a file of the repository in the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def targets(text: str, path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for _, target in LINK.findall(text):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def outside(file: File) -> Iterator[str]:
    """Yield the files outside of docs/ that a page of docs/ links to."""
    if not file.generated_by:
        for target in targets(file.content_string, f"docs/{file.src_uri}"):
            if not target.startswith("docs/"):
                yield target


def rewrite(text: str, path: str) -> str:
    """Return the text of a page with links for the site."""
    home = posixpath.dirname(site_uri(path)) or "."

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return match[1] + posixpath.relpath(site_uri(target), home)

    return LINK.sub(site_link, text)


# Generated pages


def notebooks() -> list[Path]:
    return sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its text and code, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download this notebook]({path.name})")
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """Return the reference of the Python functions and classes."""
    names = [name for name in raykd.__all__ if not name.startswith("_")]
    parts = ["# Python", "Names of the package `raykd`; see [results](results.md#from-python)."]
    for title, members in (
        ("Functions", filter(str.islower, names)),
        ("Classes", (name for name in names if not name.islower())),
    ):
        parts.append(f"## {title}")
        for name in members:
            home = getattr(raykd, name).__module__
            parts.append(f"::: {home}.{name}\n    options:\n      heading_level: 3")
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Return the reference of the commands, from the argument parser."""
    command: Any = typer.main.get_command(app)
    parts = [f"# Commands\n\n{command.help} `raykd COMMAND --help` prints the same.\n"]
    parts += [_command(name, each) for name, each in _leaves("raykd", command)]
    return "\n".join(parts)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each, child in command.commands.items():
        yield from _leaves(f"{name} {each}", child)


def _command(name: str, command: Any) -> str:
    rows = [_row(param) for param in command.params if not getattr(param, "hidden", False)]
    head = "| argument or option | meaning | default |\n|---|---|---|\n"
    table = head + "".join(rows) if rows else ""
    return f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n{table}"


def _row(param: Any) -> str:
    names = [*param.opts, *param.secondary_opts]
    if param.param_type_name == "argument":
        names = [param.metavar or param.name.upper()]
    text = (param.help or "").replace("|", "\\|").replace("\n", " ")
    default = param.default
    fallback = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    return f"| {', '.join(f'`{each}`' for each in names)} | {text} | {fallback} |\n"
