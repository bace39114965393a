"""Tests of the HTML page of a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from typer.testing import CliRunner

from helpers.browser import draw_figures, new_page
from helpers.pairs_cases import synthetic_result
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.report.page import parameters
from raykd.report.page.content import Cells, Page
from raykd.report.page.parameter_grid import TRIAL_ID
from raykd.report.page.predictions import gains_by_class
from raykd.report.page.search_page import search_page
from raykd.report.page.write import figure_json, write_page, write_report
from raykd.report.summary import summarize
from raykd.tracking.events import ArtifactSaved, EpochFinished, Event, RunEnded
from raykd.tracking.journal import events
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_data, load_or_use

STUDY = """\
name: page
data: {name: digits, limit: 300, val_limit: 100}
teacher: {model: {name: resnet, depth: 8, width: 8}, train: {epochs: 2, batch_size: 32}}
student:
  model: {name: resnet, depth: 8, width: {int: [2, 4], step: 2}}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 8]}}
    weight: {uniform: [0.5, 2]}
  - loss: {choice: [null, {name: hint}]}
    pairs: {pairing: {hint: auto, guided: auto, max: 2, order: monotone}}
    weight: 1.0
train: {epochs: 3, batch_size: 32}
search:
  objectives: {val_accuracy: max, params: min}
  trials: 10
  replicates: 2
  scheduler: {name: asha, grace_epochs: 1, reduction: 2}
cluster: {storage: 'FOLDER/studies'}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("page")
    file = folder / "study.yaml"
    file.write_text(STUDY.replace("FOLDER", str(folder)))
    run = SearchRun(load_or_use(file))
    run.draw = write_page
    return run.run(LocalExecutor())


@pytest.fixture(scope="module")
def page(result: StudyResult) -> Page:
    history = events(result.folder / "journal.jsonl")
    return search_page(summarize(result, history), history, evaluate=True)


def table(page: Page, name: str) -> Cells:
    blocks = [block for section in page.sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Cells) and block.id == name)


def test_slices_of_gains_are_those_of_journal(page: Page, result: StudyResult) -> None:
    lines = [json.loads(line) for line in (result.folder / "journal.jsonl").open()]
    starts = {line["id"]: line for line in lines if line["event"] == "run"}
    ends = {
        line["id"]: {**last_epoch(lines, line["id"]), **line["metrics"]}
        for line in lines
        if line["event"] == "end" and line["status"] == "finished"
    }
    baselines = {id: ends[id] for id in ends if starts[id]["role"] == "alone"}
    expected: dict[str, dict[str, float]] = {"trial": {}, "finalist": {}}
    for id, start in starts.items():
        network = start["assignment"]["study"]["student"]
        same = [
            values["val_accuracy"]
            for alone, values in baselines.items()
            if starts[alone]["assignment"]["study"]["student"] == network
        ]
        if start["role"] == "trial" and id in ends and same:
            expected["trial"][id] = ends[id]["val_accuracy"] - np.mean(same)
    for trial in {starts[id]["parent"] for id in baselines}:
        seeds: dict[str, dict[int, float]] = {"replicate": {}, "alone": {}}
        for id, start in starts.items():
            if start["parent"] == trial and id in ends:
                seeds[start["role"]][start["seed"]] = ends[id]["test_accuracy"]
        pairs = [seeds["replicate"][seed] - seeds["alone"][seed] for seed in seeds["alone"]]
        expected["finalist"][trial] = float(np.mean(pairs))
    assert expected["trial"] and expected["finalist"]
    [picture] = [each for each in page.pictures if each.id == "gains"]
    figure: Any = picture.figure
    titles = [each.text for each in figure.layout.annotations]
    assert any("temperature" in title for title in titles)
    assert any("weight" in title for title in titles)
    for trace in figure.data:
        shown = dict(zip(trace.text, trace.y, strict=True))
        group = expected[trace.name.partition(",")[0]]
        assert shown == pytest.approx({id: group[id] for id in shown})
        temperature = titles[0] if trace.xaxis == "x" else ""
        if temperature and trace.name.startswith("finalist"):
            assert set(shown) == set(group)
            drawn = [starts[id]["params"] for id in shown]
            values = [params.get("knowledge[0].loss.temperature") for params in drawn]
            weights = [params.get("knowledge[0].weight") for params in drawn]
            assert list(trace.x) in (pytest.approx(values), pytest.approx(weights))


