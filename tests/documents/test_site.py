"""The site of the documents: every page is in its navigation, and it builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import raykd
from helpers.documents import ROOT
from raykd.cli.commands import app

CONFIGURATION = ROOT / "docs/site/mkdocs.yml"
GENERATED = {"commands.md", "python.md"}


class Loader(yaml.SafeLoader):
    """Reads MkDocs' file without the functions that it names."""


Loader.add_multi_constructor("!!python/", lambda loader, suffix, node: None)
Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def pages_of(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    else:
        parts = navigation.values() if isinstance(navigation, dict) else navigation
        for part in parts:
            yield from pages_of(part)


def navigation() -> list[str]:
    return list(pages_of(yaml.load(CONFIGURATION.read_text(encoding="utf-8"), Loader)["nav"]))


def test_navigation_lists_each_page_once() -> None:
    possible = {path.name for path in ROOT.glob("docs/*.md")} | GENERATED
    possible |= {f"notebooks/{path.stem}.md" for path in ROOT.glob("docs/notebooks/*.ipynb")}
    possible |= {str(path.relative_to(ROOT)) for path in ROOT.glob("docker/**/*.md")}
    possible |= {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    possible |= {"benchmarks/RESULTS.md", "benchmarks/data/README.md"}
    listed = navigation()
    assert [page for page in listed if page not in possible] == []
    assert len(listed) == len(set(listed))


def test_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.name for path in ROOT.glob("docs/*.md")]
    assert [page for page in pages if f"](docs/{page})" not in readme] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        pytest.skip("needs the group docs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", CONFIGURATION, "-d", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_navigation(site: Path) -> None:
    links = set(
        re.findall(r'<a href="([^"#]+)" class="md-nav__link', (site / "index.html").read_text())
    )
    pages = [path.stem for path in ROOT.glob("docs/*.md")] + ["commands", "python"]
    pages += [f"notebooks/{path.stem}" for path in ROOT.glob("docs/notebooks/*.ipynb")]
    assert [page for page in pages if f"{page}.html" not in links] == []


@pytest.mark.slow
def test_site_needs_no_other_host(site: Path) -> None:
    loads = re.compile(r'(?:src|href)="(https?:[^"]+\.(?:css|js|woff2?|png|svg))"')
    loaded = {host for page in site.rglob("*.html") for host in loads.findall(page.read_text())}
    assert loaded == set()


@pytest.mark.slow
def test_reference_has_every_name_and_command(site: Path) -> None:
    python = (site / "python.html").read_text()
    names = [name for name in raykd.__all__ if not name.startswith("_")]
    assert [name for name in names if f".{name}" not in python] == []
    commands = (site / "commands.html").read_text()
    group: Any = typer.main.get_command(app)
    assert [name for name in group.commands if f"raykd {name}" not in commands] == []
