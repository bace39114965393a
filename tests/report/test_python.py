"""Studies and results as Python users see them: progress, a short repr, an HTML card."""

from __future__ import annotations

import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import raykd
from raykd.html_card import Card
from raykd.study.explain import explain

STUDY = """\
name: small <b>
data: {name: digits, limit: 100}
teacher: {model: {name: mlp, depth: 2, width: 16}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 2, width: 8}}
knowledge:
  - loss: {name: kd, temperature: 4}
train: {epochs: 2}
search: {trials: 1, replicates: 1}
"""


class Cells(HTMLParser):
    """Checks that elements are closed, and collects their text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.opened

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.replace("small <b>", "small"))
    return path


@pytest.fixture
def result(file: Path) -> raykd.StudyResult:
    return raykd.distill(file, progress=False)


def test_runs_show_progress_on_standard_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raykd.distill(file)
    shown = capsys.readouterr()
    assert "val acc" in shown.err and "trial-0000 finished" in shown.err
    assert shown.out == ""


def test_progress_can_be_switched_off(
    result: raykd.StudyResult, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capsys.readouterr() == ("", "")


def test_notebook_shows_progress_in_cell(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)  # type: ignore[arg-type]
    raykd.train_teacher(file)
    shown = capsys.readouterr()
    assert "val acc" in shown.out and "\x1b" not in shown.out


def test_study_has_short_repr_and_card(repository: Path) -> None:
    study = raykd.load_study(str(repository / "search_spaces" / "quickstart.yaml"))
    assert repr(study).startswith("OpenStudy('quickstart', 11 parameters, ")
    texts = Cells(study._repr_html_()).texts
    assert {"study quickstart", "digits", "knowledge[0].loss.temperature"} <= set(texts)
    assert study.signature is not None
    explanation = explain(study.bind(study.signature))  # what `raykd validate` prints
    assert {text for fact in explanation.facts for text in fact if text} <= set(texts)
    assert {explanation.sample_text(each) for each in explanation.dimensions} - {""} <= set(texts)


def test_result_has_short_repr_and_card(result: raykd.StudyResult) -> None:
    assert repr(result).startswith("StudyResult('small', 1 trials, best trial-0000, folder=")
    texts = Cells(result._repr_html_()).texts
    assert {"mlp d2 w8", "trial-0000", "Finalists (test accuracy over new seeds, "
            "mean ± 95% CI half-width)"} <= set(texts)  # fmt: skip
    assert texts.count("params") == 1, "an objective has one column"


def test_cards_escape_their_text() -> None:
    card = Card("a <b>", "c & d")
    card.facts([("<i>", "<script>alert(1)</script>"), ("empty", "")])
    card.table("t", ("<u>",), [("<s>",)])
    card.table("without rows", ("x",), [])
    card.sentence("1 < 2")
    html = card.html()
    assert "<script>" not in html and "without rows" not in html and "empty" not in html
    assert {"a <b>", "c & d", "<script>alert(1)</script>", "<s>", "1 < 2"} <= set(Cells(html).texts)


def test_single_text_is_one_override_and_one_run(file: Path) -> None:
    assert raykd.load_study(file, "train.epochs=3").concrete().train.epochs == 3
    with pytest.raises(raykd.StudyError, match="nowhere"):
        raykd.search(file, start_from="nowhere", progress=False)
    with pytest.raises(raykd.StudyError, match="no_such_key"):
        raykd.search(file, overrides="no_such_key=1", progress=False)


@pytest.mark.parametrize("study", [{"name": "small"}, None, 3, ""])
def test_file_without_study_is_refused(study: Any) -> None:
    for verb in (raykd.search, raykd.distill, raykd.train_teacher, raykd.pairs, raykd.load_study):
        with pytest.raises(raykd.StudyError, match="is the path of a YAML file"):
            verb(study)
