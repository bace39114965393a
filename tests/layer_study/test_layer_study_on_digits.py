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
from helpers.pairs_cases import PAIRS, synthetic_result
from helpers.search_cases import epochs_of
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.layer_study.result import LayerStudyResult, read_layer_study
from raykd.layer_study.run import pairs
from raykd.report.layer_study_figures import cka, draw_figures, heatmap, predictors
from raykd.report.python import draw_layer_study
from raykd.report.summary import summarize
from raykd.report.terminal import render_summary
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


def write_study(folder: Path) -> Path:
    file = folder / "study.yaml"
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\n"
    cluster = f"cluster: {{storage: {folder}/studies, slots: 2, cpus_per_worker: 0.5}}\n"
    file.write_text(PAIRS + tracking + cluster)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    """Three cells under two seeds, in this process."""
    file = write_study(tmp_path_factory.mktemp("digits"))
    return pairs(file, overrides=TINY, executor=LocalExecutor(), draw=draw_layer_study)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> LayerStudyResult:
    return synthetic_result(tmp_path_factory.mktemp("synthetic"), "search.pairs.sets=1")


def test_all_arms_are_trained(trained: LayerStudyResult) -> None:
    arms = {arm.id for arm in trained.plan.arms if not arm.skip_reason}
    assert {*trained.accuracies} == arms
    assert arms == {"none", "random", *(f"stage2-to-stage{number}" for number in (1, 2, 3))}
    assert all(len(of) == 2 for of in trained.accuracies.values())
    assert trained.noise.freedom == len(arms) - 1 and trained.noise.deviation > 0
    assert trained.best is not None and trained.best.gain is not None
    assert not trained.failed and len(trained.records.teachers) == 1


def test_predictors_are_computed_from_trained_teacher(trained: LayerStudyResult) -> None:
    assert {*trained.predictors.by_seed} == {*trained.plan.seeds} and trained.predictors.steps == 3
    for when in ("start", "steps", "trained"):
        similarity = trained.predictors.cka_map(when)
        assert (
            similarity is not None and similarity.shape == (4, 4) and (similarity <= 1 + 1e-6).all()
        )
    for cell in trained.cells:
        assert -1 <= cell.predictors["gradient"] <= 1


def test_initial_cka_depends_on_seed(trained: LayerStudyResult) -> None:
    """The initial CKA map belongs to every arm's student, so it depends only on the seed."""
    computed = trained.predictors.by_seed.values()
    maps = [json.dumps(event.cka["start"]) for event in computed]
    assert len({*maps}) == 2


def test_folder_contains_files_and_figures(trained: LayerStudyResult) -> None:
    page = (trained.folder / "report" / "report.html").read_text()
    assert "Layer study, finished: " in page
    facts_ = json.loads((trained.folder / "pairing.json").read_text())
    assert facts_["best"]["arm"] == trained.best.arm.id  # type: ignore[union-attr]
    for name in PICTURES:
        picture = imread(trained.folder / name)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.02, "not empty"


def test_mlflow_has_runs_tags_figures_and_data(trained: LayerStudyResult) -> None:
    client = connect(trained.tracking_uri)
    experiment = client.get_experiment_by_name("pairs")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    by_role: dict[str, list] = {}
    for run in runs:
        by_role.setdefault(run.data.tags["raykd.role"], []).append(run)
    assert {*by_role} == {"study", "teacher", "trial", "probe", "replicate"}
    [study] = by_role["study"]
    artifacts = {artifact.path for artifact in client.list_artifacts(study.info.run_id, "pairs")}
    assert artifacts >= {f"pairs/{name}" for name in (*PICTURES, "pairing.json", "pairs.csv")}
    assert study.data.tags["best"] == trained.best.arm.id  # type: ignore[union-attr]
    cell = next(r for r in by_role["trial"] if r.data.tags["arm"] == "stage2-to-stage3")
    tags = cell.data.tags
    assert (tags["hint"], tags["guided"]) == ("stage2", "stage3") and tags["seed"] in "78"
    assert tags["mlflow.parentRunId"] == study.info.run_id
    parent = by_role["replicate"][0].data.tags["mlflow.parentRunId"]
    assert parent in {run.info.run_id for run in by_role["trial"]}


def test_network_of_best_student_is_saved(trained: LayerStudyResult) -> None:
    [model] = [e for e in events(trained.folder / "journal.jsonl") if isinstance(e, ModelSaved)]
    assert model.id.startswith(trained.best.arm.id)  # type: ignore[union-attr]
    assert (trained.folder / model.path).is_file()


def test_summary_is_plain_without_terminal(trained: LayerStudyResult) -> None:
    output = CliRunner().invoke(app, ["report", str(trained.folder)]).output
    assert "\x1b" not in output
    for title in ("Gain over no hint", "Other pairings", "Best set of pairs", "Cheap predictors"):
        assert title in output
    json_output = CliRunner().invoke(app, ["report", str(trained.folder), "--json"]).output
    assert json.loads(json_output)["best"]["arm"] == trained.best.arm.id  # type: ignore[union-attr]


def test_search_and_layer_study_folders_are_not_interchangeable(trained: LayerStudyResult) -> None:
    with pytest.raises(StudyError, match="raykd pairs --resume"):
        search("", resume=trained.folder)
    with pytest.raises(StudyError, match=r"has no arms of a layer study|not a study's folder"):
        read_layer_study(trained.folder.parent)