def last_epoch(lines: list[Any], id: str) -> dict[str, float]:
    """Return the metrics of a training's last epoch."""
    epochs = [line for line in lines if line["event"] == "epoch" and line["id"] == id]
    return epochs[-1]["metrics"] if epochs else {}


def test_run_writes_its_page_and_publishes_it(result: StudyResult) -> None:
    assert (result.folder / "report" / "report.html").is_file()
    artifacts = [
        event
        for event in events(result.folder / "journal.jsonl")
        if isinstance(event, ArtifactSaved)
    ]
    assert [(each.id, each.path, each.folder) for each in artifacts] == [
        (None, "report/report.html", "report")
    ]


def test_page_loads_nothing_from_network(result: StudyResult) -> None:
    text = (result.folder / "report" / "report.html").read_text()
    assert len(text) < 10_000_000
    assert "Search, finished: " in text
    head = text[: text.index("plotly.js")]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", head)


def test_sections_and_figures_are_complete(page: Page) -> None:
    assert [section.id for section in page.sections] == [
        "finalists",
        "front",
        "predictions",
        "parameters",
        "training",
        "pairs",
        "cost",
        "trials",
        "commands",
    ]
    ids = [picture.id for picture in page.pictures]
    assert len(ids) == len(set(ids))
    assert {
        "front",
        "accuracy-cost",
        "classes",
        "confusion",
        "reliability",
        "slices",
        "gains",
        "coordinates",
        "curves",
        "terms",
        "time",
    } <= set(ids)


def test_numbers_equal_those_of_journal(result: StudyResult, page: Page) -> None:
    ends = {
        event.id: event
        for event in events(result.folder / "journal.jsonl")
        if isinstance(event, RunEnded)
    }
    epochs = {
        event.id: event.metrics
        for event in events(result.folder / "journal.jsonl")
        if isinstance(event, EpochFinished)
    }
    trials = table(page, "trials-table")
    column = list(trials.headings).index("val accuracy")
    assert len(trials.rows) == sum(1 for name in ends if re.fullmatch(r"trial-\d+", name))
    for row, keys in zip(trials.rows, trials.numbers, strict=True):
        value = epochs[row[0]]["val_accuracy"]  # a paused trial ends without figures
        assert keys[column] == value and row[column] == f"{value:.2%}"
        assert row[1] == ends[row[0]].status
    for row in table(page, "finalists-table").rows:
        accuracies = [
            event.metrics["test_accuracy"]
            for name, event in ends.items()
            if name.startswith(f"{row[0]}/seed")
        ]
        mean = math.fsum(accuracies) / len(accuracies)
        assert row[4].startswith(f"{mean:.2%}") and f"(n={len(accuracies)})" in row[4]


def test_predictions_have_accuracy_of_record(result: StudyResult, page: Page) -> None:
    teacher, student = table(page, "prediction-table").rows
    assert teacher[1] == f"{result.teachers[0].metrics['test_accuracy']:.2%}"
    best = result.finalists[0].trial.id
    replicates = result.records.children(best, "replicate")
    chosen = max(replicates, key=lambda record: record.metrics["val_accuracy"])
    assert student[1] == f"{chosen.metrics['test_accuracy']:.2%}"
    assert 0 <= float(student[2].rstrip("%")) <= 100


def test_gains_by_class_agree_with_gain_in_accuracy(result: StudyResult, page: Page) -> None:
    history = events(result.folder / "journal.jsonl")
    hits = {e.id: sum(e.class_hits) for e in history if isinstance(e, RunEnded) and e.class_hits}
    tested = result.records.of("replicate", "alone")
    assert {*hits} == {record.id for record in tested}
    data = load_data(load_or_use(result.folder / "study.yaml").settings)
    sizes = np.bincount(data.test.targets)
    for record in tested:
        assert hits[record.id] / sizes.sum() == pytest.approx(record.metrics["test_accuracy"])
    best = result.finalists[0]
    gains = gains_by_class(result.records, history, best.trial.id, sizes)
    means = [gain.mean for gain in gains if gain is not None]
    assert best.gain is not None and len(means) == 10
    assert np.dot(means, sizes) / sizes.sum() == pytest.approx(best.gain.mean)
    assert "class-gains" in [picture.id for picture in page.pictures]
    assert gains_by_class(result.records, [], best.trial.id, sizes) == []


