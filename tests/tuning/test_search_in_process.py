"""Search with real trainings in this process, on digits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from helpers.search_cases import (
    InProcessTune,
    RecordingBus,
    World,
    epochs_of,
    next_job,
    opened,
    roles,
    searching,
)
from raykd.data import Dataset
from raykd.runtime.jobs import Report
from raykd.tracking.events import Note
from raykd.training.stored_networks import find_damage, raw_samples
from raykd.tuning.records import Records
from raykd.tuning.search_planner import SearchPlanner

CLOCKS = ("epoch_seconds", "images_per_second")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return opened().settings.data.load()


def tiny() -> Any:
    return searching(opened(), trials=3, finalists=1, replicates=1)


def results_of(recorded: RecordingBus) -> dict[str, Any]:
    """Epochs and end of every training, without times."""
    records = Records.from_events(recorded.events).of("teacher", "trial", "replicate", "alone")
    return {r.id: (r.status, [untimed(e) for e in r.epochs], untimed(r.metrics)) for r in records}


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, data: Dataset
) -> tuple[World, SearchPlanner]:
    world = World(tiny(), tmp_path_factory.mktemp("finished"))
    explorer = world.explorer()
    InProcessTune(world, explorer, data).run()
    return world, explorer


def test_whole_search(finished: tuple[World, SearchPlanner]) -> None:
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


def test_saved_student_has_reported_metrics(
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


def test_equal_seeds_give_equal_searches(
    finished: tuple[World, SearchPlanner], data: Dataset, tmp_path: Path
) -> None:
    second = World(tiny(), tmp_path)
    InProcessTune(second, second.explorer(), data).run()
    assert results_of(second.journal) == results_of(finished[0].journal)


class Killed(BaseException):
    pass


def test_killed_search_resumes_to_equal_results(
    finished: tuple[World, SearchPlanner], data: Dataset, tmp_path: Path
) -> None:
    """Killed in the teacher, in a trial, and in the baseline."""
    world = World(tiny(), tmp_path)
    for record_id in ("teacher-0", "trial-0001", "/alone-1"):
        tune = InProcessTune(world, world.explorer(), data)
        train = tune._results

        def dying(job: Any, train: Any = train, record_id: str = record_id) -> Iterator[Any]:
            for result in train(job):
                if job.id.endswith(record_id) and result.epoch == 2:
                    raise Killed  # the epoch was trained and saved, but not reported
                yield result

        tune._results = dying
        with pytest.raises(Killed):
            tune.run()
    InProcessTune(world, world.explorer(), data).run()
    assert results_of(world.journal) == results_of(finished[0].journal)
    assert set(map(tuple, epochs_of(world.journal.events).values())) == {(1, 2), (1, 2, 3)}


def same_weights(ours: bytes | None, theirs: bytes) -> bool:
    our_tensors, their_tensors = safetensors.torch.load(ours or b""), safetensors.torch.load(theirs)
    return all(
        torch.equal(our_tensors[name], their_tensors[name])
        for name in {*our_tensors, *their_tensors}
    )


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "garbage", "other"])
def test_damaged_teacher_is_trained_again_before_first_trial(
    kind: str, finished: tuple[World, SearchPlanner], data: Dataset, tmp_path: Path
) -> None:
    """Of another study, or of one that is resumed: no trial learns from a damaged network."""
    world = World(tiny(), tmp_path)
    reference, _ = finished
    (record,) = Records.from_events(reference.journal.events).of("teacher")
    file = str(record.job.network_file)
    for name in (file, f"{file}.sha256"):
        world.storage.write(name, reference.storage.read(name) or b"")
    content = world.storage.read(file) or b""
    flipped = bytearray(content)
    flipped[-9] ^= 0x40
    other = safetensors.torch.save({"weight": torch.zeros(2)})
    damaged = {
        "flipped": bytes(flipped),
        "cut": content[:-100],
        "empty": b"",
        "garbage": b"x" * len(content),
        "other": other,
    }
    world.storage.write(file, damaged[kind])
    explorer = world.explorer()
    InProcessTune(world, explorer, data).run()
    assert explorer.finished and results_of(world.journal) == results_of(reference.journal)
    assert same_weights(world.storage.read(file), content) and not find_damage(world.storage, file)
    (note,) = [n for n in world.journal.of(Note) if "warning_teacher" in n.tags]
    assert file in note.tags["warning_teacher"] and "again" in note.tags["warning_teacher"]


def test_resume_detects_damaged_teacher(data: Dataset, tmp_path: Path) -> None:
    world = World(tiny(), tmp_path)
    explorer = world.explorer()
    seated = InProcessTune(world, explorer, data)
    for outcome in seated.worker.outcomes(teacher := next_job(explorer)):
        assert isinstance(outcome, Report)
        explorer.report(teacher.id, outcome)
    content = world.storage.read(teacher.keep) or b""
    world.storage.write(teacher.keep, content[:-1] + bytes([content[-1] ^ 1]))
    explorer = world.explorer()
    retry = next_job(explorer)
    assert (retry.id, retry.role, retry.keep) == ("teacher-1", "teacher", teacher.keep)
    for outcome in seated.worker.outcomes(retry):
        assert isinstance(outcome, Report)
        explorer.report(retry.id, outcome)
    assert next_job(explorer).role == "trial"
    assert same_weights(world.storage.read(teacher.keep), content)


def test_diverging_trial_fails_alone(data: Dataset, tmp_path: Path) -> None:
    study = searching(
        opened("train.optimizer.lr={choice: [0.05, 1e12]}"),
        trials=6, finalists=1, replicates=1,
    )  # fmt: skip
    world = World(study, tmp_path)
    explorer = world.explorer()
    InProcessTune(world, explorer, data).run()
    trials = explorer.records.of("trial")
    failed = [r for r in trials if r.status == "failed"]
    assert failed and len(trials) == 6
    for record in trials:
        wild = record.job.params["train.optimizer.lr"] == 1e12
        assert (record.status == "failed") is wild
        assert not wild or "diverged in epoch 1" in record.reason
    assert explorer.finalists[0].job.params["train.optimizer.lr"] == 0.05
    assert {r.status for r in explorer.records.of("replicate", "alone")} == {"finished"}