def test_resuming_finished_study_changes_nothing(trained: LayerStudyResult) -> None:
    before = (trained.folder / "pairing.json").read_bytes()
    count = len(trained.records.of("trial"))
    resumed = pairs("", resume=trained.folder, executor=LocalExecutor())
    assert len(resumed.records.of("trial")) == count
    assert (trained.folder / "pairing.json").read_bytes() == before


# Pictures and the terminal, of a study with clear gains


def test_heatmap_has_layers_on_its_axes(synthetic: LayerStudyResult) -> None:
    figure = heatmap(synthetic)
    assert figure is not None
    cells, other_arms = figure.axes
    assert [t.get_text() for t in cells.get_xticklabels()] == [
        "stage1\n4x8x8", "stage2\n8x4x4", "stage3\n16x2x2",
    ]  # fmt: skip
    assert cells.get_yticklabels()[0].get_text() == "stage1\n8x8x8"
    low, high = cells.images[0].get_clim()
    assert low == -high, "no gain is the middle of the colormap"
    texts = [text.get_text() for text in cells.texts]
    assert len(texts) == 9 and all("±" in text for text in texts)
    clear = [cell for cell in synthetic.cells if cell.contrast and cell.contrast.is_significant]
    hatched = [patch for patch in cells.patches if patch.get_hatch()]
    assert len(hatched) == 9 - len(clear) and 0 < len(clear) < 9
    names = [label.get_text() for label in other_arms.get_yticklabels()]
    assert {"forward", "reverse", "random", "all to one", "semckd"} <= {*names}


def test_cka_and_predictors_have_panels(synthetic: LayerStudyResult) -> None:
    maps, ranked = cka(synthetic), predictors(synthetic)
    assert maps is not None and ranked is not None
    assert len([axes for axes in maps.axes if axes.images]) == 3
    titles = [axes.get_title() for axes in ranked.axes if axes.get_visible()]
    assert titles and all(title.startswith("tau ") for title in titles)


def test_incomparable_cells_are_marked(tmp_path: Path) -> None:
    pairing = "knowledge[1].pairs.pairing={hint: [stage1, embedding], guided: [stage1, embedding]}"
    result = synthetic_result(tmp_path, pairing)
    figure = heatmap(result)
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum("comparable" in text for text in texts) == sum(
        cell.contrast is None for cell in result.cells
    )
    assert "not\ncomparable" in texts
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_summary(summarize(result)))
    assert "Not trained" in console.export_text()


def test_marks_are_printed_with_legend(synthetic: LayerStudyResult) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_summary(summarize(synthetic)))
    output = console.export_text()
    assert "* significant at 5%" in output
    [row] = [line for line in output.splitlines() if line.strip().startswith("stage2 16x4x4")]
    assert row.rstrip().endswith("*")
    assert summarize(synthetic).plain()["status"] == "finished"


@pytest.mark.parametrize("share", [0.0, 1 / 3])
def test_unfinished_study_is_reported_as_far_as_it_went(tmp_path: Path, share: float) -> None:
    result = synthetic_result(tmp_path)
    journal = result.folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    arms = next(i for i, line in enumerate(lines) if '"event": "arms"' in line)
    journal.write_text("".join(lines[: max(arms + 1, int(share * len(lines)))]))
    broken = read_layer_study(result.folder)
    assert broken.best is None
    json.dumps(summarize(broken).plain(), allow_nan=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_summary(summarize(broken)))
    output = console.export_text()
    assert "interrupted" in output and "raykd pairs --resume" in output
    draw_figures(broken)


# On Ray


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_killed_study_in_slots_resumes_to_equal_results(
    tmp_path: Path, trained: LayerStudyResult
) -> None:
    """The driver is killed during the study; the resumed study equals that of one process."""
    file = write_study(tmp_path)
    call = ["pairs", str(file), *(word for override in TINY for word in ("--set", override))]
    command = [sys.executable, "-m", "raykd", *call]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        folder = _until_trained(tmp_path / "studies", 4, driver)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    resumed = raykd.pairs("", resume=folder)
    assert_same(resumed, trained)
    recorded = events(folder / "journal.jsonl")
    for record in resumed.records.of("trial"):
        assert epochs_of(recorded)[record.id] == [1, 2]
    assert (folder / "heatmap.png").is_file() and open_folder(folder)[0].verb == "pairs"


def assert_same(first: LayerStudyResult, second: LayerStudyResult) -> None:
    assert {*first.accuracies} == {*second.accuracies}
    for arm, metrics_by_seed in first.accuracies.items():
        assert metrics_by_seed == pytest.approx(second.accuracies[arm]), arm


def _until_trained(studies: Path, ended: int, driver: subprocess.Popen[bytes]) -> Path:
    """Wait until the study has finished `ended` trainings and return its folder."""
    for _ in range(1200):
        time.sleep(0.5)
        assert driver.poll() is None, "the driver ended before it could be killed"
        for journal in studies.glob("pairs-*/journal.jsonl"):
            if sum(isinstance(e, RunEnded) for e in events(journal)) >= ended:
                return journal.parent
    raise AssertionError("the study does not get on")
