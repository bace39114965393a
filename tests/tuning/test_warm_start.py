"""Warm start of a search: from a study's folder, a trial, MLflow, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from typer.testing import CliRunner

from helpers.search_cases import SMALL, TASK, World, explore, opened
from raykd import pareto
from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.report.summary.search import excluded_candidates
from raykd.study.open_study import OpenStudy
from raykd.study.space.reuse import transfer_values
from raykd.tracking.events import Note, StartPoint, WarmStarted
from raykd.tracking.journal import events
from raykd.tracking.mlflow_client import find_run
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.optuna_study import open_optuna_study
from raykd.tuning.prior import IN_PART, prior_points
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_dir import create_folder, open_folder
from raykd.tuning.warm_start import enqueue_start_points, start_points

LONE = ("search.trials=3", "search.replicates=0", "train.epochs=1", "teacher.train.epochs=1")

OTHER = """\
name: other
data: {name: digits, limit: 120, val_limit: 50}
teacher:
  model: {name: resnet, depth: 8, width: 4}
  train: {epochs: 1, batch_size: 32}
student:
  model:
    choice:
      - {name: resnet, depth: 8, width: {int: [4, 8], step: 4}}
      - {name: mlp, depth: {choice: [1, 2, 3]}, width: {int: [2, 20]}}
knowledge:
  - loss: {choice: [null, {name: hint}]}
    pairs: {pairing: {hint: auto, guided: [stage1, stage2, stage3, embedding], max: 2}}
  - loss: {choice: [{name: rkd}, {name: kd, temperature: {uniform: [1, 3]}}]}
