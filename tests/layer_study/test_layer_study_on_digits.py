"""Whole layer studies on digits: files, pictures, the terminal, MLflow; in process and on Ray."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

import raykd
from helpers.pairs_cases import PAIRS, pretended_result
from helpers.search_cases import epochs_of
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.layer_study.result import LayerStudyResult, read_layer_study
from raykd.layer_study.run import pairs
from raykd.report.layer_study.figures import cka, draw, heatmap, predictors
from raykd.report.layer_study.summary import facts, summary
from raykd.tracking.events import ModelSaved, RunEnded
from raykd.tracking.journal import events
from raykd.tracking.mlflow_client import connect
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import search
from raykd.tuning.study_dir import open_folder

TINY = [
    "search.pairs.seeds=2",
    "search.pairs.arms=[random]",
    "search.replicates=1",
    "knowledge[1].pairs.pairing.hint=[stage2]",
]
PICTURES = ("heatmap.png", "cka.png", "predictors.png")


def written(folder: Path) -> Path:
    file = folder / "study.yaml"
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\n"
    cluster = f"cluster: {{storage: {folder}/studies, slots: 2, cpus_per_worker: 0.5}}\n"
    file.write_text(PAIRS + tracking + cluster)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    """Three cells under two seeds, in this process."""
    file = written(tmp_path_factory.mktemp("digits"))
    return pairs(file, overrides=TINY, executor=LocalExecutor(), draw=draw)


@pytest.fixture(scope="module")
def pretended(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    return pretended_result(tmp_path_factory.mktemp("pretended"), "search.pairs.sets=1")


def test_a_study_is_carried_out_whole(trained: LayerStudyResult) -> None:
    arms = {arm.id for arm in trained.arms if not arm.why_not}
    assert {*trained.values} == arms
    assert arms == {"none", "random", *(f"stage2-to-stage{number}" for number in (1, 2, 3))}
    assert all(len(of) == 2 for of in trained.values.values())
    assert trained.noise.freedom == len(arms) - 1 and trained.noise.deviation > 0
    assert trained.best is not None and trained.best.gain is not None
    assert not trained.failed and len(trained.records.teachers) == 1


def test_predictors_were_computed_from_the_trained_teacher(trained: LayerStudyResult) -> None:
    assert {*trained.computed} == {*trained.seeds} and trained.steps == 3
    for when in ("start", "steps", "trained"):
        found = trained.cka(when)
        assert found is not None and found.shape == (4, 4) and (found <= 1 + 1e-6).all()
    for cell in trained.cells:
        assert -1 <= cell.predictors["gradient"] <= 1


def test_two_students_of_one_seed_start_alike(trained: LayerStudyResult) -> None:
    """The CKA map at the start is that of every arm's student, so seeds tell maps apart."""
    maps = [json.dumps(one.cka["start"]) for one in trained.computed.values()]
    assert len({*maps}) == 2


def test_files_and_pictures_are_left_in_the_folder(trained: LayerStudyResult) -> None:
    told = json.loads((trained.folder / "pairing.json").read_text())
    assert told["best"]["arm"] == trained.best.arm.id  # type: ignore[union-attr]
    for name in PICTURES:
        picture = imread(trained.folder / name)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.02, "not empty"


def test_mlflow_has_runs_tags_pictures_and_data(trained: LayerStudyResult) -> None:
    client = connect(trained.tracking_uri)
    experiment = client.get_experiment_by_name("pairs")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    by_role: dict[str, list] = {}
    for run in runs:
        by_role.setdefault(run.data.tags["raykd.role"], []).append(run)
    assert {*by_role} == {"study", "teacher", "trial", "probe", "replicate"}
    [study] = by_role["study"]
    held = {one.path for one in client.list_artifacts(study.info.run_id, "pairs")}
    assert held >= {f"pairs/{name}" for name in (*PICTURES, "pairing.json", "pairs.csv")}
    assert study.data.tags["best"] == trained.best.arm.id  # type: ignore[union-attr]
    cell = next(r for r in by_role["trial"] if r.data.tags["arm"] == "stage2-to-stage3")
    tags = cell.data.tags
    assert (tags["hint"], tags["guided"]) == ("stage2", "stage3") and tags["seed"] in "78"
    assert tags["mlflow.parentRunId"] == study.info.run_id
    again = by_role["replicate"][0].data.tags["mlflow.parentRunId"]
    assert again in {run.info.run_id for run in by_role["trial"]}


def test_the_best_students_network_is_a_model(trained: LayerStudyResult) -> None:
    [model] = [e for e in events(trained.folder / "journal.jsonl") if isinstance(e, ModelSaved)]
    assert model.id.startswith(trained.best.arm.id)  # type: ignore[union-attr]
    assert (trained.folder / model.path).is_file()


def test_the_summary_is_plain_where_there_is_no_terminal(trained: LayerStudyResult) -> None:
    told = CliRunner().invoke(app, ["report", str(trained.folder)]).output
    assert "\x1b" not in told
    for said in ("Gain over no hint", "Other pairings", "Best set of pairs", "Cheap predictors"):
        assert said in told
    facts_told = CliRunner().invoke(app, ["report", str(trained.folder), "--json"]).output
    assert json.loads(facts_told)["best"]["arm"] == trained.best.arm.id  # type: ignore[union-attr]


