"""The data of a study, in lines."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from helpers.events import Teller
from raykd.data import Source, Survey
from raykd.data.digits import Digits
from raykd.data.fashion_mnist import FashionMnist
from raykd.models import Signature
from raykd.report.data import WARNING, classes_text, data_block
from raykd.report.lines import EpochLines, JsonLines, PlainLines
from raykd.report.live import LiveDisplay

NOTE = "3 hidden entries were skipped"
SUSPECT = "2 pictures are in train and in test"


def block(source: Source, found: Any) -> str:
    console = Console(width=200, file=io.StringIO(), record=True, color_system="standard")
    console.print(data_block(source, found, Signature((1, 8, 8), 10)))
    return console.export_text(styles=True)


def test_class_names_are_counted_and_cut() -> None:
    assert classes_text(2, ("cat", "dog")) == "2 classes: cat, dog"
    assert classes_text(10, ()) == "10 classes"
    assert classes_text(2, ("price", "rent"), "values") == "2 values: price, rent"
    assert classes_text(1, ("price",), "values") == classes_text(1, ("price",)) == "1 value: price"
    assert classes_text(3, ("cat", "dog", "car"), "labels") == "3 labels: cat, dog, car"
    assert classes_text(384, ("v0", "v1"), "values") == classes_text(384, ("v0",)) == "384 values"
    assert classes_text(12, [str(i) for i in range(12)]).endswith("6, 7, ... (4 more)")
    assert len(classes_text(2, ("x" * 500, "a\nb"))) < 60
    assert "\n" not in classes_text(2, ("a\nb", "c"))


def test_survey_in_block() -> None:
    survey = Survey(
        {"train": 60, "val": 8, "test": 16}, ("cat", "dog"), (NOTE,), (SUSPECT,), "/pictures"
    )
    text = block(Digits(), survey)
    for part in ("digits from /pictures", "2 classes: cat, dog", "60 train, 8 val, 16 test", NOTE):
        assert part in text
    assert f"\x1b[1;33m{WARNING}{SUSPECT}" in text


def test_block_without_survey() -> None:
    text = block(FashionMnist(root="elsewhere"), None)
    assert "fashion_mnist from elsewhere" in text
    assert "10 classes" in text


def test_notes_and_warnings_are_printed_once(teller: Teller) -> None:
    opening = list(teller.opening())
    lines: list[str] = []
    for display in (PlainLines(lines.append), EpochLines(lines.append)):
        lines.clear()
        for event in opening:
            display(event)
        text = "\n".join(lines)
        assert text.count(NOTE) == 1
        assert text.count(f"{WARNING}{SUSPECT}") == 1
        assert "10 classes: 0, 1, 2" in text


def test_warnings_stand_out_above_live_display(teller: Teller) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system="standard")
    with LiveDisplay(console) as display:
        for event in teller.opening():
            display(event)
    assert f"\x1b[1;33m{WARNING}{SUSPECT}" in screen.getvalue()
    assert NOTE in screen.getvalue()


def test_json_has_lists(teller: Teller) -> None:
    lines: list[str] = []
    display = JsonLines(lines.append)
    for event in teller.opening():
        display(event)
    data = next(e for e in map(json.loads, lines) if e["event"] == "dataset")
    assert data["notes"] == [NOTE]
    assert data["warnings"] == [SUSPECT]
    assert data["class_names"] == [str(digit) for digit in range(10)]
