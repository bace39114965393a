"""Reading study files: values, their lines, and errors."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from raykd.errors import Problem, StudyError
from raykd.study.yaml_file import Mark, dotted, parse_document, parse_place, read_document

TEXT = """\
name: x
train:
  epochs: 8
  optimizer:
    lr: 1e-3
knowledge:
  - loss: {name: kd,
           temperature: 4}
    weight: 0.5
"""


def only_problem(text: str) -> Problem:
    with pytest.raises(StudyError) as caught:
        parse_document(text, "study.yaml")
    (problem,) = caught.value.problems
    return problem


def test_every_value_has_line_of_its_key() -> None:
    document = parse_document(TEXT, "study.yaml")
    lines = {dotted(place): mark.line for place, mark in document.marks.items()}
    assert lines == {
        "": 1,
        "name": 1,
        "train": 2,
        "train.epochs": 3,
        "train.optimizer": 4,
        "train.optimizer.lr": 5,
        "knowledge": 6,
        "knowledge[0]": 7,
        "knowledge[0].loss": 7,
        "knowledge[0].loss.name": 7,
        "knowledge[0].loss.temperature": 8,
        "knowledge[0].weight": 9,
    }
    assert document.mark(("train", "nothing", "here")) == Mark("study.yaml", 2)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("5e-4", 5e-4),
        (".5", 0.5),
        ("-1.5e+2", -150.0),
        ("100_000", 100_000),
        ("0", 0),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("010", "010"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ("true", True),
        ("'8'", "8"),
    ],
)
def test_scalars(written: str, value: object) -> None:
    read = parse_document(f"a: {written}").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_anchors_aliases_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc:\n  <<: *a\n  x: 3\n"
    document = parse_document(text, "f")
    assert document.data == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 1, "y": [2]},
        "c": {"x": 3, "y": [2]},
    }
    assert document.data["b"]["y"] is not document.data["a"]["y"]
    assert document.mark(("c", "x")).line == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key `a` appears twice, first in line 1"),
        ("a: {x: 1, x: 1}\n", 1, "the key `x` appears twice"),
        ("a: 1\n\tb: 2\n", 2, "a tab"),
        ("a:\n\t- 1\n", 2, "a tab"),
        ("a: [1, 2\nb: 3\n", 2, "not YAML"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("a: *b\n", 1, "undefined alias"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "!!python/object/apply:os.system"),
        ("a: !local 3\n", 1, "the tag !local is not allowed"),
        ("a: !!binary aGk=\n", 1, "!!binary"),
        ("a: &a [*a]\n", 1, "an alias that contains itself"),
        ("- a\n- b\n", 1, "a study must be a mapping of keys to values, not a list"),
        ("just text\n", 1, "not the single value 'just text'"),
        ("1: a\n", 1, "a key must be text; `1` is read as int"),
        ("on: a\n", 1, "a key must be text; `on` is read as bool"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
        ("a: 1\nlr: .inf\n", 2, "got .inf; numbers must be finite"),
        ("lr: {uniform: [0, -.Inf]}\n", 1, "got -.Inf; numbers must be finite"),
        ("lr: .nan\n", 1, "got .nan; numbers must be finite"),
        ("lr: 1e999\n", 1, "got 1e999; numbers must be finite"),
        ("lr: !!float inf\n", 1, "got inf; numbers must be finite"),
        ("lr: !!int ten\n", 1, "'ten' is not a valid int"),
        ("lr: !!bool maybe\n", 1, "'maybe' is not a valid bool"),
        ("a: 1\nb: c\0\n", 2, "the character U+0000 (NUL)"),
        ("a: 1\nb: \x1b[0m\n", 2, "the character U+001B"),
        ('a: "b\\0"\n', 1, "the character U+0000 (NUL)"),
        ('a: "\\ud800"\n', 1, "the character U+D800"),
        ("a:\n\u00a0 b: 1\n", 2, "the character U+00A0 (NO-BREAK SPACE)"),
        ("\u200bname: x\n", 1, "the character U+200B (ZERO WIDTH SPACE)"),
        ("a: &a {<<: *a}\n", 1, "an alias that contains itself"),
        ("a: {<<: !local {x: 1}}\n", 1, "the tag !local is not allowed"),
        ("", 0, "the study is empty"),
        ("# only a comment\n", 0, "the study is empty"),
    ],
)
def test_error_names_line(text: str, line: int, words: str) -> None:
    problem = only_problem(text)
    assert words in problem.message
    assert problem.line == line
    assert problem.file == "study.yaml"


def test_aliases_cannot_expand_exponentially() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    assert "more than 20,000 values" in only_problem(bomb).message


TWICE = "a{i}: &a{i} {{<<: [*a{before}, *a{before}]}}\n"


def chain(first: str, line: str, length: int) -> str:
    """Lines that each refer to the anchor of the previous line."""
    lines = (line.format(i=i, before=i - 1) for i in range(1, length))
    return f"a0: &a0 {first}\n" + "".join(lines)


def test_merge_keys_are_merged_once() -> None:
    began = time.process_time()
    document = parse_document(chain("{x: 1}", TWICE, 31), "f")
    assert document.data["a30"] == {"x": 1}
    assert document.mark(("a30", "x")).line == 1
    wide = ", ".join(f"k{i}: {i}" for i in range(3000))
    document = parse_document(f"a: &a {{{wide}}}\nb:\n  <<: *a\n  k7: x\n", "f")
    assert document.data["b"] == {**document.data["a"], "k7": "x"}
    assert document.mark(("b", "k7")).line == 4
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 50_000, "more than 100 nested"),
        ("a: " + "{a: " * 50_000, "more than 100 nested"),
        ("a:\n  " + "- " * 50_000 + "x", "more than 100 nested"),
        ("a: " + "{<<: " * 200 + "{x: 1}" + "}" * 200, "more than 100 nested"),
        (chain("[x]", "a{i}: &a{i} [*a{before}]\n", 3000), "more than 100 nested"),
        (chain("{x: 1}", "a{i}: &a{i} {{<<: *a{before}, k{i}: 1}}\n", 3000), "more than 20,000"),
        (chain("{x: 1}", "a{i}: &a{i} {{p: *a{before}, q: *a{before}}}\n", 30), "more than 20,000"),
        ("a:\n" + "- 1\n" * 100_000, "more than 20,000"),
    ],
)
def test_expensive_files_are_rejected_quickly(text: str, words: str) -> None:
    began = time.process_time()
    assert words in only_problem(text).message
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "encoded",
    [
        "name: é\n".encode("utf-8-sig"),
        "name: é\n".encode("utf-16"),
        b"\xfe\xff" + "name: é\n".encode("utf-16-be"),
        "name: é\n".encode("utf-32"),
    ],
)
def test_byte_order_marks(encoded: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(encoded)
    document = read_document(tmp_path / "study.yaml")
    assert document.data == {"name": "é"}
    assert document.text == "name: é\n"


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends(ends: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(TEXT.replace("\n", ends).encode())
    document = read_document(tmp_path / "study.yaml")
    assert document.text == TEXT
    assert document.marks == {
        place: Mark(document.file, mark.line)
        for place, mark in parse_document(TEXT, "f").marks.items()
    }


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("name: x\n# café\n".encode("latin-1"), 2, "byte 0xe9, in Windows-1252 and Latin-1 'é'"),
        ("name: x\n".encode("utf-16-le"), 1, "a NUL byte: a binary file, or UTF-16"),
        ("name: x\n".encode("utf-16") + b"a", 0, "not valid UTF-16-LE text"),
        (b"name: x\n\0\0", 2, "a NUL byte"),
        (b"x" * 2_000_001, 0, "larger than 2 MB"),
    ],
)
def test_binary_files(content: bytes, line: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_document(tmp_path / "study.yaml")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.line == line
    assert problem.fix


def test_invalid_path() -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        read_document("study\0.yaml")


def test_missing_file_error_suggests_similar_names(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("name: x\n")
    with pytest.raises(StudyError) as caught:
        read_document(tmp_path / "not_there.yaml")
    (problem,) = caught.value.problems
    assert problem.message == "no such file"
    assert "there.yaml" in problem.fix


def test_folder_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="a folder"):
        read_document(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(StudyError, match="not UTF-8"):
        read_document(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.epochs=3", ("train", "epochs"), 3),
        ("train.optimizer.lr=1e-2", ("train", "optimizer", "lr"), 0.01),
        ("knowledge[0].weight=0.25", ("knowledge", 0, "weight"), 0.25),
        ("knowledge[0].loss={name: hint}", ("knowledge", 0, "loss"), {"name": "hint"}),
        ("search.trials=4", ("search", "trials"), 4),
        ("name=a=b", ("name",), "a=b"),
        ("name=", ("name",), None),
        ("train.epochs={int: [1, 3]}", ("train", "epochs"), {"int": [1, 3]}),
    ],
)
def test_overrides(override: str, place: tuple[str | int, ...], value: object) -> None:
    before = parse_document(TEXT, "study.yaml")
    after = before.with_overrides([override])
    assert after.get(place) == value
    assert after.mark(place) == Mark("--set", 0)
    assert before.data == parse_document(TEXT).data
    assert after.overrides == (override,)
    assert after.text == TEXT


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "has no `=`"),
        ("train..epochs=3", "is not a path"),
        ("=3", "an empty path"),
        ("[0]=3", "is not a path"),
        ("knowledge[1].weight=3", "knowledge has 1 items, so there is no [1]"),
        ("knowledge.weight=3", "knowledge is a list, not a mapping"),
        ("train[0]=3", "train is a mapping, not a list"),
        ("name.first=3", "name is 'x', not a mapping"),
        ("train.epochs=[1", "not YAML"),
        ("train.optimizer.lr=.inf", "got .inf; numbers must be finite"),
        ("name=a\0b", "the character U+0000 (NUL)"),
        ("name=\udcff", "the character U+DCFF"),
        ("train.epochs=!!python/name:os.system x", "is not allowed"),
    ],
)
def test_invalid_overrides_raise(override: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_document(TEXT, "study.yaml").with_overrides([override])
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.file == "--set"


def test_override_inside_choice_suggests_fix() -> None:
    document = parse_document("a: {choice: [{b: 1}, {b: 2}]}\n")
    with pytest.raises(StudyError, match=r"a\.choice\[0\]\.b="):
        document.with_overrides(["a.b=3"])
    assert document.with_overrides(["a.choice[1].b=3"]).data["a"]["choice"][1] == {"b": 3}


def test_all_invalid_overrides_are_listed() -> None:
    with pytest.raises(StudyError) as caught:
        parse_document(TEXT).with_overrides(["train.epochs", "name.first=3"])
    assert len(caught.value.problems) == 2


STEPS: tuple[str | int, ...] = ("b", "val_accuracy", 0, 12)
PLACES = [("a", *rest) for size in range(4) for rest in product(STEPS, repeat=size)]


def test_paths_round_trip() -> None:
    assert [parse_place(dotted(place)) for place in PLACES] == PLACES


def test_reading_files_needs_no_torch() -> None:
    code = "import raykd.study.yaml_file, sys; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
