"""Records of a study, read from its journal."""

from __future__ import annotations

import gc
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from raykd.runtime.jobs import Role, TrainJob
from raykd.tracking.events import (
    EndStatus,
    EpochFinished,
    Event,
    Note,
    RunEnded,
    RunStarted,
    StudyEnded,
    StudyStarted,
)
from raykd.tracking.journal import Journal, events
from raykd.tuning.records import Records, values_of

OBJECTIVES = {"val_accuracy": "max", "params": "min"}


def run(record_id: str, role: Role = "trial", parent: str | None = None) -> RunStarted:
    job = TrainJob(record_id, role, {}, seed=1, epochs=2, parent=parent)
    return RunStarted(record_id, role, assignment=job.plain())


def epoch(record_id: str, number: int, **metrics: float) -> EpochFinished:
    return EpochFinished(record_id, number, metrics)


def end(record_id: str, status: EndStatus = "finished", **metrics: float) -> RunEnded:
    return RunEnded(record_id, status, metrics=metrics)


def ended(
    record_id: str, accuracy: float, params: float, status: EndStatus = "finished"
) -> list[Event]:
    metrics = {"val_accuracy": accuracy, "params": params}
    return [run(record_id), epoch(record_id, 1, **metrics), end(record_id, status, **metrics)]


def plain(records: Records) -> list[Any]:
    return [
        (r.id, r.role, r.status, r.epochs, r.metrics)
        for r in records.of("teacher", "trial", "replicate", "alone")
    ]


STORY = [
    StudyStarted("x"),
    run("teacher-0", "teacher"),
    epoch("teacher-0", 1, val_accuracy=0.5),
    epoch("teacher-0", 2, val_accuracy=0.6),
    end("teacher-0", val_accuracy=0.6, test_accuracy=0.7),
    run("trial-0000"),
    epoch("trial-0000", 1, val_accuracy=0.4),
    run("trial-0001"),
    end("trial-0001", "failed"),
    Note("trial-0000"),
    run("trial-0000/seed-1", "replicate", "trial-0000"),
    StudyEnded("interrupted"),
]


def test_journal_gives_state_of_every_training() -> None:
    records = Records.from_events(STORY)
    assert records["teacher-0"].status == "finished"
    assert [e["val_accuracy"] for e in records["teacher-0"].epochs] == [0.5, 0.6]
    assert records["teacher-0"].metrics == {"val_accuracy": 0.6, "test_accuracy": 0.7}
    assert [r.id for r in records.running("trial", "replicate")] == [
        "trial-0000",
        "trial-0000/seed-1",
    ]
    assert [r.id for r in records.children("trial-0000", "replicate")] == ["trial-0000/seed-1"]
    assert "trial-0001" in records and "trial-0002" not in records


@pytest.mark.parametrize("twice", range(1, len(STORY)))
def test_repeated_events_change_nothing(twice: int) -> None:
    once = Records.from_events(STORY)
    assert plain(Records.from_events([*STORY[:twice], *STORY])) == plain(once)
    assert plain(Records.from_events([*STORY, STORY[twice]])) == plain(once)


def test_gap_in_epochs_is_not_filled() -> None:
    records = Records.from_events([run("trial-0000"), epoch("trial-0000", 2, val_accuracy=1)])
    assert records["trial-0000"].epochs == []


def test_live_records_equal_records_read_from_journal(tmp_path: Path) -> None:
    live = Records()
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event in [*STORY, *ended("trial-0002", float("nan"), 10.0)]:
            journal.append(event)
            live.apply(event)
    read = Records.from_events(events(tmp_path / "journal.jsonl"))
    assert repr(plain(read)) == repr(plain(live))  # NaN is not equal to itself, its text is
    assert read["trial-0000"].job.plain() == run("trial-0000").assignment


