"""Example notebooks run from a clean state, show cards, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
CARDS = {
    "architecture": ["study architecture", "raykd · architecture", "Finalists"],
    "layer-pairs": ["raykd · layer-pairs", "Gain over no hint"],
    "compare": ["Finalists", "kd"],
}
"""Texts of the cards that each notebook shows."""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_use_has_notebook() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(CARDS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [c for c in code if c["outputs"] or c["execution_count"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the group docs")
    nbformat = pytest.importorskip("nbformat", reason="needs the group docs")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    html = "".join(out["data"].get("text/html", "") for out in outputs if "data" in out)
    assert [text for text in CARDS[path.stem] if text not in html] == []
    # A live card is replaced in place, so it has one state: the last one.
    assert html.count("raykd · ") == CARDS[path.stem].count(f"raykd · {path.stem}")
    (tmp_path / "cards.html").write_text(html)
