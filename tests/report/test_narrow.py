"""Tests of narrow terminals: no word is broken, whatever the width."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.text import Text
from test_light_reading import paired, searched

from helpers.events import STUDY, Teller, watched
from raykd.doctor import CheckResult, render
from raykd.layer_study.result import read_layer_study
from raykd.report.layer_study.summary import summary as pairs_summary
from raykd.report.layers import Inputs, layers_of, tables
from raykd.report.live import picture
from raykd.report.options.catalogue import chosen
from raykd.report.options.render import view
from raykd.report.space import explained
from raykd.report.summary import summary
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
    return summary(read_result(searched(teller)))


def of_pairs(teller: Teller) -> RenderableType:
    return pairs_summary(read_layer_study(paired(teller.folder.path.parent)))


def of_study(teller: Teller) -> RenderableType:
    file = Path(teller.folder.path.parent, "study.yaml")
    file.write_text(STUDY)
    return explained(str(file))


@pytest.mark.parametrize("shown", [of_search, of_pairs, of_study])
def test_no_word_is_broken(teller: Teller, shown: Callable[[Teller], RenderableType]) -> None:
    check(shown(teller))


@pytest.mark.parametrize("stages", [False, True])
def test_no_word_of_a_table_of_layers_is_broken(stages: bool) -> None:
    check(tables(layers_of("resnet", (), Inputs()), stages=stages))


@pytest.mark.parametrize("part", [None, "losses", "schemes"])
def test_no_word_of_a_list_is_broken(part: str | None) -> None:
    check(view(chosen(part), in_full=False))


def test_no_word_of_a_finding_is_broken() -> None:
    path = "/opt/" + "very-long-folder/" * 8 + "bin/python"
    check(render(CheckResult("python", f"3.11.4 at {path}", "use Python >= 3.12")))
    assert path in printed(render(CheckResult("python", f"3.11.4 at {path}")), 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_picture_is_cut_between_words(teller: Teller, width: int) -> None:
    view, _ = watched(teller.halfway())
    console = Console(width=1000, height=30, file=io.StringIO(), color_system=None)
    whole = set(printed(picture(view, console.options), 1000).replace(",", "").split())
    options = console.options.update(width=width, max_width=width)
    words = printed(picture(view, options), width).replace(",", "").split()
    assert [x for x in words if x not in whole and not set(x) <= set("…━╸╺")] == []
    assert {"trial", "student", "val", "acc", "status"} <= set(words)


def test_a_table_that_fits_has_columns_and_one_that_does_not_is_stacked() -> None:
    grid = Grid([Column("name"), Column("number of samples", right=True, whole=True)])
    grid.add("handwritten-digits", Text("1,797"))
    assert printed(grid, 40).splitlines()[0].split() == ["name", "number", "of", "samples"]
    lines = printed(grid, 30).splitlines()
    assert lines == ["name: handwritten-digits", "  number of samples: 1,797"]


def test_a_word_longer_than_the_line_has_a_line_of_its_own() -> None:
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
