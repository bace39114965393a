"""Proxy ranking in a search: the best students are trained first, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial, TrialState

from helpers.search_cases import SMALL, TASK, FakeTune, World, explore, next_job, opened, tell
from raykd.errors import Infeasible, StudyError
from raykd.models import Mlp, profile_model
from raykd.models.proxies import Naswot, Params, ProxyContext, RankingProxy
from raykd.study.config import read_study
from raykd.study.open_study import BoundStudy
from raykd.tracking.events import ArchitecturesRanked, Note, PhaseStarted, RunEnded, RunStarted
from raykd.tracking.journal import events as read_events
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.proxy_ranking import (
    ATTEMPTS,
    MARK,
    RankedStudent,
    best_of_bins,
    draw_students,
    rank_students,
    training_batch,
)
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.search_run import SearchRun
from raykd.tuning.single_run import distill

SCREENED = (
    SMALL.replace("sampler: random", "sampler: random\n  proxy: {name: naswot, keep: 3, batch: 12}")
    .replace("trials: 4", "trials: 5")
    .replace(", params: min", "")
)
"""Six students: 2 depths x 3 widths."""

DATA = opened().settings.data.load()


def screened_world(root: Path, *overrides: str) -> World:
    return World(opened(*overrides, text=SCREENED), root)


def rank(world: World, slots: int = 1) -> optuna.Study:
    """Rank as the driver does, before a planner is built."""
    drawn = world.drawn(world.study.settings, slots)
    search = world.study.settings.search
    rank_students(world.study, TASK, DATA, drawn, search, world.journal.publish)
    return drawn


def models_of(explorer: SearchPlanner) -> list[Any]:
    return [read_study(r.job.study).student.model for r in explorer.records.of("trial")]


def metrics_of(world: World, record_id: str) -> dict[str, float]:
    [event] = world.journal.of(RunStarted, id=record_id)
    return event.assignment["metrics"]


def by_score(world: World) -> list[Any]:
    """Score all students of the space; the best first."""
    settings = world.study.settings
    inputs, targets = training_batch(DATA, 12, settings.seed)
    score = Naswot(batch=12).scorer(ProxyContext(TASK, inputs, targets, None, settings.seed))
    students = [Mlp(depth=depth, width=width) for depth in (1, 2) for width in (8, 16, 24)]
    return sorted(students, key=score, reverse=True)


# What goes first


def test_best_students_are_first_trials(tmp_path: Path) -> None:
    world = screened_world(tmp_path)
    rank(world)
    explorer = explore(world)
    assert explorer.finished and not explorer.fatal
    best = by_score(world)[:3]
    assert models_of(explorer)[:3] == best
    assert len(models_of(explorer)) == 5, "the sampler goes on"


def test_scores_are_in_trials_and_journal(tmp_path: Path) -> None:
    world = screened_world(tmp_path)
    rank(world)
    explore(world)
    [event] = world.journal.of(ArchitecturesRanked)
    assert event.name == "naswot" and event.candidates == 6
    assert event.unranked == 1, "eight units cannot tell 12 samples apart"
    assert event.seconds > 0
    scores = [entry["score"] for entry in event.ranking]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert set(event.ranking[0]["params"]) == {"student.model.depth", "student.model.width"}
    metrics = [metrics_of(world, f"trial-{n:04d}").get("screen_score") for n in range(5)]
    assert metrics == [*scores, None, None]
    ended = world.journal.of(RunEnded, id="trial-0000")[0]
    assert ended.metrics["screen_score"] == scores[0]
    [note] = world.journal.of(Note, tags={"screen": "naswot"})
    assert note.metrics["screen_candidates"] == 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_other_fields_are_drawn_by_sampler(sampler: str, tmp_path: Path) -> None:
    text = SCREENED.replace("lr: 0.05}}\nsearch", "lr: {loguniform: [0.01, 0.1]}}}\nsearch")
    world = World(opened(f"search.sampler={sampler}", "search.trials=8", text=text), tmp_path)
    drawn = rank(world)
    explorer = explore(world)
    assert models_of(explorer)[:3] == by_score(world)[:3]
    first = [trial for trial in drawn.get_trials() if MARK in trial.user_attrs]
    assert [trial.user_attrs[MARK] for trial in first] == [1, 2, 3]
    rates = {trial.params["train.optimizer.lr"] for trial in first}
    assert len(rates) == 3, "drawn separately for each"
    assert {trial.state for trial in first} == {TrialState.COMPLETE}


def test_ranking_depends_only_on_seed(tmp_path: Path) -> None:
    worlds = [
        screened_world(tmp_path / name, f"seed={seed}")
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    first, same, other = (rank(world).user_attrs[MARK] for world in worlds)
    assert first == same
    assert [entry["score"] for entry in first] != [entry["score"] for entry in other]


def test_nothing_is_ranked_without_proxy(tmp_path: Path) -> None:
    world = World(opened(), tmp_path)
    assert rank(world).get_trials() == []
    assert world.journal.events == []


def test_candidates_are_feasible_and_distinct() -> None:
    study = opened("search.constraints={params: {max: 1000}}", text=SCREENED)
    proxy = study.settings.search.proxy
    assert isinstance(proxy, RankingProxy)
    students = draw_students(study, TASK, proxy, study.settings.search)
    assert 0 < len(students) < 6
    assert all(profile_model(student.model, TASK).params <= 1000 for student in students)
    assert len({student.model for student in students}) == len(students)
    for student in students:
        drawn = (
            study.space.part("student")
            .draw(FixedTrial(dict(student.params)))
            .data["student"]["model"]
        )
        assert Mlp(depth=drawn["depth"], width=drawn["width"]) == student.model


# Bins of like cost


def ranked(*pairs: tuple[int, float]) -> list[RankedStudent]:
    return [RankedStudent({}, Mlp(depth=1, width=cost or 1), cost, score) for cost, score in pairs]


def test_bins_give_their_best_in_turn() -> None:
    students = ranked((1, 0.1), (2, 0.2), (3, 0.0), (10, 5.0), (11, 7.0), (12, 6.0))
    best = best_of_bins(students, keep=4, bins=2)
    assert [(student.cost, student.score) for student in best] == [
        (2, 0.2),
        (11, 7.0),
        (1, 0.1),
        (12, 6.0),
    ]


def test_students_without_cost_are_in_one_bin() -> None:
    students = ranked((0, 1.0), (0, 3.0), (0, float("-inf")), (0, 2.0), (0, float("nan")))
    assert [student.score for student in best_of_bins(students, keep=4, bins=2)] == [3.0, 2.0, 1.0]


def test_at_most_keep_bins() -> None:
    students = ranked((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0))
    assert [student.cost for student in best_of_bins(students, keep=1, bins=5)] == [4]


@pytest.mark.parametrize(
    ("objectives", "per_cost", "parted"),
    [
        ("{val_accuracy: max, params: min}", "auto", True),
        ("{val_accuracy: max, val_loss: min}", "auto", False),
        ("{val_accuracy: max, val_loss: min}", "macs", True),
        ("{val_accuracy: max, params: min}", "none", False),
    ],
)
def test_auto_bins_by_cost_that_is_objective(objectives: str, per_cost: str, parted: bool) -> None:
    study = opened(
        f"search.objectives={objectives}", f"search.proxy.per_cost={per_cost}", text=SCREENED
    )
    proxy = study.settings.search.proxy
    assert isinstance(proxy, RankingProxy)
    students = draw_students(study, TASK, proxy, study.settings.search)
    assert (len({student.cost for student in students}) > 1) is parted


def test_students_of_all_sizes_are_first_if_size_is_objective(tmp_path: Path) -> None:
    text = SCREENED.replace("{val_accuracy: max}", "{val_accuracy: max, params: min}")
    world = World(opened("search.proxy.bins=3", text=text), tmp_path)
    entries = rank(world).user_attrs[MARK]
    widths = [entry["params"]["student.model.width"] for entry in entries]
    sizes = [
        profile_model(Mlp(depth=entry["params"]["student.model.depth"], width=width), TASK).params
        for entry, width in zip(entries, widths, strict=True)
    ]
    assert sizes == sorted(sizes) and len(set(widths)) == 3


# Once


def test_resumed_search_does_not_rank_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = screened_world(tmp_path)
    rank(world)
    explorer = world.explorer()
    FakeTune(world, explorer)
    for _ in range(2):  # the teacher, and one trial that is broken off
        at_work = next_job(explorer)
        assert at_work is not None
        if at_work.role == "teacher":
            world.give_teacher()
            for epoch in (1, 2):
                tell(explorer, at_work, epoch=epoch, done=epoch == 2, val_accuracy=0.5)

    def rank_again(*args: Any) -> Any:
        raise AssertionError("ranked again")

    monkeypatch.setattr(Naswot, "scorer", rank_again)
    rank(world)
    resumed = explore(world)
    assert models_of(resumed)[:3] == by_score_of_journal(world)
    assert len(models_of(resumed)) == 5
    assert len(world.journal.of(ArchitecturesRanked)) == 1


def by_score_of_journal(world: World) -> list[Any]:
    [event] = world.journal.of(ArchitecturesRanked)
    params = (entry["params"] for entry in event.ranking)
    return [Mlp(depth=p["student.model.depth"], width=p["student.model.width"]) for p in params]


def test_ranking_is_enqueued_after_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = screened_world(tmp_path)
    enqueue, times = optuna.Study.enqueue_trial, iter((True, False))

    def breaking(self: optuna.Study, *args: Any, **more: Any) -> None:
        if not next(times):
            raise KeyboardInterrupt
        enqueue(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", breaking)
        with pytest.raises(KeyboardInterrupt):
            rank(world)
    drawn = rank(world)
    assert [trial.user_attrs[MARK] for trial in drawn.get_trials()] == [1, 2, 3]
    rank(world)
    assert len(drawn.get_trials()) == 3


def test_architecture_is_redrawn_if_other_fields_are_infeasible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = screened_world(tmp_path)
    rank(world)
    fit, calls = BoundStudy.fit, iter(range(1000))

    def fitful(self: Any, *args: Any) -> Any:
        if next(calls) < 2:
            raise Infeasible("as it happens")
        return fit(self, *args)

    monkeypatch.setattr(BoundStudy, "fit", fitful)
    explorer = explore(world)
    assert sorted(map(str, models_of(explorer)[:3])) == sorted(map(str, by_score(world)[:3]))


def test_architecture_that_is_never_feasible_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = screened_world(tmp_path)
    drawn = rank(world)
    bad = by_score(world)[0]
    fit = BoundStudy.fit

    def picky(self: Any, *args: Any) -> Any:
        candidate = fit(self, *args)
        if candidate.study.student.model == bad:
            raise Infeasible("never")
        return candidate

    monkeypatch.setattr(BoundStudy, "fit", picky)
    explorer = explore(world)
    assert bad not in models_of(explorer) and len(models_of(explorer)) == 5
    assert sum(trial.user_attrs.get(MARK) == 1 for trial in drawn.get_trials()) == ATTEMPTS


# What it cannot rank


def test_unsupported_network_stops_study_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Naswot, about: ProxyContext) -> Any:
        raise ValueError("it has no rectifier")

    monkeypatch.setattr(Naswot, "scorer", broken)
    with pytest.raises(StudyError, match=r"search\.proxy: it has no rectifier"):
        rank(screened_world(tmp_path))


# For real


def test_whole_search(tmp_path: Path) -> None:
    """In this process, with real data, tracking and Optuna's journal."""
    study = opened(
        f"cluster.storage={tmp_path / 'studies'}",
        f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}",
        "search.trials=3",
        "search.proxy={name: params, keep: 2}",
        "search.replicates=0",
        "train.epochs=1",
        "teacher.train.epochs=1",
        text=SCREENED,
    )
    events: list[Any] = []
    result = SearchRun(study, listeners=[events.append]).run(LocalExecutor())
    assert next(event.phase for event in events if isinstance(event, PhaseStarted)) == "screen"
    journal = read_events(result.folder / "journal.jsonl")
    [ranked_event] = [event for event in journal if isinstance(event, ArchitecturesRanked)]
    largest = Mlp(depth=2, width=24)
    assert ranked_event.ranking[0]["score"] == profile_model(largest, TASK).params
    trials = [event for event in journal if isinstance(event, RunStarted) and event.role == "trial"]
    assert [run.assignment["metrics"].get("screen_score") for run in trials] == [
        *(entry["score"] for entry in ranked_event.ranking),
        None,
    ]
    assert read_study(trials[0].assignment["study"]).student.model == largest


def test_single_training_is_not_ranked(tmp_path: Path) -> None:
    fixed = ("student.model={name: mlp, depth: 1, width: 8}", "knowledge=[{loss: kd}]")
    events: list[Any] = []
    distill(
        opened(
            *fixed,
            "search.proxy={name: params, per_cost: none}",
            f"cluster.storage={tmp_path / 'studies'}",
            f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}",
            "search.replicates=0",
            "train.epochs=1",
            "teacher.train.epochs=1",
        ),
        listeners=[events.append],
    )
    assert not any(isinstance(event, ArchitecturesRanked) for event in events)


def test_parameter_count_prefers_largest(tmp_path: Path) -> None:
    world = screened_world(tmp_path, "search.proxy={name: params, keep: 2}")
    assert isinstance(world.study.settings.search.proxy, Params)
    points = [point["params"] for point in rank(world).user_attrs[MARK]]
    widths = [(point["student.model.depth"], point["student.model.width"]) for point in points]
    by_size = sorted(
        ((depth, width) for depth in (1, 2) for width in (8, 16, 24)),
        key=lambda point: -profile_model(Mlp(depth=point[0], width=point[1]), TASK).params,
    )
    assert widths == by_size[:2]
