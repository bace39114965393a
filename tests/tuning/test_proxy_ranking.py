"""A screen in a search: the best go first, the rest is the sampler's, and it is done once."""

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
    Candidate,
    best_of_bins,
    candidates,
    screen,
    training_batch,
)
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.search_run import SearchRun
from raykd.tuning.single_run import distill

SCREENED = (
    SMALL.replace("sampler: random", "sampler: random\n  proxy: {name: naswot, keep: 3}")
    .replace("trials: 4", "trials: 5")
    .replace(", params: min", "")
)
"""Six students: 2 depths x 3 widths."""

DATA = opened().settings.data.load()


def screened_world(root: Path, *overrides: str) -> World:
    return World(opened(*overrides, text=SCREENED), root)


def rank(world: World, slots: int = 1) -> optuna.Study:
    """Proxy as the driver does, before an explorer is made."""
    drawn = world.drawn(world.study.settings, slots)
    search = world.study.settings.search
    screen(world.study, TASK, DATA, drawn, search, world.journal.publish)
    return drawn


def models_of(explorer: SearchPlanner) -> list[Any]:
    return [read_study(r.job.study).student.model for r in explorer.records.of("trial")]


def metrics_of(world: World, record_id: str) -> dict[str, float]:
    [event] = world.journal.of(RunStarted, id=record_id)
    return event.assignment["metrics"]


def by_score(world: World) -> list[Any]:
    """All students of the space, the best first, scored anew."""
    settings = world.study.settings
    inputs, targets = training_batch(DATA, 64, settings.seed)
    score = Naswot().scorer(ProxyContext(TASK, inputs, targets, None, settings.seed))
    students = [Mlp(depth=depth, width=width) for depth in (1, 2) for width in (8, 16, 24)]
    return sorted(students, key=score, reverse=True)


# What goes first


def test_the_best_are_the_first_trials(tmp_path: Path) -> None:
    world = screened_world(tmp_path)
    rank(world)
    explorer = explore(world)
    assert explorer.finished and not explorer.fatal
    best = by_score(world)[:3]
    assert models_of(explorer)[:3] == best
    assert len(models_of(explorer)) == 5, "the sampler goes on"


def test_trials_and_journal_know_the_scores(tmp_path: Path) -> None:
    world = screened_world(tmp_path)
    rank(world)
    explore(world)
    [told] = world.journal.of(ArchitecturesRanked)
    assert told.name == "naswot" and told.candidates == 6
    assert told.unranked == 1, "eight units cannot tell 64 samples apart"
    assert told.seconds > 0
    scores = [one["score"] for one in told.kept]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert set(told.kept[0]["params"]) == {"student.model.depth", "student.model.width"}
    found = [metrics_of(world, f"trial-{n:04d}").get("screen_score") for n in range(5)]
    assert found == [*scores, None, None]
    ended = world.journal.of(RunEnded, id="trial-0000")[0]
    assert ended.metrics["screen_score"] == scores[0]
    [note] = world.journal.of(Note, tags={"screen": "naswot"})
    assert note.metrics["screen_candidates"] == 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_what_is_no_architecture_is_the_samplers(sampler: str, tmp_path: Path) -> None:
    text = SCREENED.replace("lr: 0.05}}\nsearch", "lr: {loguniform: [0.01, 0.1]}}}\nsearch")
    world = World(opened(f"search.sampler={sampler}", "search.trials=8", text=text), tmp_path)
    drawn = rank(world)
    explorer = explore(world)
    assert models_of(explorer)[:3] == by_score(world)[:3]
    first = [trial for trial in drawn.get_trials() if MARK in trial.user_attrs]
    assert [trial.user_attrs[MARK] for trial in first] == [1, 2, 3]
    rates = {trial.params["train.optimizer.lr"] for trial in first}
    assert len(rates) == 3, "drawn anew for each"
    assert {trial.state for trial in first} == {TrialState.COMPLETE}


def test_the_same_seed_ranks_alike_and_another_looks_at_other_samples(tmp_path: Path) -> None:
    worlds = [
        screened_world(tmp_path / name, f"seed={seed}")
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    first, same, other = (rank(world).user_attrs[MARK] for world in worlds)
    assert first == same
    assert [one["score"] for one in first] != [one["score"] for one in other]


def test_without_a_screen_nothing_is_ranked(tmp_path: Path) -> None:
    world = World(opened(), tmp_path)
    assert rank(world).get_trials() == []
    assert world.journal.events == []


def test_candidates_are_feasible_and_distinct() -> None:
    study = opened("search.constraints={params: {max: 1000}}", text=SCREENED)
    how = study.settings.search.proxy
    assert isinstance(how, RankingProxy)
    found = candidates(study, TASK, how, study.settings.search)
    assert 0 < len(found) < 6
    assert all(profile_model(one.model, TASK).params <= 1000 for one in found)
    assert len({one.model for one in found}) == len(found)
    for one in found:
        drawn = (
            study.space.part("student").draw(FixedTrial(dict(one.params))).data["student"]["model"]
        )
        assert Mlp(depth=drawn["depth"], width=drawn["width"]) == one.model


# Bins of like cost


def ranked(*pairs: tuple[int, float]) -> list[Candidate]:
    return [Candidate({}, Mlp(depth=1, width=cost or 1), cost, score) for cost, score in pairs]


def test_each_bin_gives_its_best_then_its_second() -> None:
    found = ranked((1, 0.1), (2, 0.2), (3, 0.0), (10, 5.0), (11, 7.0), (12, 6.0))
    best = best_of_bins(found, keep=4, bins=2)
    assert [(one.cost, one.score) for one in best] == [(2, 0.2), (11, 7.0), (1, 0.1), (12, 6.0)]


def test_without_a_cost_all_are_compared() -> None:
    found = ranked((0, 1.0), (0, 3.0), (0, float("-inf")), (0, 2.0), (0, float("nan")))
    assert [one.score for one in best_of_bins(found, keep=4, bins=2)] == [3.0, 2.0, 1.0]


def test_no_more_bins_than_are_kept() -> None:
    found = ranked((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0))
    assert [one.cost for one in best_of_bins(found, keep=1, bins=5)] == [4]


@pytest.mark.parametrize(
    ("objectives", "per_cost", "parted"),
    [
        ("{val_accuracy: max, params: min}", "auto", True),
        ("{val_accuracy: max, val_loss: min}", "auto", False),
        ("{val_accuracy: max, val_loss: min}", "macs", True),
        ("{val_accuracy: max, params: min}", "none", False),
    ],
)
def test_auto_parts_by_the_cost_that_is_an_objective(
    objectives: str, per_cost: str, parted: bool
) -> None:
    study = opened(
        f"search.objectives={objectives}", f"search.proxy.per_cost={per_cost}", text=SCREENED
    )
    how = study.settings.search.proxy
    assert isinstance(how, RankingProxy)
    found = candidates(study, TASK, how, study.settings.search)
    assert (len({one.cost for one in found}) > 1) is parted


def test_students_of_all_sizes_go_first_where_size_is_an_objective(tmp_path: Path) -> None:
    text = SCREENED.replace("{val_accuracy: max}", "{val_accuracy: max, params: min}")
    world = World(opened("search.proxy.bins=3", text=text), tmp_path)
    kept = rank(world).user_attrs[MARK]
    widths = [one["params"]["student.model.width"] for one in kept]
    sizes = [
        profile_model(Mlp(depth=one["params"]["student.model.depth"], width=width), TASK).params
        for one, width in zip(kept, widths, strict=True)
    ]
    assert sizes == sorted(sizes) and len(set(widths)) == 3


# Once


def test_a_resumed_search_does_not_rank_again(
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

    def again(*args: Any) -> Any:
        raise AssertionError("ranked again")

    monkeypatch.setattr(Naswot, "scorer", again)
    rank(world)
    resumed = explore(world)
    assert models_of(resumed)[:3] == by_score_of_journal(world)
    assert len(models_of(resumed)) == 5
    assert len(world.journal.of(ArchitecturesRanked)) == 1


def by_score_of_journal(world: World) -> list[Any]:
    [told] = world.journal.of(ArchitecturesRanked)
    params = (one["params"] for one in told.kept)
    return [Mlp(depth=p["student.model.depth"], width=p["student.model.width"]) for p in params]


def test_what_was_not_handed_over_before_a_crash_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_an_architecture_is_tried_again_where_the_rest_of_a_draw_is_infeasible(
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


def test_an_architecture_that_never_fits_is_given_up(
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


def test_a_network_it_cannot_look_at_stops_the_study_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Naswot, about: ProxyContext) -> Any:
        raise ValueError("it has no rectifier")

    monkeypatch.setattr(Naswot, "scorer", broken)
    with pytest.raises(StudyError, match=r"search\.proxy: it has no rectifier"):
        rank(screened_world(tmp_path))


# For real


def test_a_whole_search(tmp_path: Path) -> None:
    """In this process, with the real data, tracking and Optuna's own database."""
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
    [told] = [event for event in journal if isinstance(event, ArchitecturesRanked)]
    largest = Mlp(depth=2, width=24)
    assert told.kept[0]["score"] == profile_model(largest, TASK).params
    trials = [event for event in journal if isinstance(event, RunStarted) and event.role == "trial"]
    assert [run.assignment["metrics"].get("screen_score") for run in trials] == [
        *(one["score"] for one in told.kept),
        None,
    ]
    assert read_study(trials[0].assignment["study"]).student.model == largest


def test_one_concrete_training_is_not_screened(tmp_path: Path) -> None:
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


def test_the_null_screen_prefers_the_largest(tmp_path: Path) -> None:
    world = screened_world(tmp_path, "search.proxy={name: params, keep: 2}")
    assert isinstance(world.study.settings.search.proxy, Params)
    kept = [one["params"] for one in rank(world).user_attrs[MARK]]
    widths = [(one["student.model.depth"], one["student.model.width"]) for one in kept]
    by_size = sorted(
        ((depth, width) for depth in (1, 2) for width in (8, 16, 24)),
        key=lambda one: -profile_model(Mlp(depth=one[0], width=one[1]), TASK).params,
    )
    assert widths == by_size[:2]
