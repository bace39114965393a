"""Searches with objectives and constraints that are measured before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from helpers.search_cases import (
    SMALL,
    TEACHER_WEIGHTS,
    World,
    explore,
    next_job,
    opened,
    tell,
)
from raykd.errors import StudyError
from raykd.models import Signature
from raykd.models.introspection.latency import Latency, Timing
from raykd.report.summary import summarize
from raykd.report.terminal import render_summary
from raykd.study import costs as study_costs
from raykd.study.costs import StudentCosts
from raykd.study.objectives import Cost
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.search_run import SearchRun

WEIGHTS = 1000
"""Parameters that take the stopwatch's millisecond."""


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fake clock: 1 ms per 1,000 parameters; returns the sizes of timed networks."""
    timed: list[int] = []

    def timing(cost: Cost, network: nn.Module, signature: Signature, how: Latency) -> Timing:
        timed.append(sum(parameter.numel() for parameter in network.parameters()))
        return Timing(timed[-1] / WEIGHTS, 0.01, 9, 10)

    monkeypatch.setattr(study_costs, "measure", timing)
    return timed


MEASURED = (
    "search.objectives={val_accuracy: max, latency: min}",
    "search.constraints={latency: {max: 1.5}, memory: {max: 480}}",
    "search.trials=18",
    "search.replicates=1",
)


def trials(explorer: SearchPlanner) -> dict[str, Any]:
    return {record.id: record for record in explorer.records.of("trial")}


def test_constraints_are_checked_before_trial_starts(stopwatch: list[int], tmp_path: Path) -> None:
    world = World(opened(*MEASURED), tmp_path)
    explorer = explore(world)
    records = trials(explorer)
    assert records and explorer.finished
    for record in records.values():
        metrics = record.metrics
        assert metrics["latency"] == metrics["params"] / WEIGHTS <= 1.5
        assert metrics["memory"] <= 480
        tags = record.job.tags
        assert tags["latency"].endswith("ms (IQR 0.01, 9 of 10 runs)")
        assert tags["latency_on"].startswith("cpu: ")
    refused = [
        trial
        for trial in explorer.optuna_study.get_trials()
        if str(trial.user_attrs.get("raykd.infeasible", "")).startswith("latency ")
    ]
    assert refused and all(trial.constraints == {"feasible": 1.0} for trial in refused)
    assert refused[0].user_attrs["raykd.infeasible"].endswith(" > 1.5")


def test_sampler_gets_measured_objective(stopwatch: list[int], tmp_path: Path) -> None:
    explorer = explore(World(opened(*MEASURED), tmp_path))
    values = {
        trial.user_attrs["raykd.id"]: trial.values
        for trial in explorer.optuna_study.get_trials()
        if "raykd.id" in trial.user_attrs
    }
    for record_id, record in trials(explorer).items():
        assert values[record_id] == [record.metrics["val_accuracy"], record.metrics["latency"]]


def test_student_is_measured_once_per_search_and_resume(
    stopwatch: list[int], tmp_path: Path
) -> None:
    study = opened(*MEASURED)
    world, file = World(study, tmp_path / "files"), tmp_path / "latency.json"

    def known_costs() -> StudentCosts:
        costs = StudentCosts(study.settings.search)
        costs.keep_in(file)
        return costs

    started = world.explorer(costs=known_costs())
    while len(started.records.of("trial")) < 2:
        job = next_job(started)
        if job.role == "teacher":
            assert job.keep is not None
            world.storage.write(job.keep, TEACHER_WEIGHTS)
            tell(started, job, epoch=2, done=True)
    before = {record.id: record.job.metrics for record in started.records.of("trial")}
    explorer = explore(world, costs=known_costs())
    assert explorer.finished and len(trials(explorer)) > 2
    assert len(stopwatch) == len(set(stopwatch))
    for record_id, metrics in before.items():
        assert trials(explorer)[record_id].job.metrics == metrics


REAL = SMALL.replace("trials: 4", "trials: 3").replace("replicates: 2", "replicates: 1")


def test_search_for_fast_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real clock, and some students 20 times larger."""
    monkeypatch.chdir(tmp_path)
    study = opened(
        "student.model={name: mlp, depth: 2, width: {choice: [8, 512]}}",
        "search.objectives={val_accuracy: max, latency: min}",
        "search.measure=[memory, batch_latency]",
        "search.latency={seconds: 0.02, batch: 64}",
        "search.sampler=grid",
        "search.trials=2",
        "search.replicates=0",
        "knowledge=[{loss: kd}]",
        "train.epochs=1",
        text=REAL,
    )
    result = SearchRun(study).run(LocalExecutor())
    by_width = {r.job.params["student.model.width"]: r for r in result.records.of("trial")}
    small, large = by_width[8].metrics, by_width[512].metrics
    assert small["memory"] < large["memory"]
    assert 0 < small["batch_latency"] < large["batch_latency"]
    assert (result.folder / "latency.json").exists()
    quickest = min(result.records.of("trial"), key=lambda record: record.metrics["latency"])
    assert quickest.id in {record.id for record in result.pareto}
    console = Console(width=160, record=True)
    console.print(render_summary(summarize(result)))
    output = console.export_text()
    assert "min latency" in output and "batch latency" in output and " ms " in output


def test_infeasible_constraint_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = opened(
        "search.constraints={latency: {max: 0.0001}}", "search.latency={seconds: 0.01}", text=REAL
    )
    with pytest.raises(
        StudyError, match=r"no measured student has latency <= 0\.0001 ms; the fast"
    ):
        SearchRun(study).run(LocalExecutor())
    assert not list(tmp_path.iterdir())
