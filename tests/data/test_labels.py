"""Labels of tables: classes, their order, errors and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from raykd.data.labels import Labels, read_labels
from raykd.data.table import Table


def table_of(labels: Sequence[Any], typed: bool | None = None, name: str = "a.csv") -> Table:
    is_typed = any(not isinstance(label, str) for label in labels) if typed is None else typed
    places = range(2, len(labels) + 2)
    return Table(Path(name), {"label": labels}, places, "line", is_typed)


def read(labels: Sequence[Any], test: Sequence[Any] = (), typed: bool | None = None) -> Labels:
    tables = {"train": [table_of(labels, typed)]}
    if test:
        tables["test"] = [table_of(test, typed, "test.csv")]
    return read_labels(tables, "label")


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "2", "1"], ("1", "2", "10"), [2, 1, 0]),
        (["+1", "-1", "1"], ("-1", "1"), [1, 0, 1]),
        (["1.0", "0.0", "1"], ("0", "1"), [1, 0, 1]),
        (["02", "10", "01"], ("01", "02", "10"), [1, 2, 0]),
        (["TRUE", "false", "true"], ("False", "True"), [1, 0, 1]),
        (["1", "10", "x", "2"], ("1", "10", "2", "x"), [0, 1, 3, 2]),
        ([" a", "a ", "b"], ("a", "b"), [0, 0, 1]),
        ([10, 2, 1], ("1", "2", "10"), [2, 1, 0]),
        ([1.0, 0.0, 1], ("0", "1"), [1, 0, 1]),
        ([True, False], ("False", "True"), [1, 0]),
        ([1, "1", 1.0, "x"], ("1", "x"), [0, 0, 0, 1]),
        ([2**70, 1], ("1", str(2**70)), [1, 0]),
    ],
)
def test_classes(labels: list[Any], names: tuple[str, ...], targets: list[int]) -> None:
    result = read(labels)
    assert result.class_names == names
    assert result.targets.tolist() == targets


def test_strings_of_typed_files_stay_strings() -> None:
    assert read(["10", "2", "1"], typed=True).class_names == ("1", "10", "2")
    assert read(["0.5", "1.5"], typed=True).class_names == ("0.5", "1.5")
    assert read(["true", "false"], typed=True).class_names == ("false", "true")


def test_thousand_classes() -> None:
    labels = [f"class {number:04}" for number in range(1000)] * 3
    assert read(labels).class_names == tuple(labels[:1000])


def test_other_tables_use_classes_of_training_table() -> None:
    assert read(["1.0", "2.0"], test=["2"]).targets.tolist() == [0, 1, 1]
    assert read(["a", "b"], test=[" b"]).targets.tolist() == [0, 1, 1]
    assert read(["x", "1"], test=["1"]).targets.tolist() == [1, 0, 0]
    assert read([1, 2], test=["2"]).targets.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            ["a", "", "b", " "],
            r"a\.csv: line 3 has no label in column 'label' \(''; the same is true of 1 other row",
        ),
        (["a", None], "line 3 has no label in column 'label' .None"),
        ([1.0, float("nan")], "line 3 has no label in column 'label' .nan"),
        (["1", "2", "n/a"], "line 4 holds 'n/a' .* where 2 other rows hold numbers"),
        (["1.0", "NaN", "2.0"], "line 3 holds 'NaN' .* where 2 other rows hold numbers"),
        (["1", "2", "inf"], "line 4 holds 'inf' .* where 2 other rows hold numbers"),
        (["1", "0.5"], "line 3 holds 0.5 in .*kind: number"),
        ([0.5, 1.5], "line 2 holds 0.5 in .*kind: number"),
        ([1.0, float("inf")], "line 3 holds inf in .*kind: number"),
        ([[1, 0], [0, 1]], "one label per text, not several"),
        ([{"a": 1}], "a label is a text or a whole number"),
        ([b"a", b"b"], "holds b'a'.* a label is a text or a whole number"),
        ([date(2026, 1, 1)], "not a date"),
        (["a", "a"], "has only the label 'a'; a classifier needs two classes"),
    ],
)
def test_invalid_labels_raise(labels: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(labels)


def test_labels_missing_in_training_table() -> None:
    with pytest.raises(ValueError, match=r"test\.csv: line 3 has the label 'c', .*'c' \(2 rows\)"):
        read(["a", "b"], test=["a", "c", "c"])
    with pytest.raises(ValueError, match=r"-1 often marks rows without a label.*data\.test_file"):
        read(["0", "1"], test=["-1", "-1"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["Sea", "sea", "sea", "b"], "'Sea' (1 row) and 'sea' (2 rows)"),
        (["a  b", "a b"], "'a  b' (1 row) and 'a b' (1 row)"),
        (["caf\u00e9", "cafe\u0301"], r"'cafe\u0301' (1 row) and 'café' (1 row)"),
        (["a\u200b", "a"], "(1 row) and "),
        (
            ["01", "1", "2"],
            "differ only in leading zeros or signs are separate classes: '01' (1 row)",
        ),
        (["a", "b", "N/A", "N/A"], "label 'N/A' (2 rows) looks like a missing label"),
        (["a", "-"], "label '-' (1 row) looks like a missing label"),
        (["a", "#REF!"], "label '#REF!' (1 row) looks like a missing label"),
        (["a", "None"], "label 'None' (1 row) looks like a missing label"),
        (["1"] * 20 + ["three"], "holds numbers, except for 1 of 21 rows: 'three'"),
        ([1, "1", "x"], "mixes types: text (2 rows), whole numbers (1 row); all are read as text"),
        (['"a"', '"b"'], "labels in quotes"),
    ],
)
def test_suspicious_labels_warn(labels: list[Any], words: str) -> None:
    (warning,) = read(labels).warnings
    assert words in warning


def test_sign_characters_are_not_missing_labels() -> None:
    assert read(["+", "-"]).warnings == ()


def test_integers_beyond_float_precision() -> None:
    assert read(["100000000000000000.0", "100000000000000001.0"]).class_names == (
        "100000000000000000",
        "100000000000000001",
    )
    with pytest.raises(ValueError, match="for a regression on such numbers"):
        read(["100000000000000000.5", "2"])


def test_numeric_labels_in_one_file_and_names_in_another() -> None:
    tables = [
        Table(Path(name), {"label": labels}, [1, 2], "line", False)
        for name, labels in (("a.csv", ["0", "1"]), ("b.csv", ["sea", "garden"]))
    ]
    (warning,) = read_labels({"train": tables}, "label").warnings
    assert "whole numbers in a.csv, but names in b.csv" in warning


def test_notes() -> None:
    assert read([" a", "b"]).notes == ("a.csv: white space around 1 label removed (such as ' a')",)
    (note,) = read(["1.0", "2"]).notes
    assert "holds numbers such as 1.0, read as whole numbers" in note
    (note,) = read(["1e3", "100"]).notes
    assert "holds numbers such as 1e3, read as whole numbers" in note
    plain = read(["a", "b", "c"])
    assert (plain.notes, plain.warnings) == ((), ())