def test_a_search_is_no_layer_study_and_the_other_way(trained: LayerStudyResult) -> None:
    with pytest.raises(StudyError, match="raykd pairs --resume"):
        search("", resume=trained.folder)
    with pytest.raises(StudyError, match=r"has no arms of a layer study|not a study's folder"):
        read_layer_study(trained.folder.parent)


def test_a_finished_study_that_is_gone_on_with_stays_as_it_is(trained: LayerStudyResult) -> None:
    before = (trained.folder / "pairing.json").read_bytes()
    count = len(trained.records.of("trial"))
    again = pairs("", resume=trained.folder, executor=LocalExecutor())
    assert len(again.records.of("trial")) == count
    assert (trained.folder / "pairing.json").read_bytes() == before


# Pictures and the terminal, of a study with clear gains


def test_the_heatmap_has_the_layers_on_its_axes(pretended: LayerStudyResult) -> None:
    figure = heatmap(pretended)
    assert figure is not None
    cells, others = figure.axes
    assert [t.get_text() for t in cells.get_xticklabels()] == [
        "stage1\n4x8x8", "stage2\n8x4x4", "stage3\n16x2x2",
    ]  # fmt: skip
    assert cells.get_yticklabels()[0].get_text() == "stage1\n8x8x8"
    low, high = cells.images[0].get_clim()
    assert low == -high, "no gain is the middle of the colours"
    texts = [text.get_text() for text in cells.texts]
    assert len(texts) == 9 and all("±" in text for text in texts)
    clear = [cell for cell in pretended.cells if cell.contrast and cell.contrast.is_clear]
    hatched = [patch for patch in cells.patches if patch.get_hatch()]
    assert len(hatched) == 9 - len(clear) and 0 < len(clear) < 9
    names = [label.get_text() for label in others.get_yticklabels()]
    assert {"forward", "reverse", "random", "all to one", "semckd"} <= {*names}


def test_cka_and_predictors_have_a_panel_each(pretended: LayerStudyResult) -> None:
    maps, ranked = cka(pretended), predictors(pretended)
    assert maps is not None and ranked is not None
    assert len([axes for axes in maps.axes if axes.images]) == 3
    titles = [axes.get_title() for axes in ranked.axes if axes.get_visible()]
    assert titles and all(title.startswith("tau ") for title in titles)


def test_cells_that_cannot_be_compared_are_shown_as_such(tmp_path: Path) -> None:
    pairing = "knowledge[1].pairs.pairing={hint: [stage1, embedding], guided: [stage1, embedding]}"
    result = pretended_result(tmp_path, pairing)
    figure = heatmap(result)
    assert figure is not None
    said = [text.get_text() for text in figure.axes[0].texts]
    assert sum("comparable" in text for text in said) == sum(
        cell.contrast is None for cell in result.cells
    )
    assert "not\ncomparable" in said
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(result))
    assert "Not trained" in console.export_text()


def test_marks_are_printed_and_explained(pretended: LayerStudyResult) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary(pretended))
    told = console.export_text()
    assert "* significant at 5%" in told
    [row] = [line for line in told.splitlines() if line.strip().startswith("stage2 16x4x4")]
    assert row.rstrip().endswith("*")
    assert facts(pretended)["status"] == "finished"


def test_an_unfinished_study_is_told_as_far_as_it_went(tmp_path: Path) -> None:
    result = pretended_result(tmp_path)
    journal = result.folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 3]))
    broken = read_layer_study(result.folder)
    assert broken.best is None
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(broken))
    told = console.export_text()
    assert "interrupted" in told and "raykd pairs --resume" in told
    draw(broken)


# On Ray


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_in_slots_killed_and_gone_on_with(tmp_path: Path, trained: LayerStudyResult) -> None:
    """The driver is killed in the middle; what the rest finds is what one process found."""
    file = written(tmp_path)
    call = ["pairs", str(file), *(word for one in TINY for word in ("--set", one))]
    command = [sys.executable, "-m", "raykd", *call]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        folder = _until_trained(tmp_path / "studies", 4, driver)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    again = raykd.pairs("", resume=folder)
    assert_same(again, trained)
    told = events(folder / "journal.jsonl")
    for record in again.records.of("trial"):
        assert epochs_of(told)[record.id] == [1, 2]
    assert (folder / "heatmap.png").is_file() and open_folder(folder)[0].verb == "pairs"


def assert_same(one: LayerStudyResult, other: LayerStudyResult) -> None:
    assert {*one.values} == {*other.values}
    for arm, of in one.values.items():
        assert of == pytest.approx(other.values[arm]), arm


def _until_trained(studies: Path, ended: int, driver: subprocess.Popen[bytes]) -> Path:
    """The folder of the study that has ended so many trainings."""
    for _ in range(1200):
        time.sleep(0.5)
        assert driver.poll() is None, "the driver ended before it could be killed"
        for journal in studies.glob("pairs-*/journal.jsonl"):
            if sum(isinstance(e, RunEnded) for e in events(journal)) >= ended:
                return journal.parent
    raise AssertionError("the study does not get on")