def test_answer_names_best_finalist_with_its_interval(result: StudyResult, page: Page) -> None:
    best = result.finalists[0]
    assert best.distilled is not None and best.gain is not None
    assert best.trial.id in page.answer[0] and f"{best.distilled.mean:.2%}" in page.answer[0]
    assert f"{100 * best.gain.mean:+.2f}" in page.answer[1]


def test_text_of_study_is_escaped(result: StudyResult, tmp_path: Path) -> None:
    import dataclasses

    renamed = dataclasses.replace(result, name="a <script>alert(1)</script> & b")
    text = write_report(renamed, tmp_path, evaluate=False).read_text()
    assert "<script>alert(1)" not in text and "&lt;script&gt;alert(1)" in text


def test_figure_cannot_end_its_script_element() -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=["</script><script>alert(1)</script>"], y=[1]))
    assert "</script" not in figure_json(figure)
    json.loads(str(figure_json(figure)).replace("<\\/", "</"))


def test_command_writes_page(result: StudyResult, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["report", str(result.folder), "-o", str(tmp_path / "out"), "--no-predictions"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "file").write_text("")
    refused = runner.invoke(app, ["report", str(result.folder), "-o", str(tmp_path / "file")])
    assert refused.exit_code == 2 and "cannot write" in refused.output


def test_page_at_end_of_search_does_not_read_journal_again(
    result: StudyResult, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raykd.tracking.journal as journal_module
    from raykd.tuning import records

    history = events(result.folder / "journal.jsonl")

    def refuse(*_: object) -> Iterator[Any]:
        raise AssertionError("the journal is read again")

    for module in (journal_module, records):
        monkeypatch.setattr(module, "read", refuse)
    text = write_page(result, history).read_text()
    assert all(f'id="figure-{picture.id}"' in text for picture in page.pictures)
    assert "There are no predictions" not in text


@pytest.mark.parametrize(
    ("objective", "axis", "hover"), [("val_accuracy", ".1%", ".2%"), ("val_r2", ".4g", ".4g")]
)
def test_only_shares_are_percentages(objective: str, axis: str, hover: str) -> None:
    distributions = {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(("x", "y"))}
    trials = [
        create_trial(
            value=0.2 * number,
            params={"a": 0.1 * number, "b": "xy"[number % 2]},
            distributions=distributions,
            user_attrs={TRIAL_ID: f"trial-{number:04}"},
        )
        for number in range(4)
    ]
    [slices] = parameters._slices(trials, ["a", "b"], objective)
    figure: Any = slices.figure
    assert figure.layout.yaxis.tickformat == axis
    assert all(f"%{{y:{hover}}}" in trace.hovertemplate for trace in figure.data)
    assert tuple(figure.layout.xaxis2.range) == (-0.5, 1.5), "names do not touch the next plot"
    [coordinates] = parameters._coordinates(trials, ["a", "b"], objective)
    parallel: Any = coordinates.figure
    [lines] = parallel.data
    assert lines.dimensions[-1].tickformat == lines.line.colorbar.tickformat == axis
    assert lines.line.colorbar.title.side == "right", "above the bar it covers the last number"
    assert slices.min_width > 380 and coordinates.min_width == 90 * 3 + 100


def test_error_in_figure_and_rung_after_last_epoch_are_warnings(
    result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raykd.tracking.events import WarningIssued

    received: list[Any] = []
    file = tmp_path / "study.yaml"
    text = STUDY.replace("FOLDER", str(tmp_path)).replace("trials: 10", "trials: 1")
    text = text.replace("grace_epochs: 1", "grace_epochs: 4")
    file.write_text(text.replace("replicates: 2", "replicates: 0"))
    run = SearchRun(load_or_use(file), listeners=[received.append])

    def fail(result: StudyResult, history: Sequence[Event]) -> Path:
        raise RuntimeError("no figure")

    run.draw = fail
    assert run.run(LocalExecutor()).best is not None
    texts = [event.text for event in received if isinstance(event, WarningIssued)]
    assert "the report page was not written: no figure" in texts
    grace = "search.scheduler.grace_epochs is 4, and a trial ends after 3 (train.epochs)"
    assert f"{grace}: none is stopped early" in texts


# In a browser


@pytest.fixture(scope="module")
def written(result: StudyResult) -> Path:
    return result.folder / "report" / "report.html"


def drawn(path: Path, **options: Any) -> Iterator[Any]:
    with new_page(**options) as (browser_page, errors):
        browser_page.goto(path.absolute().as_uri())
        draw_figures(browser_page)
        yield browser_page
        assert errors == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_drawn(written: Path, page: Page, dark: bool) -> None:
    for browser_page in drawn(written, dark=dark):
        for picture in page.pictures:
            box = browser_page.locator(f"#figure-{picture.id} .svg-container").bounding_box()
            assert box["width"] > 300 and box["height"] == picture.height


@pytest.mark.slow
def test_figures_are_drawn_near_window_and_before_printing(written: Path, page: Page) -> None:
    with new_page() as (browser_page, errors):
        browser_page.goto(written.absolute().as_uri())
        browser_page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
        containers = browser_page.locator(".plot .svg-container")
        assert 0 < containers.count() < len(page.pictures)
        browser_page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        for picture in page.pictures:
            browser_page.locator(f"#figure-{picture.id} .svg-container").wait_for(timeout=60_000)
        assert containers.count() == len(page.pictures) and errors == []


@pytest.mark.slow
def test_filter_sort_and_copy_work(written: Path, result: StudyResult) -> None:
    for browser_page in drawn(written):
        rows = browser_page.locator("#trials-table tbody tr:not([hidden])")
        total = rows.count()
        browser_page.fill("#trials-table-filter", "trial-0003")
        assert rows.count() == 1 and "trial-0003" in rows.first.inner_text()
        browser_page.fill("#trials-table-filter", "")
        assert rows.count() == total
        heading = browser_page.locator("#trials-table th button", has_text="val accuracy")
        heading.click()
        values = [record.metrics["val_accuracy"] for record in result.records.of("trial")]
        assert f"{max(values):.2%}" in rows.first.inner_text()
        heading.click()
        assert f"{min(values):.2%}" in rows.first.inner_text()
        heading.press("Enter")
        assert f"{max(values):.2%}" in rows.first.inner_text()


@pytest.mark.slow
def test_narrow_screen_has_no_sideways_scroll(written: Path) -> None:
    for browser_page in drawn(written, width=380):
        width = browser_page.evaluate("document.documentElement.scrollWidth")
        assert width <= 380
        slices = browser_page.locator("#figure-slices")
        assert slices.bounding_box()["width"] > 600, "a figure scrolls inside"
        titles = browser_page.locator("#figure-slices .annotation-text").all()
        spans = [each.bounding_box() for each in titles]
        overlaps = [
            (first, second)
            for number, first in enumerate(spans)
            for second in spans[number + 1 :]
            if abs(first["y"] - second["y"]) < 5
            and first["x"] < second["x"] + second["width"]
            and second["x"] < first["x"] + first["width"]
        ]
        assert len(spans) > 3 and overlaps == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(written: Path, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for browser_page in drawn(written, dark=dark):
        violations = axe.run(browser_page).response["violations"]
        serious = [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in violations
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []


# Layer studies


def test_layer_study_has_page(tmp_path: Path) -> None:
    text = write_report(synthetic_result(tmp_path), tmp_path / "out").read_text()
    for part in ("Gain of each pair", "All arms", "gains-map", "Cheap predictors"):
        assert part in text


def test_missing_kaleido_is_clear_error(
    result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="kaleido"):
        write_report(read_result(result.folder), tmp_path, images=True)
