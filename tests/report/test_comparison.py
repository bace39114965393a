"""Tests of comparisons of studies and of other runs in MLflow."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

import raykd
from helpers.browser import draw_figures, new_page
from helpers.comparison_cases import Case, log_runs, write_study
from helpers.mlflow_server import Server
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.layer_study.significance import correct_holm
from raykd.report.comparison import sources
from raykd.report.comparison.arms import Metric, choose_metric
from raykd.report.comparison.choices import associations
from raykd.report.comparison.comparison import Comparison
from raykd.report.comparison.differences import short_value
from raykd.report.comparison.fronts import fronts_of
from raykd.report.comparison.members import Data, Member, Place, Training, is_seed
from raykd.report.page.comparison_page import comparison_page
from raykd.tracking.events import RunEnded
from raykd.tracking.journal import events
from raykd.tracking.mlflow_client import connect
from raykd.tracking.mlflow_runs import (
    SEARCH,
    ClientRuns,
    ServerRuns,
    SqliteRuns,
    StoredRun,
    open_store,
)
from raykd.tracking.store_uri import database_file
from raykd.tracking.sync import upload_journal
from raykd.tuning.estimates import paired_gain
from raykd.tuning.result import read_result

if TYPE_CHECKING:
    from mlflow.utils.rest_utils import MlflowHostCreds
    from requests import Response

BETTER = Case("better", changes=[("trials: 8", "trials: 9")])
WORSE = Case("worse", (0.961, 0.966, 0.962, 0.967), (0.95, 0.955, 0.952, 0.954))
OTHER_SPLIT = Case("other-split", (0.970, 0.975, 0.981, 0.972), fingerprint="a" * 64)
OTHER_DATA = Case("other-data", (0.871, 0.875, 0.881, 0.872), data="mnist", fingerprint="b" * 64)
OTHER_OBJECTIVES = Case("other-objectives", changes=[("params: min", "macs: min")])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("comparison")
    cases = (BETTER, WORSE, OTHER_SPLIT, OTHER_DATA, OTHER_OBJECTIVES)
    return {case.name: write_study(case, root) for case in cases}


@pytest.fixture(scope="module")
def comparison(folders: dict[str, Path]) -> Comparison:
    return raykd.compare([folders["better"], folders["worse"]])


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return done.exit_code, done.output


# Figures


def test_arms_equal_those_of_journal(comparison: Comparison, folders: dict[str, Path]) -> None:
    for name in ("better", "worse"):
        accuracies: dict[str, list[float]] = {}
        for event in events(folders[name] / "journal.jsonl"):
            if isinstance(event, RunEnded) and "test_accuracy" in event.metrics:
                arm = re.sub(r"-\d+$", "", event.id)
                accuracies.setdefault(arm, []).append(event.metrics["test_accuracy"])
        arms = {
            f"{arm.id}/{'alone' if arm.kind == 'baseline' else 'seed'}": arm
            for arm in comparison.arms
            if arm.member == name and arm.kind != "teacher"
        }
        assert set(arms) == set(accuracies) - {"teacher"}
        for id, arm in arms.items():
            values = accuracies[id]
            assert arm.mean.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            assert arm.mean.half_width == pytest.approx(half)
            assert arm.mean.count == len(values) == 4


def test_gains_equal_those_of_report(comparison: Comparison, folders: dict[str, Path]) -> None:
    [finalist] = [each for each in read_result(folders["better"]).finalists if each.gain]
    arm = next(a for a in comparison.arms if a.member == "better" and a.kind == "finalist")
    assert arm.gain == finalist.gain
    assert arm.mean == finalist.distilled


def test_tests_are_paired_and_corrected(comparison: Comparison) -> None:
    [group] = comparison.groups
    assert group.reference is not None and group.reference.member == "better"
    reference = group.reference.values
    expected = {}
    for index, contrast in group.contrasts.items():
        values = group.arms[index].values
        assert contrast.test == "paired"
        assert contrast.difference == paired_gain(values, reference)
        differences = [values[seed] - reference[seed] for seed in values]
        expected[str(index)] = stats.ttest_1samp(differences, 0.0)[1]
    assert {str(i): c.p for i, c in group.contrasts.items()} == pytest.approx(expected)
    corrected = correct_holm(expected)
    assert {str(i): c.p_holm for i, c in group.contrasts.items()} == pytest.approx(corrected)


def test_verdict_names_best_and_worse(comparison: Comparison) -> None:
    text = " ".join(comparison.verdicts)
    assert "(better) has the best test accuracy: 97.62%" in text
    assert "(worse) differs from it by -1.23" in text and "it is worse" in text


def test_other_splits_are_not_paired(folders: dict[str, Path]) -> None:
    compared = raykd.compare([folders["better"], folders["other-split"]])
    [remark] = compared.comparability.remarks
    assert remark.subject == "splits" and "better / other-split" in remark.difference
    [group] = compared.groups
    for index, contrast in group.contrasts.items():
        arm = group.arms[index]
        assert contrast.test == ("paired" if arm.member == "better" else "unpaired")
        if contrast.test == "unpaired" and group.reference is not None:
            values = [*arm.values.values()], [*group.reference.values.values()]
            assert contrast.p == pytest.approx(stats.ttest_ind(*values, equal_var=False)[1])


def test_other_data_are_not_tested(folders: dict[str, Path]) -> None:
    compared = raykd.compare([folders["better"], folders["other-data"], folders["worse"]])
    [remark] = compared.comparability.remarks
    assert remark.subject == "data" and "mnist: other-data" in str(remark)
    assert "gains over training without a teacher" in remark.left
    assert [len({arm.member for arm in group.arms}) for group in compared.groups] == [2, 1]
    for group in compared.groups:
        members = {arm.member for arm in group.arms}
        assert group.reference is not None and group.reference.member in members
    assert len(compared.fronts) == 2


def test_other_objectives_leave_common_ones(folders: dict[str, Path]) -> None:
    compared = raykd.compare([folders["better"], folders["other-objectives"]])
    [remark] = compared.comparability.remarks
    assert remark.subject == "objectives" and "val_accuracy" in remark.left
    [fronts] = compared.fronts
    assert list(fronts.objectives) == ["val_accuracy"]
    assert all(front.volume is None and len(front.front) == 1 for front in fronts.members)


def test_direction_of_a_test_metric_is_that_of_the_objective() -> None:
    training = Training("t", "replicate", "finished", "", 1, {}, {"test_Misses": 3.0}, None)
    member = Member("a", (training,), {"val_Misses": "min"}, Data(), Place())
    assert choose_metric([member], "test_Misses", None).smaller


def test_only_differences_are_listed(comparison: Comparison) -> None:
    assert [(row.name, row.values) for row in comparison.setting_differences] == [
        ("search.trials", ("9", "8"))
    ]
    assert [row.name for row in comparison.param_differences] == ["search.trials"]


def test_trial_limits_member(folders: dict[str, Path]) -> None:
    compared = raykd.compare([f"{folders['better']}:trial-0000", folders["worse"]])
    first = compared.members[0]
    assert first.name == "better:trial-0000"
    assert {t.id.partition("/")[0] for t in first.trainings} == {"trial-0000"}
    assert len(first.trainings) == 9


def test_folder_of_studies_is_all_its_studies(folders: dict[str, Path]) -> None:
    compared = raykd.compare([folders["better"].parent, folders["better"]])
    assert {member.name for member in compared.members} == set(folders)


def test_reference_can_be_chosen(folders: dict[str, Path]) -> None:
    sources = [folders["better"], folders["worse"]]
    compared = raykd.compare(sources, reference="worse:trial-0000")
    assert compared.groups[0].reference is not None
    assert compared.groups[0].reference.member == "worse"
    assert "it is better" in " ".join(compared.verdicts)


# Fronts and choices


def runs(accuracies: list[float], params: list[float], name: str = "a") -> Member:
    trainings = tuple(
        Training(
            *(f"trial-{n:04d}", "trial", "finished", f"trial {n}", 0),
            {"width": str(int(cost)), "block": "basic" if cost < 300 else "bottleneck"},
            {"val_accuracy": accuracy, "params": cost},
            1.0,
        )
        for n, (accuracy, cost) in enumerate(zip(accuracies, params, strict=True))
    )
    objectives = {"val_accuracy": "max", "params": "min"}
    return Member(name, trainings, objectives, Data("digits"), Place())


def test_hypervolume_is_that_of_formula() -> None:
    fronts = fronts_of([runs([0.5, 0.7, 0.6], [10, 100, 1000]), runs([0.9], [1000], "b")])
    assert fronts is not None
    first, second = fronts.members
    assert [trial.metrics["val_accuracy"] for trial in first.front] == [0.7, 0.5]
    # both axes in units of the range of all trials, the reference point 0.1 beyond the worst
    accuracy, cost = (np.array([0.5, 0.7]) - 0.5) / 0.4, np.array([0.0, 0.5])
    expected = (1.1 - cost[0]) * (accuracy[0] + 0.1)
    expected += (1.1 - cost[1]) * (accuracy[1] - accuracy[0])
    assert first.volume is not None and second.volume is not None
    assert first.volume.mean == pytest.approx(expected / 1.1**2)
    assert second.volume.mean == pytest.approx(0.1 * 1.1 / 1.1**2)
    assert first.volume.low <= first.volume.high <= first.volume.mean + 1e-12
    assert math.isnan(second.volume.low)
    assert fronts.reference["val_accuracy"] == pytest.approx(0.46)
    assert fronts.reference["params"] == pytest.approx(10**3.2)


def test_associations_ignore_level_of_study() -> None:
    params = [float(width) for width in range(100, 600, 25)]
    rising = [0.5 + cost / 2000 for cost in params]
    members = [runs(rising, params), runs([0.2 + value / 3 for value in rising], params, "b")]
    found = {a.name: a for a in associations(members, Metric("val_accuracy", False, True))}
    assert found["width"].tau > 0.8 and found["width"].is_significant
    assert [choice.value for choice in found["block"].choices] == ["bottleneck", "basic"]
    assert found["block"].is_significant and found["block"].trials == 40


def test_missing_and_constant_values_have_no_association() -> None:
    members = [runs([0.5] * 4, [100.0] * 4)]
    assert associations(members, Metric("val_accuracy", False, True)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("seed", True), ("model/random_seed", True), ("train.seed", True), ("seeds", False)],
)
def test_names_of_seeds(name: str, expected: bool) -> None:
    assert is_seed(name) is expected


def test_values_are_short() -> None:
    texts = ["3.944031798289294", "0.1", "resnet", "", "none", "1e-300"]
    assert [short_value(text) for text in texts] == [
        *("3.944", "0.1", "resnet", "-", "none", "1e-300")
    ]


# Outputs


def test_table_has_every_arm(comparison: Comparison, tmp_path: Path) -> None:
    csv = pd.read_csv(comparison.write(tmp_path / "new" / "arms.csv"))
    parquet = pd.read_parquet(comparison.write(tmp_path / "arms.parquet"))
    assert len(csv) == len(parquet) == len(comparison.arms)
    assert list(csv.columns) == list(parquet.columns)
    means = [arm.mean.mean for arm in comparison.arms]
    assert csv["test_accuracy_mean"].tolist() == pytest.approx(means)
    assert csv["is_reference"].tolist().count(True) == 1
    assert sum(math.isfinite(p) for p in csv["p_holm"].tolist()) == 3


def test_command_prints_comparison(folders: dict[str, Path], tmp_path: Path) -> None:
    code, output = invoke(
        *(folders["better"], folders["worse"]),
        *("-o", tmp_path / "page.html", "-o", tmp_path / "new" / "arms.csv"),
    )
    assert code == 0, output
    assert "2 studies compared by test accuracy" in output
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    assert len(pd.read_csv(tmp_path / "new" / "arms.csv")) == 6
    code, output = invoke(folders["better"], folders["worse"], "--json")
    assert code == 0 and {row["study"] for row in json.loads(output)} == {"better", "worse"}


def test_notebook_card_is_escaped(folders: dict[str, Path]) -> None:
    compared = raykd.compare([folders["better"], folders["worse"]])
    html = compared._repr_html_()
    assert "97.62%" in html and "&lt;" not in html
    assert "Comparison(better, worse; test_accuracy" in repr(compared)


def test_page_shows_figures_of_comparison(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    ids = [section.id for section in page.sections]
    assert ids == ["members", "arms", "differences", "fronts", "choices", "cost"]
    pictures = {picture.id: picture for picture in page.pictures}
    assert len(pictures) == len(page.pictures)
    assert {"arms-figure", "fronts", "choices-figure", "importances", "time"} <= set(pictures)
    for name in ("arms-figure", "choices-figure", "time"):  # long names leave room for the plot
        assert pictures[name].min_width > 600
    assert page.answer == comparison.verdicts


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to compare"),
        (("no/such/folder",), "no such folder, and there is no MLflow store"),
        (("{empty}",), "is not a study's folder, and holds none"),
        (("{better}:trial-0099",), "has no training 'trial-0099'"),
        (("{better}", "--metric", "f1"), "no finished training has the metric 'f1'"),
        (("{better}", "--reference", "trial-0099"), "no arm over several seeds has the ID"),
        (("{better}", "-o", "page.pdf"), "the suffix '.pdf' is unknown"),
        (("a", "--tracking-uri", "http://127.0.0.1:9"), "no answer"),
        (("a", "--tracking-uri", "folder"), "no tracking store"),
    ],
)
def test_invalid_input_gives_single_message(
    arguments: tuple[str, ...],
    message: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [each.format(empty=tmp_path / "empty", **folders) for each in arguments]
    code, output = invoke(*filled)
    assert code == 2 and message in " ".join(output.split()), output
    assert "Traceback" not in output and "internal error" not in output


def test_study_without_finished_training(tmp_path: Path) -> None:
    folder = write_study(Case("new"), tmp_path)
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(StudyError, match="no training has finished"):
        raykd.compare([folder])


# MLflow


@pytest.fixture(scope="module")
def store(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    for name in ("better", "worse"):
        upload_journal(folders[name] / "journal.jsonl", uri)
    log_runs(uri, "flat")
    log_runs(uri, "nested", parent=True)
    return uri


@pytest.mark.slow
def test_mlflow_gives_same_figures_as_journals(comparison: Comparison, store: str) -> None:
    stored = raykd.compare(["better", "worse"], tracking_uri=store)
    first, second = (each.table.drop(columns="seconds") for each in (comparison, stored))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert stored.verdicts == comparison.verdicts
    assert stored.setting_differences == comparison.setting_differences
    assert [f.members[0].volume for f in stored.fronts] == [
        f.members[0].volume for f in comparison.fronts
    ]


@pytest.mark.slow
def test_comparison_is_logged_with_links_to_its_members(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    upload_journal(folders["better"] / "journal.jsonl", uri)
    log_runs(uri, "other", parent=True)
    arguments = ("better", "other", folders["worse"], "--metric", "val_accuracy")
    code, output = invoke(*arguments, "--tracking-uri", uri, "--mlflow")
    assert code == 0, output
    [address] = re.findall("logged (.*)", output)
    client = connect(uri)
    run = client.get_run(address.partition("/runs/")[2].partition("?")[0])
    members = raykd.compare(["better", "other"], tracking_uri=uri).members
    links = [(member.place.experiment_id, member.place.run_id) for member in members]
    assert run.data.tags["raykd.members"].split() == [run_id for _, run_id in links]
    note = run.data.tags["mlflow.note.content"]
    for experiment, run_id in links:
        assert f"(#/experiments/{experiment}/runs/{run_id})" in note
    assert "worse (not in this store)" in note and "compare-runs?" in note
    files = {each.path for each in client.list_artifacts(run.info.run_id, "comparison")}
    assert files == {"comparison/comparison.html", "comparison/arms.csv"}
    assert run.info.status == "FINISHED"
    again = raykd.compare(["better"], tracking_uri=uri)
    assert [member.name for member in again.members] == ["better"]


@pytest.mark.slow
def test_sources_in_mlflow(store: str) -> None:
    client = connect(store)
    experiment = client.get_experiment_by_name("better")
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`raykd.role` = 'study'")
    trial = "tags.`raykd.id` LIKE '%/trial-0000'"
    [first] = client.search_runs([experiment.experiment_id], trial)
    for source in (experiment.experiment_id, study.info.run_id):
        [member] = raykd.compare([source], tracking_uri=store).members
        assert member.name == "better" and len(member.trainings) == 17
    [member] = raykd.compare([first.info.run_id], tracking_uri=store).members
    assert {t.id.partition("/")[0] for t in member.trainings} == {"trial-0000"}
    [member] = raykd.compare([], filter="tags.chosen = 'true'", tracking_uri=store).members[:1]
    assert [t.id for t in member.trainings] == ["trial-0000"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat", "nested"])
def test_runs_of_other_programs_are_grouped_by_everything_but_seed(name: str, store: str) -> None:
    compared = raykd.compare([name], tracking_uri=store)
    [member] = compared.members
    assert member.name == ("flat" if name == "flat" else "sweep") and not member.is_study
    assert compared.metric == Metric("f1_score", smaller=False, is_accuracy=False)
    best, other = compared.arms
    assert (best.label, other.label) == ("depth=4", "depth=2")
    assert best.values == pytest.approx({0: 0.86, 1: 0.874, 2: 0.888})
    contrast = compared.groups[0].contrasts[1]
    assert contrast.test == "paired" and contrast.is_significant
    assert "f1_score_mean" in compared.table


@pytest.mark.slow
def test_sqlite_is_read_as_mlflow_reads_it(store: str) -> None:
    file = database_file(store)
    assert file is not None
    quick, client = SqliteRuns(file), ClientRuns(store)
    experiments = quick.experiments()
    assert experiments == client.experiments()
    ids = list(experiments.values())
    stored = {run.run_id: run for run in client.runs(ids)}
    assert {run.run_id: run for run in quick.runs(ids)} == stored
    some = next(iter(stored))
    assert quick.run(some) == client.run(some) == stored[some]
    assert quick.run("0" * 32) is client.run("0" * 32) is None
    assert isinstance(open_store(store), SqliteRuns)
    assert isinstance(open_store(store, filtered=True), ClientRuns)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bettr",), "did you mean 'better'?"),
        (("0" * 32,), f"has no run {'0' * 32}"),
        (("better", "--filter", "tags.x ~ 3"), "rejects the filter"),
        (("better", "--filter", "tags.x = 'y'"), "has no runs that match"),
    ],
)
def test_wrong_names_in_mlflow(arguments: tuple[str, ...], message: str, store: str) -> None:
    code, output = invoke(*arguments, "--tracking-uri", store)
    assert code == 2 and message in " ".join(output.split()), output


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a study, and with a run of another program that has empty and NaN values."""
    server = Server(tmp_path_factory.mktemp("served"))
    server.start()
    try:
        upload_journal(folders["better"] / "journal.jsonl", server.uri)
        client = connect(server.uri)
        experiment = client.create_experiment("other")
        run = client.create_run(experiment, tags={"empty": ""}).info.run_id
        client.log_param(run, "note", "")
        for name, value in (("nan", math.nan), ("infinite", math.inf), ("half", 0.5)):
            client.log_metric(run, name, value)
        client.create_run(experiment, run_name="without values")
        yield server.uri
    finally:
        server.stop()


