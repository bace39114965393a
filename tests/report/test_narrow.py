"""Tests of narrow terminals: no word is broken, whatever the width."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.text import Text
from test_light_reading import paired, searched
from typer.testing import CliRunner

from helpers.events import STUDY, Teller, watched
from raykd.cli.commands import app
from raykd.doctor import CheckResult, render
from raykd.layer_study.result import read_layer_study
from raykd.report.layers import ModelInputs, list_layers
from raykd.report.live import picture
from raykd.report.options.catalogue import find_entries
from raykd.report.options.render import render_entries
from raykd.report.space import explain_file
from raykd.report.status import StudyStatus, read_status
from raykd.report.summary import summarize
from raykd.report.terminal import render_summary
from raykd.report.terminal.layers import layer_tables
from raykd.report.terminal.status import STUDY_COLUMNS, studies_table
from raykd.terminal_tables import Column, Grid, Labeled, truncate
from raykd.tuning.result import read_result

WIDTHS = (40, 60, 80, 120)


def printed(shown: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(shown, crop=False)
    return file.getvalue()


def check(shown: RenderableType) -> None:
    """Each word of a wide terminal is unbroken in a narrow one, and lines are no longer than that
    but where one word is."""
    wide = {word.rstrip(":") for word in printed(shown, 1000).split()}
    for width in WIDTHS:
        text = printed(shown, width)
        assert wide - {word.rstrip(":") for word in text.split()} == set(), width
        lines = text.partition("Next steps")[0].splitlines()
        assert [x for x in lines if len(x) > width and len(x.split()) > 1] == [], width


def of_search(teller: Teller) -> RenderableType:
    return render_summary(summarize(read_result(searched(teller))))


def of_pairs(teller: Teller) -> RenderableType:
    return render_summary(summarize(read_layer_study(paired(teller.folder.path.parent))))


def states(teller: Teller) -> list[StudyStatus]:
    return [read_status(searched(teller)), read_status(paired(teller.folder.path.parent))]


def test_columns_of_studies_are_left_out_until_they_fit(teller: Teller) -> None:
    studies = [
        replace(state, folder=Path(f"studies/x-20261128-10150{i}"))
        for i, state in enumerate(states(teller))
    ]
    for width in (60, 80, 100, 120, 400):
        head, *rows = printed(studies_table(studies, width), width).splitlines()
        assert len(rows) == len(studies) and max(map(len, rows)) <= width
        assert "folder" in head and (head.startswith("study") or width < 400)
        for study, row in zip(studies, rows, strict=True):
            assert study.status in row and str(study.folder) in row
    stacked = printed(studies_table(studies, 30), 30)
    assert all(stacked.count(f"{name}:") == len(studies) for name in ("study", "kind", "started"))


def test_table_of_studies_in_pipe_has_all_columns(teller: Teller) -> None:
    studies = states(teller)
    root = str(teller.folder.path.parent)
    output = CliRunner().invoke(app, ["ls", root], env={"COLUMNS": "40"}).output
    head, *rows = output.splitlines()
    starts = {name: head.index(name) for name in STUDY_COLUMNS}
    assert len(rows) == len(studies)
    statuses = {row[starts["status"] :].split()[0] for row in rows}
    folders = {row[starts["folder or MLflow run"] :].strip() for row in rows}
    assert statuses == {study.status for study in studies}
    assert folders == {str(study.folder) for study in studies}


def of_study(teller: Teller) -> RenderableType:
    file = Path(teller.folder.path.parent, "study.yaml")
    file.write_text(STUDY)
    return explain_file(str(file))


@pytest.mark.parametrize("shown", [of_search, of_pairs, of_study])
def test_no_word_is_broken(teller: Teller, shown: Callable[[Teller], RenderableType]) -> None:
    check(shown(teller))


@pytest.mark.parametrize("stages", [False, True])
def test_no_word_of_table_of_layers_is_broken(stages: bool) -> None:
    check(layer_tables(list_layers("resnet", (), ModelInputs()), stages=stages))


@pytest.mark.parametrize("part", [None, "losses", "schemes"])
def test_no_word_of_list_is_broken(part: str | None) -> None:
    check(render_entries(find_entries(part), in_detail=False))


def test_no_word_of_finding_is_broken() -> None:
    path = "/opt/" + "very-long-folder/" * 8 + "bin/python"
    check(render(CheckResult("python", f"3.11.4 at {path}", "use Python >= 3.12")))
    assert path in printed(render(CheckResult("python", f"3.11.4 at {path}")), 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_live_picture_is_cut_between_words(teller: Teller, width: int) -> None:
    state, _ = watched(teller.halfway())
    console = Console(width=1000, height=30, file=io.StringIO(), color_system=None)
    whole = set(printed(picture(state, console.options), 1000).replace(",", "").split())
    options = console.options.update(width=width, max_width=width)
    words = printed(picture(state, options), width).replace(",", "").split()
    assert [x for x in words if x not in whole and not set(x) <= set("…━╸╺")] == []
    assert {"trial", "student", "val", "acc", "status"} <= set(words)


def test_table_is_stacked_if_it_does_not_fit() -> None:
    grid = Grid([Column("name"), Column("number of samples", right=True, whole=True)])
    grid.add("handwritten-digits", Text("1,797"))
    assert printed(grid, 40).splitlines()[0].split() == ["name", "number", "of", "samples"]
    lines = printed(grid, 30).splitlines()
    assert lines == ["name: handwritten-digits", "  number of samples: 1,797"]


def test_long_word_has_separate_line() -> None:
    block = Labeled()
    block.add("data", "the pictures of /a/path/that/is/longer/than/the/whole/line are read")
    lines = printed(block, 34).splitlines()
    assert [line.strip() for line in lines] == [
        "data  the pictures of",
        "/a/path/that/is/longer/than/the/whole/line",
        "are read",
    ]


def test_text_is_cut_between_words() -> None:
    assert truncate("trials 4/8: 2 running", 21) == "trials 4/8: 2 running"
    assert truncate("trials 4/8: 2 running", 18) == "trials 4/8: 2 …"
    assert truncate("indivisible", 5) == "…"