train: {epochs: 1, batch_size: 32}
search: {sampler: random, trials: 3, replicates: 0}
"""
"""Other data, another teacher, a wider space of students, terms in another order."""


def searched(study: OpenStudy) -> StudyResult:
    return SearchRun(study).run(LocalExecutor())


def trials_of(result: StudyResult, study: OpenStudy) -> list[optuna.trial.FrozenTrial]:
    folder, _ = open_folder(result.folder)
    settings = study.settings
    trials = open_optuna_study(
        settings.name, settings.search, settings.seed, folder.optuna, 1
    ).get_trials()
    return list(trials)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def placed(home: Path) -> tuple[str, ...]:
    return (f"cluster.storage={home}/studies", f"tracking.uri=sqlite:///{home}/mlflow.db")


@pytest.fixture(scope="module")
def first(placed: tuple[str, ...]) -> StudyResult:
    """Finished study."""
    return searched(opened(*LONE, *placed, text=SMALL))


@pytest.fixture
def study(placed: tuple[str, ...]) -> OpenStudy:
    return opened(*placed, text=OTHER)


def test_best_trials_of_study_come_first(first: StudyResult, study: OpenStudy) -> None:
    winners = [chosen.trial for chosen in first.finalists]
    published: list[Any] = []
    run = SearchRun(study, start_from=[str(first.folder)], listeners=[published.append])
    result = run.run(LocalExecutor())
    assert len(result.records.of("trial")) == 3
    trials = result.records.of("trial")
    model = winners[0].job.study["student"]["model"]
    mine = trials[0].job.study["student"]["model"]
    assert mine["name"] == "mlp"
    assert mine["depth"] == model["depth"]
    fits = model["width"] <= 20
    assert (mine["width"] == model["width"]) is fits
    (start,) = [event for event in published if isinstance(event, WarmStarted)]
    name = f"{first.folder.name}:{winners[0].id}"
    assert start.starts[0].name == name
    lines = [line for item in start.starts for line in item.left_out]
    wide = f"{name}: student.model.width = {model['width']} is left out: it is outside 2 to 20"
    assert (wide in lines) is not fits
    notes = [e.tags for e in events(result.folder / "journal.jsonl") if isinstance(e, Note)]
    assert any(name in tags.get("start_from", "") for tags in notes)
    told_again = excluded_candidates(events(result.folder / "journal.jsonl"))
    assert {*lines} <= {*told_again}
    assert any(line.startswith("knowledge[0].pairs excludes stage1>embed") for line in told_again)
    marked = [trial.user_attrs.get("raykd.start") for trial in trials_of(result, study)]
    assert marked[: len(winners)] == [f"{first.folder.name}:{item.id}" for item in winners]


def test_folder_trial_and_mlflow_give_equal_points(
    first: StudyResult, study: OpenStudy, home: Path
) -> None:
    uri = f"sqlite:///{home}/mlflow.db"
    for record in first.records.of("trial"):
        stored = find_run(uri, f"{first.study_id}/{record.id}")
        assert stored is not None
        (point,) = start_points(study, TASK, [f"{first.folder}:{record.id}"])
        (other,) = start_points(study, TASK, [stored.run_id])
        assert point.params
        assert dict(other.params) == dict(point.params)
        assert [line.partition(": ")[2] for line in other.left_out] == [
            line.partition(": ")[2] for line in point.left_out
        ]
    parent = find_run(uri, first.study_id)
    assert parent is not None
    whole = [dict(start.params) for start in start_points(study, TASK, [str(first.folder)])]
    stored = [dict(start.params) for start in start_points(study, TASK, [parent.run_id])]
    assert sorted(map(repr, stored)) == sorted(map(repr, whole))


def test_resumed_search_keeps_its_warm_start(first: StudyResult, study: OpenStudy) -> None:
    run = SearchRun(study, start_from=[str(first.folder)])
    assert study.signature is not None
    folder = create_folder(
        "other", study.settings.cluster.storage, study.text, (), "search", run.start_from
    )
    reopened, _ = open_folder(folder.path)
    assert reopened.start_from == (str(first.folder),)
    result = SearchRun(study, reopened).run(LocalExecutor())
    before = trials_of(result, study)
    assert before[0].user_attrs["raykd.start"].startswith(first.folder.name)
    result = SearchRun(study, reopened).run(LocalExecutor())
    assert len(trials_of(result, study)) == len(before), "nothing is put first twice"


def layer_study(home: Path, text: str) -> Path:
    """Folder of a finished layer study."""
    folder = create_folder("layers", str(home / "studies"), OTHER, (), "pairs")
    (folder.path / "pairing.json").write_text(text)
    return folder.path


def test_best_pairing_starts_search(study: OpenStudy, home: Path) -> None:
    pairs = [{"hint": "stage1", "guided": "stage1"}, {"hint": "stage3", "guided": "stage2"}]
    best = {"pairs": pairs, "loss": {"name": "hint"}, "weight": 2.0}
    (start,) = start_points(
        study, TASK, [str(layer_study(home, json.dumps({"term": 1, "best": best})))]
    )
    assert start.params == {
        "knowledge[0].loss": "hint",
        "knowledge[0].pairs.count": 2,
        "knowledge[0].pairs[0].hint": "stage1",
        "knowledge[0].pairs[0].guided": "stage1",
        "knowledge[0].pairs[1].hint": "stage3",
        "knowledge[0].pairs[1].guided": "stage2",
    }
    unknown = {**best, "loss": {"name": "nst"}}
    (start,) = start_points(
        study, TASK, [str(layer_study(home, json.dumps({"term": 0, "best": unknown})))]
    )
    assert "knowledge[0].loss" not in start.params
    assert start.params["knowledge[0].pairs[1].hint"] == "stage3"
    with pytest.raises(StudyError, match="has no best pairing"):
        start_points(study, TASK, [str(layer_study(home, json.dumps({"term": 0, "best": None})))])


def test_invalid_warm_start_raises_before_anything_starts(
    first: StudyResult, study: OpenStudy, placed: tuple[str, ...], home: Path
) -> None:
    before = sorted((home / "studies").iterdir())
    for run_name, words in (
        ("nowhere", "this is neither a folder nor the id"),
        (f"{first.folder}:trial-0009", "has no 'trial-0009'; it has trial-0000"),
        ("0" * 32, "has no such run of raykd"),
        (str(home), "is not a study's folder"),
    ):
        with pytest.raises(StudyError, match=words):
            SearchRun(study, start_from=[run_name]).run(LocalExecutor())
    nothing = opened(
        *placed,
        "student.model={name: mlp, width: {int: [100, 120]}}",
        "knowledge=[{loss: {name: nkd}, weight: {uniform: [1, 2]}}]",
        text=OTHER,
    )
    with pytest.raises(StudyError, match=r"no value of .* fits this study: .*it is outside 100"):
        SearchRun(nothing, start_from=[str(first.folder)]).run(LocalExecutor())
    assert sorted((home / "studies").iterdir()) == before


def test_warm_start_precedes_samplers_draws(tmp_path: Path) -> None:
    """With half of the values open, and one trial that does not fit."""
    world = World(opened("search.trials=4", "search.replicates=0"), tmp_path)
    params = {"student.model.depth": 2, "student.model.width": 24}
    enqueue_start_points(
        world.drawn(world.study.settings),
        [
            StartPoint("a:trial-0003", params, ()),
            StartPoint("b:trial-0000", {}, ("b is left out: no",)),
        ],
        world.journal.publish,
    )
    explorer = explore(world)
    first, *_ = explorer.records.of("trial")
    assert first.job.study["student"]["model"] == {"name": "mlp", "depth": 2, "width": 24}
    assert len(explorer.records.of("trial")) == 4
    (note,) = [event.tags for event in world.journal.of(Note) if "start_from" in event.tags]
    assert note == {
        "start_from": "a:trial-0003, b:trial-0000",
        "start_left_out": "b is left out: no",
    }


def test_infeasible_start_point_is_skipped(first: StudyResult, placed: tuple[str, ...]) -> None:
    narrow = opened(*placed, "search.constraints={params: {max: 100}}", text=OTHER.replace(
        "width: {int: [2, 20]}", "width: {int: [1, 64]}"))  # fmt: skip
    with pytest.raises(StudyError, match=r"no value of .* fits this study: .* is left out: params"):
        start_points(narrow, TASK, [str(first.folder)])


def test_resumed_search_rejects_another_warm_start(tmp_path: Path) -> None:
    words = ["search", "--resume", str(tmp_path), "--start-from", "elsewhere"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "--start-from cannot be used with --resume" in " ".join(result.output.split())


# Prior


def test_prior_is_near_the_better_half(home: Path, placed: tuple[str, ...]) -> None:
    """Folder and MLflow give the same points; each has values of one better trial only."""
    wide = "student.model.width={int: [4, 400], step: 4}"
    earlier = searched(opened("search.trials=6", "search.sampler=random", wide, *LONE[1:], *placed))
    study = opened(wide, *placed)
    points = prior_points(study, TASK, [str(earlier.folder)], 6)
    assert len(points) == 6
    records = earlier.records.of("trial")
    losses = pareto.losses([record.metrics for record in records], earlier.objectives)
    ranks = dict(zip((record.id for record in records), pareto.ranks(losses), strict=True))
    limit = sorted(ranks.values())[2]
    shares: set[float] = set()
    for point in points:
        trial = point.name.removesuffix(IN_PART).rpartition(":")[2]
        assert ranks[trial] <= limit, "of the better three"
        values = transfer_values(study.bind(TASK).space, earlier.records[trial].job.study).params
        assert point.params.items() <= values.items()
        shares.add(len(point.params) / len(values))
    assert min(shares) < 1, "some values are left to the sampler"
    stored = find_run(f"sqlite:///{home}/mlflow.db", earlier.study_id)
    assert stored is not None
    same = prior_points(study, TASK, [stored.run_id], 6)
    assert [point.params for point in same] == [point.params for point in points]


def test_single_trial_has_no_prior(first: StudyResult, study: OpenStudy) -> None:
    assert prior_points(study, TASK, [f"{first.folder}:trial-0000"], 4) == []


def test_prior_replaces_half_of_the_random_trials(
    first: StudyResult, placed: tuple[str, ...]
) -> None:
    """Samplers that do not learn begin with the finalists alone."""
    for sampler, expected in {"tpe": 2, "random": 0}.items():
        study = opened(*LONE, *placed, f"search.sampler={sampler}", "search.trials=6", text=SMALL)
        result = SearchRun(study, start_from=[str(first.folder)]).run(LocalExecutor())
        marks = [str(t.user_attrs.get("raykd.start", "")) for t in trials_of(result, study)]
        assert sum(mark.endswith(IN_PART) for mark in marks) == expected
