"""Modules of the user's own that are sent to the nodes of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.runtime import shipped_code
from raykd.runtime.shipped_code import is_too_large, modules_to_send


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with modules at its top, in packages, and in an environment of its own."""
    files = ("net.py", "package/models/net.py", "source/other/net.py", "weights.pt")
    for name in (*files, ".venv/lib/site-packages/installed/net.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        (["net.py"], ["net.py"]),
        (["package/models/net.py", "net.py"], ["net.py", "package"]),
        (["weights.pt"], []),
        ([".venv/lib/site-packages/installed/net.py"], []),
        # it may be imported as source.other.net or as other.net
        (["source/other/net.py"], ["source", "source/other"]),
    ],
)
def test_the_outermost_modules_are_sent(
    files: list[str], modules: list[str], project: Path
) -> None:
    expected = [project / module for module in modules]
    search_path = [str(project), "source", str(project / ".venv/lib/site-packages")]
    assert modules_to_send(files, search_path) == expected
    absolute = [str(project / file) for file in files]
    assert modules_to_send(absolute, search_path) == expected


def test_the_current_folder_is_searched(project: Path) -> None:
    assert modules_to_send(["package/models/net.py"]) == [project / "package"]
    assert modules_to_send(["/no/such/folder/net.py"]) == []


def test_large_packages_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_too_large(project / "package") and not is_too_large(project / "net.py")
    monkeypatch.setattr(shipped_code, "MAX_BYTES", 5)
    assert is_too_large(project / "package")