def test_front_and_finalists() -> None:
    records = Records.from_events(
        ended("trial-0000", 0.90, 100)
        + ended("trial-0001", 0.95, 300)
        + ended("trial-0002", 0.85, 200)  # dominated
        + ended("trial-0003", 0.90, 100)  # the same point again
        + ended("trial-0004", 0.70, 50)
        + ended("trial-0005", 0.94, 250)
    )
    assert [r.id for r in records.front(OBJECTIVES)] == [
        "trial-0001",
        "trial-0005",
        "trial-0000",
        "trial-0004",
    ]
    assert [r.id for r in records.choose(OBJECTIVES, 1)] == ["trial-0001"]
    assert [r.id for r in records.choose(OBJECTIVES, 2)] == ["trial-0001", "trial-0004"]
    assert len(records.choose(OBJECTIVES, 9)) == 4
    assert [r.id for r in records.front({"params": "min"})] == ["trial-0004"]


def test_incomplete_trials_are_never_on_front() -> None:
    records = Records.from_events(
        ended("trial-0000", 0.99, 1, "stopped")
        + ended("trial-0001", 0.99, 1, "failed")
        + ended("trial-0002", math.nan, 1)
        + ended("trial-0003", math.inf, 1)
        + ended("trial-0004", 0.1, 100)
        + [run("trial-0005"), epoch("trial-0005", 1, val_accuracy=0.99, params=1)]
        + [run("trial-0006"), end("trial-0006", params=1)]
        + [run("trial-0007", "replicate"), end("trial-0007", val_accuracy=1.0, params=1)]
    )
    assert [r.id for r in records.front(OBJECTIVES)] == ["trial-0004"]
    assert Records().front(OBJECTIVES) == [] == Records().choose(OBJECTIVES, 3)


def test_test_metrics_are_not_used_for_selection() -> None:
    story = [
        *ended("trial-0000", 0.9, 10),
        end("trial-0000", val_accuracy=0.9, params=10, test_accuracy=0.1),
        *ended("trial-0001", 0.8, 10),
        end("trial-0001", val_accuracy=0.8, params=10, test_accuracy=0.99),
    ]
    assert [r.id for r in Records.from_events(story).front(OBJECTIVES)] == ["trial-0000"]


def test_means_use_finished_trainings() -> None:
    records = Records.from_events(
        ended("trial-0000", 0.9, 10) + ended("trial-0001", 0.8, 10, "failed")
    )
    assert values_of(records.of("trial"), "val_accuracy") == [0.9]


def test_records_of_a_journal_are_small(tmp_path: Path) -> None:
    """Equal parts of jobs, and names, are kept once; the values stay those of each job."""
    fixed = {f"section{i}": {f"key{j}": "x" * 40 for j in range(10)} for i in range(10)}
    trials, epochs = 50, 20
    with Journal(tmp_path / "journal.jsonl") as journal:
        for number in range(trials):
            study = {**fixed, "train": {"lr": number / 10}, "same": (1, True)[number % 2]}
            params = {f"train.parameter_{i}": f"value {i}" for i in range(100)}
            params["train.lr"] = str(number / 10)
            job = TrainJob(f"trial-{number}", "trial", study, seed=1, epochs=epochs, params=params)
            journal.append(RunStarted(job.id, "trial", assignment=job.plain()))
            for done in range(epochs):
                values = {f"val_metric_{i}": number + done / 100 + i for i in range(10)}
                journal.append(epoch(job.id, done + 1, **values))

    def read_records() -> Records:
        return Records.from_events(events(tmp_path / "journal.jsonl"))

    read_records()  # caches of classes
    tracemalloc.start()
    records = read_records()
    gc.collect()
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory / trials < 10_000 + epochs * 1_000

    for number, record in enumerate(records.of("trial")):
        assert record.job.study == {
            **fixed,
            "train": {"lr": number / 10},
            "same": (1, True)[number % 2],
        }
        assert isinstance(record.job.study["same"], bool) == (number % 2 == 1)
        assert record.job.params["train.lr"] == str(number / 10)
        assert record.epochs[3]["val_metric_2"] == number + 0.03 + 2
