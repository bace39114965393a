"""The search with real trainings, in this process: an explorer, a seat, digits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.search_cases import FakeTune, RecordingBus, World, epochs_of, opened, roles, searching
from raykd.data import Dataset, Placement
from raykd.runtime.worker import Worker, WorkerContext
from raykd.training.stored_networks import raw_samples
from raykd.tuning.records import Records
from raykd.tuning.search_planner import SearchPlanner

CLOCKS = ("epoch_seconds", "images_per_second")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return opened().settings.data.load()


def tiny() -> Any:
    return searching(opened(), trials=3, finalists=1, replicates=1)


class Seated(FakeTune):
    """A Tune whose one slot trains in this process."""

    def __init__(self, world: World, explorer: SearchPlanner, data: Dataset) -> None:
        super().__init__(world, explorer)
        self.worker = Worker(WorkerContext(world.storage, data, Placement()))

    def _results(self, job: Any) -> Iterator[Any]:
        yield from self.worker.outcomes(job)


def found(told: RecordingBus) -> dict[str, Any]:
    """Every training's epochs and end, but for how long they took."""
    records = Records.from_events(told.events).of("teacher", "trial", "replicate", "alone")
    return {r.id: (r.status, [untimed(e) for e in r.epochs], untimed(r.metrics)) for r in records}


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, data: Dataset
) -> tuple[World, SearchPlanner]:
    world = World(tiny(), tmp_path_factory.mktemp("finished"))
    explorer = world.explorer()
    Seated(world, explorer, data).run()
    return world, explorer


def test_a_whole_search(finished: tuple[World, SearchPlanner]) -> None:
    world, explorer = finished
    assert roles(world.journal) == ["teacher", *["trial"] * 3, "replicate", "alone"]
    assert {r.status for r in explorer.records.of("teacher", "trial", "replicate")} == {"finished"}
    assert set(map(tuple, epochs_of(world.journal.events).values())) == {(1, 2), (1, 2, 3)}
    teacher = explorer.records["teacher-0"]
    assert teacher.metrics["test_accuracy"] > 0.15, "it has learnt something"
    for trial in explorer.records.of("trial"):
        assert 0 <= trial.metrics["val_accuracy"] <= 1
        assert any(name.startswith("term_") for name in trial.metrics)
    [alone] = explorer.records.of("alone")
    assert not any(name.startswith("term_k") for name in alone.metrics)
    assert "test_accuracy" in alone.metrics


def test_the_kept_student_reaches_what_was_reported(
    finished: tuple[World, SearchPlanner], data: Dataset
) -> None:
    world, explorer = finished
    [replicate] = explorer.records.of("replicate")
    assert replicate.job.network_file is not None
    content = world.storage.read(replicate.job.network_file)
    assert content is not None
    student = torch.load(io.BytesIO(content), weights_only=False)
    raw = raw_samples(data, torch.arange(len(data.test)))
    hits = (student(raw).argmax(1) == data.test.targets).double().mean().item()
    assert hits == pytest.approx(replicate.metrics["test_accuracy"], abs=1e-12)


def test_two_searches_with_the_same_seed_are_the_same(
    finished: tuple[World, SearchPlanner], data: Dataset, tmp_path: Path
) -> None:
    again = World(tiny(), tmp_path)
    Seated(again, again.explorer(), data).run()
    assert found(again.journal) == found(finished[0].journal)


class Killed(BaseException):
    pass


def test_a_search_that_was_killed_comes_to_the_same(
    finished: tuple[World, SearchPlanner], data: Dataset, tmp_path: Path
) -> None:
    """Killed in the teacher, in a trial, and in the null arm; each time in a fresh process."""
    world = World(tiny(), tmp_path)
    for record_id in ("teacher-0", "trial-0001", "/alone-1"):
        tune = Seated(world, world.explorer(), data)
        train = tune._results

        def dying(job: Any, train: Any = train, record_id: str = record_id) -> Iterator[Any]:
            for result in train(job):
                if job.id.endswith(record_id) and result.epoch == 2:
                    raise Killed  # the epoch was trained and saved, but not reported
                yield result

        tune._results = dying
        with pytest.raises(Killed):
            tune.run()
    Seated(world, world.explorer(), data).run()
    assert found(world.journal) == found(finished[0].journal)
    assert set(map(tuple, epochs_of(world.journal.events).values())) == {(1, 2), (1, 2, 3)}


def test_a_trial_that_diverges_fails_alone(data: Dataset, tmp_path: Path) -> None:
    study = searching(
        opened("train.optimizer.lr={choice: [0.05, 1e12]}"),
        trials=6, finalists=1, replicates=1,
    )  # fmt: skip
    world = World(study, tmp_path)
    explorer = world.explorer()
    Seated(world, explorer, data).run()
    trials = explorer.records.of("trial")
    failed = [r for r in trials if r.status == "failed"]
    assert failed and len(trials) == 6
    for record in trials:
        wild = record.job.params["train.optimizer.lr"] == 1e12
        assert (record.status == "failed") is wild
        assert not wild or "diverged in epoch 1" in record.reason
    assert explorer.finalists[0].job.params["train.optimizer.lr"] == 0.05
    assert {r.status for r in explorer.records.of("replicate", "alone")} == {"finished"}
