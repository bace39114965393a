"""Adapters of Ray Tune after a slot or a node was lost, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter

from raykd.compat.ray_patches import release_idle_actors
from raykd.runtime import ray_tune
from raykd.runtime.jobs import AnyJob, IdleJob, Report, TrainJob
from raykd.runtime.ray_tune import ClusterSize, Interrupt, Reports, Stopping, Suggestions

JOB = TrainJob("trial-0001", "trial", {}, seed=0, epochs=4, folder="study")


class LoneJob:
    """Planner with one job that is given again after its slot was lost."""

    has_work = False

    def __init__(self) -> None:
        self.lost: list[dict[str, Any]] = []
        self.moved: list[tuple[str, str]] = []

    def next(self) -> AnyJob | None:
        return JOB

    def report(self, job_id: str, report: Report, slot: str) -> None:
        pass

    def slot_failed(self, job_id: str, reason: str, **details: Any) -> None:
        self.lost.append({"id": job_id, "reason": reason, **details})

    def move(self, job_id: str, reason: str) -> None:
        self.moved.append((job_id, reason))

    def keeps(self, job_id: str, metrics: Any) -> bool:
        return True

    job_failed = end = draw_ahead = report


def trial_of(job: AnyJob, status: str = Trial.RUNNING, error: Any = None, name: str = "a") -> Any:
    return SimpleNamespace(
        trial_id=name, config={"job": job}, status=status, get_error=lambda: error, error_file=None
    )


@pytest.mark.parametrize(("status", "began"), [(Trial.RUNNING, True), (Trial.PENDING, False)])
def test_slot_that_was_dead_differs_from_one_that_dies(status: str, began: bool) -> None:
    planner: Any = LoneJob()
    stopping = Stopping(planner, None)
    reports = Reports(planner, stopping)
    trial = trial_of(JOB, status, ActorDiedError())
    stopping.on_trial_error(None, trial)
    reports.on_trial_error(0, [], trial)
    [lost] = planner.lost
    assert (lost["id"], lost["reason"]) == (JOB.id, "Ray lost its slot")
    assert lost["died"] and lost["began"] is began


@pytest.mark.parametrize("status", [Trial.RUNNING, Trial.PENDING])
@pytest.mark.parametrize("words", ray_tune.LOW_MEMORY)
def test_slot_ended_for_memory_counts_as_out_of_memory(words: str, status: str) -> None:
    planner: Any = LoneJob()
    stopping = Stopping(planner, None)
    trial = trial_of(JOB, status, RuntimeError(f"The actor died unexpectedly: {words}"))
    stopping.on_trial_error(None, trial)
    Reports(planner, stopping).on_trial_error(0, [], trial)
    [lost] = planner.lost
    assert lost["reason"].startswith("out of memory: ") and not lost["died"] and lost["began"]


def test_rule_sees_one_trial_however_often_its_slot_is_lost() -> None:
    trials: list[str] = []

    class Rule:
        def keeps(self, trial: Any, metrics: Any) -> bool:
            trials.append(trial.trial_id)
            return True

    planner: Any = LoneJob()
    stopping = Stopping(planner, Rule())
    for name in ("a", "b"):
        trial = trial_of(JOB, name=name)
        stopping.on_trial_add(None, trial)
        outcome = Report(1, {}, done=False)
        stopping.on_trial_result(None, trial, {"outcome": outcome})
    assert trials == ["a", "a"]


@pytest.mark.parametrize(("slots", "decision"), [(2, "CONTINUE"), (1, "STOP")])
def test_idle_slot_takes_job_of_lost_node(slots: int, decision: str) -> None:
    planner: Any = LoneJob()
    limiter = ConcurrencyLimiter(Suggestions(planner), max_concurrent=2)
    limiter.set_max_concurrency(slots)
    idle, waiting = trial_of(IdleJob("wait-1")), trial_of(JOB, Trial.PENDING)
    controller: Any = SimpleNamespace(get_live_trials=lambda: [idle, waiting])
    stopping = Stopping(planner, None, limiter)
    assert stopping.on_trial_result(controller, idle, {"epoch": 0}) == decision


def test_limit_of_jobs_follows_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tune, "SHARE_S", 0.0)
    planner: Any = LoneJob()
    limiter = ConcurrencyLimiter(Suggestions(planner), max_concurrent=2)
    counts = iter([3, 1, 2])
    size = ClusterSize(limiter, lambda: next(counts))
    limits = []
    for _ in range(3):
        size.on_step_end(0, [])
        limits.append(limiter.max_concurrent)
    assert limits == [3, 1, 2]


class TuneController:
    """Tune's controller: its trials, and the actors that it keeps for the next trial."""

    def __init__(self, *trials: Any, idle: int = 0) -> None:
        self._trials = trials
        self._actor_cache = SimpleNamespace(num_cached_objects=idle)
        self.released = False

    def get_live_trials(self) -> list[Any]:
        return list(self._trials)

    get_trials = get_live_trials

    def _cleanup_cached_actors(self, force_all: bool) -> None:
        self.released = force_all


def limited(planner: Any, slots: int) -> Stopping:
    limiter = ConcurrencyLimiter(Suggestions(planner), max_concurrent=4)
    limiter.set_max_concurrency(slots)
    return Stopping(planner, None, limiter)


@pytest.mark.parametrize(("slots", "moves"), [(2, False), (1, True)])
def test_job_leaves_slot_that_another_study_needs(slots: int, moves: bool) -> None:
    planner: Any = LoneJob()
    stopping = limited(planner, slots)
    trial, other = trial_of(JOB), trial_of(JOB, name="b")
    controller: Any = TuneController(trial, other)
    outcome = {"outcome": Report(1, {}, done=False)}
    decision = stopping.on_trial_result(controller, trial, outcome)
    assert decision == ("STOP" if moves else "CONTINUE")
    if moves:
        Reports(planner, stopping).on_trial_complete(0, [], trial)
        assert planner.moved == [(JOB.id, "its slot is given to another study")]
    last = stopping.on_trial_result(controller, other, {**outcome, "done": True})
    assert last == "CONTINUE", "a finished job is not moved"


@pytest.mark.parametrize(
    ("slots", "idle", "status", "released"),
    [
        (2, 1, Trial.RUNNING, False),
        (1, 1, Trial.RUNNING, True),
        (1, 0, Trial.RUNNING, False),
        (1, 1, Trial.PENDING, False),  # it takes the actor
    ],
)
def test_actor_without_job_ends_if_another_study_needs_its_slot(
    slots: int, idle: int, status: str, released: bool
) -> None:
    controller: Any = TuneController(trial_of(JOB, status), idle=idle)
    release_idle_actors(controller, slots)
    assert controller.released is released
    wrapped: Any = SimpleNamespace(_trial_runner=TuneController(trial_of(JOB, status), idle=idle))
    release_idle_actors(wrapped, slots)
    assert wrapped._trial_runner.released is released


def test_job_leaves_node_that_is_drained() -> None:
    planner: Any = LoneJob()
    error = RuntimeError(f"... {ray_tune.DRAINED}its node is drained")
    Reports(planner, Stopping(planner, None)).on_trial_error(0, [], trial_of(JOB, error=error))
    assert planner.moved == [(JOB.id, "its node is drained")] and not planner.lost


def test_tune_ends_on_request() -> None:
    interrupt = Interrupt()
    assert not interrupt.stop_all() and not interrupt("a", {})
    interrupt.stop()
    assert interrupt.stop_all()