@pytest.mark.slow
def test_server_needs_one_request_for_page_of_runs(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.utils import rest_utils

    requests = []
    send = rest_utils.http_request_safe

    def counted(host: MlflowHostCreds, endpoint: str, method: str, **options: Any) -> Response:
        requests.append(endpoint)
        return send(host, endpoint, method, **options)

    monkeypatch.setattr(rest_utils, "http_request_safe", counted)
    monkeypatch.setattr("raykd.tracking.mlflow_runs.PAGE", 10)
    compared = raykd.compare(["better"], tracking_uri=served, filter="attributes.start_time > 0")
    assert len(compared.arms) == 3
    assert len(compared.members[0].trainings) == 17
    assert requests.count(SEARCH) == 2  # 18 runs in pages of 10


def tables(uri: str, sources: Sequence[str]) -> tuple[Comparison, Comparison]:
    """Return a comparison as raykd reads it, and the same from all runs."""
    everything = "attributes.start_time > 0"
    return (
        raykd.compare(sources, tracking_uri=uri),
        raykd.compare(sources, tracking_uri=uri, filter=everything),
    )


def assert_same(first: Comparison, second: Comparison) -> None:
    """Assert that two comparisons have the same figures, verdicts and differences."""
    one, other = first.table, second.table
    columns = [name for name in one if name != "seconds"]
    pd.testing.assert_frame_equal(one.loc[:, columns], other.loc[:, columns], check_exact=True)
    # an arm's run in MLflow may have started a millisecond or two earlier
    np.testing.assert_allclose(one["seconds"].to_numpy(), other["seconds"].to_numpy(), atol=2e-3)
    assert first.verdicts == second.verdicts
    assert first.setting_differences == second.setting_differences
    for one_front, other_front in zip(first.fronts, second.fronts, strict=True):
        assert [m.volume for m in one_front.members] == [m.volume for m in other_front.members]
    places = [[m.place for m in each.members] for each in (first, second)]
    assert places[0] == places[1]


@pytest.mark.slow
def test_journal_on_server_gives_same_figures_as_its_runs(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    runs = ServerRuns.runs

    def counted(store: ServerRuns, *arguments: Any) -> list[StoredRun]:
        stored = runs(store, *arguments)
        sizes.append(len(stored))
        return stored

    monkeypatch.setattr(ServerRuns, "runs", counted)
    quick, slow = tables(served, ["better"])
    assert_same(quick, slow)
    assert sizes == [0, 1, 18]  # comparisons, studies; all runs


@pytest.fixture
def client_store(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with two studies in one experiment, read by MLflow's client as other databases."""
    monkeypatch.setattr(sources, "open_store", lambda uri, filtered: ClientRuns(uri))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("better", "worse"):
        folder = shutil.copytree(folders[name], tmp_path / name)
        journal = folder / "journal.jsonl"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        for line in lines:
            if line["event"] == "study":
                line["experiment"] = "both"
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        upload_journal(journal, uri)
    return uri


@pytest.mark.slow
def test_journals_count_only_while_mlflow_has_exactly_their_runs(
    client_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(client_store)
    experiment = client.get_experiment_by_name("both")
    assert experiment is not None

    def compared() -> tuple[Comparison, list[str]]:
        """Compare; return the names of studies that were read run by run, or "all"."""
        read: list[str] = []
        runs = ClientRuns.runs

        def noted(store: ClientRuns, ids: Sequence[str], text: str = "") -> list[StoredRun]:
            stored = runs(store, ids, text)
            if "raykd.study" in text:
                read.append(next(run.name for run in stored if run.tags["raykd.role"] == "study"))
            elif not text:
                read.append("all")
            return stored

        with monkeypatch.context() as patch:
            patch.setattr(ClientRuns, "runs", noted)
            quick = raykd.compare(["both"], tracking_uri=client_store)
        slow = raykd.compare(
            ["both"], tracking_uri=client_store, filter="attributes.start_time > 0"
        )
        assert_same(quick, slow)
        return quick, read

    whole, read = compared()
    assert read == [] and [member.name for member in whole.members] == ["better", "worse"]
    [run] = client.search_runs(
        [experiment.experiment_id],
        "tags.`raykd.id` = 'study-worse/trial-0003'",
    )
    client.delete_run(run.info.run_id)
    less, read = compared()
    assert read == ["worse"]
    counts = [[len(member.trainings) for member in each.members] for each in (whole, less)]
    assert counts[1] == [counts[0][0], counts[0][1] - 1]
    client.restore_run(run.info.run_id)
    assert compared()[1] == []
    [parent] = client.search_runs([experiment.experiment_id], "tags.`raykd.id` = 'study-worse'")
    client.set_tag(parent.info.run_id, "raykd.status", "running")  # as while it is extended
    assert compared()[1] == ["worse"]
    client.set_tag(parent.info.run_id, "raykd.status", "finished")
    journal = Path(client.download_artifacts(parent.info.run_id, "study/journal.jsonl"))
    first, *others = journal.read_text().splitlines()
    damaged = "\n".join([first, "no event", *others]) + "\n"
    client.log_text(parent.info.run_id, damaged, "study/journal.jsonl")
    assert compared()[1] == ["worse"]
    client.create_run(experiment.experiment_id, run_name="of another program")
    assert compared()[1][-1] == "all"
    [member] = raykd.compare([parent.info.run_id], tracking_uri=client_store).members
    assert member.name == "worse"


@pytest.mark.slow
def test_metric_that_was_logged_to_runs_is_read_from_them(client_store: str) -> None:
    client = connect(client_store)
    experiment = client.get_experiment_by_name("both")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id], "tags.`raykd.role` = 'replicate'"):
        client.log_metric(run.info.run_id, "robustness", 0.5)
    compared = raykd.compare(["both"], tracking_uri=client_store, metric="robustness")
    assert {arm.mean.mean for arm in compared.arms} == {0.5}


@pytest.mark.slow
def test_server_is_read_as_mlflow_reads_it(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct, client = open_store(served), ClientRuns(served)
    assert isinstance(direct, ServerRuns)
    experiments = direct.experiments()
    for filter in ("", "tags.`raykd.role` = 'trial'", "metrics.half > 0"):
        ids = list(experiments.values())
        assert direct.runs(ids, filter) == client.runs(ids, filter) != []
    with pytest.raises(ValueError, match="rejects the filter"):
        direct.runs(list(experiments.values()), "tags.x ~ 3")
    monkeypatch.setattr("raykd.tracking.mlflow_runs.SEARCH", "/api/2.0/mlflow/nothing")
    monkeypatch.setattr("raykd.tracking.mlflow_runs.time.sleep", lambda _: None)
    with pytest.raises(Exception, match="404"):
        direct.runs(["1"])


# In a browser


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 380)])
def test_page_is_drawn_without_errors(
    comparison: Comparison, tmp_path: Path, dark: bool, width: int
) -> None:
    page = comparison_page(comparison)
    file = comparison.write(tmp_path / "page.html")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with new_page(dark=dark, width=width) as (browser_page, errors):
        browser_page.goto(file.as_uri())
        draw_figures(browser_page)
        assert errors == []
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
        for picture in page.pictures:
            box = browser_page.locator(f"#figure-{picture.id} .svg-container").bounding_box()
            assert box["height"] == picture.height
        rows = browser_page.locator("#arms-table tbody tr:not([hidden])")
        browser_page.fill("#arms-table-filter", "worse finalist")
        assert rows.count() == 1 and "96.40%" in rows.first.inner_text()
        browser_page.fill("#arms-table-filter", "")
        browser_page.locator("#arms-table th button", has_text="test accuracy").click()
        assert "97.62%" in rows.first.inner_text()
        violations = axe.run(browser_page).response["violations"]
        assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []
