"""Searches whose trials pause and are promoted, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from helpers.search_cases import POINTS, RecordingBus, World, explore, opened, searching
from raykd.runtime.jobs import JournalJob
from raykd.study.schedulers import Asha, Hyperband, Scheduler
from raykd.tracking.events import (
    EpochFinished,
    Event,
    Note,
    RunEnded,
    RunPaused,
    RunPromoted,
    StudyExtended,
)
from raykd.tracking.journal import events
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.search_run import SearchRun

WIDE = "student.model.width={int: [4, 400], step: 4}"


def curve(job: JournalJob, epoch: int) -> dict[str, float]:
    """Accuracy that grows with the width of the student."""
    width = job.study["student"]["model"].get("width", 1)
    accuracy = (0.5 + width / 1000) * (1 - 0.3 / max(epoch, 1))
    values = {"train_loss": 1.0, "val_accuracy": accuracy}
    return values | ({"test_accuracy": accuracy} if job.test and epoch >= job.epochs else {})


def make_world(root: Path, scheduler: Scheduler | None = None, **search: Any) -> World:
    world = World(opened("train.epochs=9", WIDE), root)
    settings = {"trials": 12, "replicates": 0, "scheduler": scheduler or Asha(), **search}
    world.study = searching(world.study, **settings)
    return world


def epochs_by_trial(explorer: SearchPlanner) -> dict[str, int]:
    return {record.id: len(record.epochs) for record in explorer.records.of("trial")}


def tagged(world: World, tag: str) -> list[str]:
    """Return the texts of the study's notes with a tag."""
    return [note.tags[tag] for note in world.journal.of(Note) if tag in note.tags]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("scheduler", [Asha(), Hyperband()])
def test_every_epoch_is_trained_once(tmp_path: Path, scheduler: Scheduler, slots: int) -> None:
    world = make_world(tmp_path, scheduler)
    explorer = explore(world, curve, slots=slots)
    assert explorer.finished and not explorer.fatal
    assert len(world.trained) == len(set(world.trained)), "a promoted trial continues"
    assert world.journal.of(RunPaused) and world.journal.of(RunPromoted)
    trials = explorer.records.of("trial")
    assert {record.status for record in trials} == {"finished", "stopped"}
    assert explorer.finalists
    assert not world.storage.files("small-20260101-120000/states"), "no state is left"
    for event in world.journal.of(RunPromoted):
        assert event.epoch in (1, 3)


def test_optuna_gets_results_of_promoted_trials(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    explorer = explore(world, curve)
    states = {
        trial.user_attrs["raykd.id"]: trial.state
        for trial in explorer.optuna_study.get_trials(deepcopy=False)
        if "raykd.id" in trial.user_attrs
    }
    expected = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    for record in explorer.records.of("trial"):
        assert states[record.id] == expected[record.status]


def test_point_of_a_paused_trial_is_not_trained_again(tmp_path: Path) -> None:
    world = World(opened("train.epochs=9"), tmp_path)
    world.study = searching(world.study, trials=40, replicates=0, scheduler=Asha())
    explorer = explore(world, curve)
    points = [frozenset(r.job.params.items()) for r in explorer.records.of("trial")]
    assert world.journal.of(RunPaused)
    assert len(points) == len(set(points)) <= POINTS


def test_front_is_as_without_early_stopping(tmp_path: Path) -> None:
    """With curves that do not cross and a share that suffices, early stopping makes no hole."""
    halved = explore(make_world(tmp_path / "a", finish=10.0), curve)
    whole = explore(make_world(tmp_path / "b", scheduler=opened().settings.search.scheduler), curve)
    objectives = halved.search.objectives

    def front(explorer: SearchPlanner) -> list[str]:
        return [record.id for record in explorer.records.front(objectives)]

    assert front(halved) == front(whole)
    assert len(front(halved)) > 1


def test_share_limits_epochs_of_front(tmp_path: Path) -> None:
    spent = {}
    for share in (0.0, 0.2, 10.0):
        world = make_world(tmp_path / str(share), finish=share)
        explorer = explore(world, curve)
        finishing = {e.id: e.epoch for e in world.journal.of(RunPromoted) if e.finishing}
        epochs = epochs_by_trial(explorer)
        spent[share] = sum(epochs[trial] - epoch for trial, epoch in finishing.items())
        before = sum(epochs.values()) - spent[share]
        assert any(r.is_complete(explorer.search.objectives) for r in explorer.records.of("trial"))
        if share == 0.2:
            assert spent[share] <= share * before
        notes = [
            n.tags["front_finished"] for n in world.journal.of(Note) if "front_finished" in n.tags
        ]
        assert len(notes) <= 1
        if finishing:
            assert all(trial in notes[0] for trial in finishing if epochs[trial] == 9)
    assert spent[0.0] <= spent[0.2] <= spent[10.0]


def test_some_trial_runs_whole_even_without_share(tmp_path: Path) -> None:
    world = make_world(tmp_path, trials=2, finish=0.0, objectives={"val_accuracy": "max"})
    explorer = explore(world, curve)
    assert sorted(epochs_by_trial(explorer).values()) == [1, 9]
    assert len(explorer.finalists) == 1


@pytest.mark.parametrize("limit", [{"max_paused": 2}, {"paused_gb": 300e-9}])
def test_worst_paused_trials_are_stopped_beyond_limits(
    tmp_path: Path, limit: Mapping[str, Any]
) -> None:
    world = make_world(tmp_path, Asha(**limit))
    most = 0

    class Watching(RecordingBus):
        def publish(self, event: Event) -> Event:
            nonlocal most
            published = world.journal.publish(event)
            waiting = {e.id for e in world.journal.of(RunPaused)}
            waiting -= {e.id for e in world.journal.of(RunEnded)}
            most = max(most, len(waiting) if isinstance(event, EpochFinished) else 0)
            return published

    explorer = explore(world, curve, journal=Watching())
    notes = tagged(world, "warning_paused")
    assert len(notes) == 1 and "search.scheduler.max_paused" in notes[0]
    assert explorer.finished and explorer.finalists
    if "max_paused" in limit:
        assert most <= 2 + len(world.journal.of(RunPromoted))


class Crash(Exception):
    """The driver dies."""


class Fragile(RecordingBus):
    """Journal whose driver dies after a number of events."""

    def __init__(self, journal: RecordingBus, end: int) -> None:
        self.journal, self.end = journal, end

    def publish(self, event: Event) -> Event:
        published = self.journal.publish(event)
        if len(self.journal.events) >= self.end:
            raise Crash
        return published


@pytest.mark.parametrize("scheduler", [Asha(), Hyperband()])
def test_interrupted_search_keeps_its_paused_trials(tmp_path: Path, scheduler: Scheduler) -> None:
    undisturbed = make_world(
        tmp_path / "whole", scheduler, sampler=opened().settings.search.sampler
    )
    explorer = explore(undisturbed, curve)
    expected = epochs_by_trial(explorer)
    for end in range(4, len(undisturbed.journal.events), 5):
        world = make_world(tmp_path / str(end), scheduler)
        with pytest.raises(Crash):
            explore(world, curve, journal=Fragile(world.journal, end))
        resumed = explore(world, curve)
        assert resumed.finished
        assert len(world.trained) == len(set(world.trained)), "nothing is trained twice"
        epochs = epochs_by_trial(resumed)
        assert len(epochs) == len(expected)
        assert set(epochs.values()) <= {1, 3, 9} and 9 in epochs.values()
        assert abs(sum(epochs.values()) - sum(expected.values())) <= 24


def weaker_later(job: JournalJob, epoch: int) -> dict[str, float]:
    """Accuracy that falls with the number of the trial."""
    number = int(job.id.partition("-")[2]) if job.role == "trial" else 0
    return {"train_loss": 1.0, "val_accuracy": (0.9 - number / 100) * (1 - 0.3 / max(epoch, 1))}


def extended_world(tmp_path: Path) -> tuple[World, dict[str, int]]:
    """Return a finished search of 4 trials, extended to 16, and the epochs of those stopped."""
    world = make_world(tmp_path, trials=4, objectives={"val_accuracy": "max"})
    first = explore(world, weaker_later)
    stopped = [r for r in first.records.of("trial") if r.status == "stopped"]
    world.journal.publish(StudyExtended({"search.trials": "4 -> 16"}, draws=True, space=False))
    world.study = searching(world.study, trials=16)
    return world, {record.id: len(record.epochs) for record in stopped}


def test_stopped_trials_of_extended_search_can_be_promoted(tmp_path: Path) -> None:
    world, stopped = extended_world(tmp_path)
    end = len(world.journal.events)

    extended = explore(world, weaker_later)

    promoted = {event.id for event in world.journal.events[end:] if isinstance(event, RunPromoted)}
    reopened = promoted & {*stopped}
    assert reopened, "among more trials, one that was stopped is among the best at its rung"
    assert len(extended.records.of("trial")) == 16
    assert {r.status for r in extended.records.of("trial")} == {"finished", "stopped"}
    assert all(epochs_by_trial(extended)[trial] > stopped[trial] for trial in reopened)
    twice = {trial for trial, epoch in world.trained if world.trained.count((trial, epoch)) > 1}
    assert twice == reopened, "only their states were removed"
    assert not world.storage.files("small-20260101-120000/states"), "no state is left"
    # the sampler has each result once
    for planner in (extended, world.explorer()):
        trials = planner.optuna_study.get_trials(deepcopy=False)
        complete = [
            t.user_attrs["raykd.id"]
            for t in trials
            if t.state == TrialState.COMPLETE and "raykd.id" in t.user_attrs
        ]
        finished = [r.id for r in planner.records.of("trial") if r.status == "finished"]
        assert sorted(complete) == sorted(finished)


def test_extension_interrupted_after_promotion_is_resumed(tmp_path: Path) -> None:
    world, stopped = extended_world(tmp_path)
    promoted: list[str] = []

    class Interrupting(RecordingBus):
        def publish(self, event: Event) -> Event:
            published = world.journal.publish(event)
            if isinstance(event, RunPromoted) and event.id in stopped:
                promoted.append(event.id)
                raise Crash
            return published

    with pytest.raises(Crash):
        explore(world, weaker_later, journal=Interrupting())
    resumed = explore(world, weaker_later)
    assert resumed.finished and len(resumed.records.of("trial")) == 16
    [trial] = promoted
    assert len(resumed.records[trial].epochs) > stopped[trial]


def test_trials_pause_without_ray(tmp_path: Path) -> None:
    """A search in this process decides as one slot does, and trains each epoch once."""
    study = opened(
        "train.epochs=4", "search.replicates=0", "search.trials=4", "search.scheduler=asha",
        f"cluster.storage={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    result = SearchRun(study).run(LocalExecutor())
    trials = result.records.of("trial")
    history = list(events(result.folder / "journal.jsonl"))
    assert any(isinstance(event, RunPaused) for event in history)
    for record in trials:
        epochs = [e.epoch for e in history if isinstance(e, EpochFinished) and e.id == record.id]
        assert epochs == list(range(1, len(epochs) + 1))
    assert {len(record.epochs) for record in trials} >= {1, 4}
