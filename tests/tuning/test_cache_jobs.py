"""Searches with cached teacher outputs: computation, reuse, failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.search_cases import (
    TASK,
    TEACHER_WEIGHTS,
    FakeTune,
    World,
    next_job,
    opened,
    roles,
    searching,
    tell,
)
from raykd.data import Dataset, Placement
from raykd.runtime.jobs import CacheJob, IdleJob
from raykd.runtime.worker import Worker, WorkerContext
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import Event, Note, TeacherCacheChanged
from raykd.training.teacher_cache import CacheStore
from raykd.training.teacher_cache.plan import CachePlan
from raykd.training.trainer import Training
from raykd.tuning.cache_jobs import CacheJobs
from raykd.tuning.search_planner import SearchPlanner

AUGMENTED = "data.augment=[{name: random_crop, padding: 1}]"
HINTS = "knowledge=[{loss: {choice: [{name: kd}, {name: hint}]}}]"
MODELS = (
    "teacher.model={name: resnet, depth: 8, width: 4}",
    "student.model={name: resnet, depth: 8, width: {choice: [2, 3]}}",
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return opened().settings.data.load()


class RecordingListener:
    def __init__(self) -> None:
        self.events: list[TeacherCacheChanged] = []
        self.notes: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, TeacherCacheChanged):
            self.events.append(event)
        elif isinstance(event, Note):
            self.notes.append(event.tags["teacher_outputs"])

    @property
    def statuses(self) -> list[str]:
        return [event.status for event in self.events]


class CachingTune(FakeTune):
    """Slots that train in this process, and record which forwards were cached."""

    def __init__(self, world: World, data: Dataset, slots: int = 1, **settings: Any) -> None:
        self.heard = RecordingListener()
        plan = CachePlan(world.study, TASK, len(data.train))
        cache_jobs = CacheJobs(
            plan,
            world.storage,
            data.fingerprint,
            len(data.train),
            slots=slots,
            publish=self.heard,
        )
        self.plan = plan
        explorer = world.explorer(slots=slots, cache_jobs=cache_jobs)
        super().__init__(world, explorer, slots=slots, **settings)
        self.data = data
        self.taught: dict[str, str] = {}
        self.shares: list[str] = []

    def _results(self, job: Any) -> Iterator[Any]:
        if isinstance(job, IdleJob):
            yield from super()._results(job)
            return
        if isinstance(job, CacheJob):
            self.shares.append(job.id)
        worker = Worker(WorkerContext(self.world.storage, self.data, Placement()))
        try:
            for outcome in worker.outcomes(job):
                self._look(job.id, worker.training)
                yield outcome
        finally:
            worker.stop()  # closes its log

    def _look(self, job_id: str, training: Training | None) -> None:
        source = getattr(training.distiller, "teacher", None) if training else None
        if source is not None:
            self.taught[job_id] = type(source).__name__


def small(*overrides: str, **search: Any) -> OpenStudy:
    settings: dict[str, Any] = {"trials": 3, "finalists": 1, "replicates": 1}
    return searching(opened(*overrides), **{**settings, **search})


def run(world: World, data: Dataset, **settings: Any) -> tuple[CachingTune, SearchPlanner]:
    tune = CachingTune(world, data, **settings)
    tune.run()
    return tune, tune.explorer


def test_outputs_are_computed_between_teacher_and_first_trial(
    tmp_path: Path, data: Dataset
) -> None:
    world = World(small(), tmp_path)
    tune, explorer = run(world, data)
    assert tune.heard.statuses == ["begun", "kept"]
    assert roles(world.journal) == ["teacher", *["trial"] * 3, "replicate", "alone"]
    assert {r.status for r in explorer.records.of("trial", "replicate")} == {"finished"}
    assert set(tune.taught.values()) == {"CachedTeacher"} and len(tune.taught) == 4
    [entry] = CacheStore(world.storage).entries()
    assert entry.manifest is not None and entry.manifest.spec.views == 1
    for trial in explorer.records.of("trial", "replicate"):
        assert trial.job.plain()["outputs"] == (entry.key,)


def test_results_equal_search_without_cache(tmp_path: Path, data: Dataset) -> None:
    values = {}
    for use in ("always", "never"):
        world = World(small(f"cache.use={use}", "cache.dtype=fp32", AUGMENTED), tmp_path / use)
        tune, explorer = run(world, data)
        assert set(tune.taught.values()) == (
            {"CachedTeacher"} if use == "always" else {"LiveTeacher"}
        )
        records = explorer.records.of("teacher", "trial", "replicate", "alone")
        values[use] = {r.id: r.metrics["val_loss"] for r in records}
    assert values["always"] == pytest.approx(values["never"], rel=1e-5)


def test_slots_share_computation(tmp_path: Path, data: Dataset) -> None:
    """Three views in three files: each slot computes one."""
    world = World(small("cache.use=always", AUGMENTED), tmp_path)
    tune, _ = run(world, data, slots=3)
    assert len(tune.shares) == len(set(tune.shares)) == 3
    assert tune.heard.statuses == ["begun", "kept"]
    single = World(small("cache.use=always", AUGMENTED), tmp_path / "one")
    run(single, data)
    ours, theirs = (CacheStore(each.storage).entries()[0].manifest for each in (world, single))
    assert ours is not None and theirs is not None
    assert ours.checksums == theirs.checksums


def test_another_study_reuses_outputs(tmp_path: Path, data: Dataset) -> None:
    run(World(small(), tmp_path), data)
    tune, _ = run(World(small(trials=2), tmp_path), data)
    assert tune.heard.statuses == ["found"] and tune.shares == []
    assert set(tune.taught.values()) == {"CachedTeacher"}


def test_changed_file_is_recomputed(tmp_path: Path, data: Dataset) -> None:
    """Its size is unchanged; only the checksum differs."""
    run(World(small(), tmp_path), data)
    [shard] = tmp_path.rglob("outputs/*/*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4] + bytes(byte ^ 1 for byte in whole[-4:]))
    tune, _ = run(World(small(trials=2), tmp_path), data)
    assert tune.heard.statuses == ["begun", "kept"]
    assert shard.read_bytes() == whole
    assert set(tune.taught.values()) == {"CachedTeacher"}


def test_layers_of_whole_space_are_cached(tmp_path: Path, data: Dataset) -> None:
    world = World(small(HINTS, *MODELS, "cache.use=always"), tmp_path)
    tune, explorer = run(world, data)
    [spec] = tune.plan.all.values()
    assert set(spec.layers) == {"stage3"} and spec.live == ()
    assert set(tune.taught.values()) == {"CachedTeacher"}
    assert {r.status for r in explorer.records.of("trial")} == {"finished"}


def test_replicates_use_views_of_trials(tmp_path: Path, data: Dataset) -> None:
    world = World(small(AUGMENTED), tmp_path)
    tune, explorer = run(world, data)
    records = explorer.records.of("trial", "replicate", "alone")
    assert {r.job.study["cache"]["seed"] for r in records} == {7}
    assert tune.taught["trial-0000"] == "CachedTeacher" and len(tune.taught) == 4


def test_failed_computation_falls_back_to_live_teacher(tmp_path: Path, data: Dataset) -> None:
    world = World(small("cache.use=always", AUGMENTED), tmp_path)

    class Broken(CachingTune):
        def _results(self, job: Any) -> Iterator[Any]:
            if isinstance(job, CacheJob):
                self.shares.append(job.id)
                yield {"failed": "no luck"}
            else:
                yield from super()._results(job)

    tune = Broken(world, data, slots=2)
    tune.run()
    assert tune.heard.statuses == ["begun", "live"]
    assert tune.heard.events[-1].reason == "no luck"
    assert tune.heard.notes == ["live: no luck"], "it is in the study's run, too"
    assert {r.status for r in tune.explorer.records.of("trial")} == {"finished"}
    assert set(tune.taught.values()) == {"LiveTeacher"}


def test_slot_that_dies_during_computation_does_not_stop_search(
    tmp_path: Path, data: Dataset
) -> None:
    world = World(small("cache.use=always"), tmp_path)
    explorer = CachingTune(world, data).explorer
    teacher = next_job(explorer)
    world.storage.write(str(teacher.keep), TEACHER_WEIGHTS)
    for epoch in (1, 2):
        tell(explorer, teacher, epoch=epoch, done=epoch == 2, val_accuracy=0.5)
    build = next_job(explorer)
    assert isinstance(build, CacheJob)
    while not isinstance(job := next_job(explorer), IdleJob):
        raise AssertionError(f"{job.id} began before the outputs were there")
    for _ in range(explorer.study.settings.cluster.max_failures):
        explorer.slot_failed(build.id, "its slot was lost")
        assert next_job(explorer) == build  # another slot continues it
    explorer.slot_failed(build.id, "its slot was lost")
    trial = next_job(explorer)
    assert trial.role == "trial" and trial.cache_keys == ()


def test_killed_search_resumes_with_cached_outputs(tmp_path: Path, data: Dataset) -> None:
    world = World(small(AUGMENTED, "cache.use=always"), tmp_path)
    first = CachingTune(world, data)
    with pytest.raises(AssertionError, match="does not end"):
        first.run(most_rounds=4)  # in the middle of the outputs, or of the first trial
    second, explorer = run(world, data)
    assert {r.status for r in explorer.records.of("trial", "replicate")} == {"finished"}
    assert set(second.taught.values()) == {"CachedTeacher"}
    fresh = World(small(AUGMENTED, "cache.use=always"), tmp_path / "fresh")
    _, whole = run(fresh, data)
    for record in whole.records.of("trial", "replicate"):
        resumed_loss = explorer.records[record.id].metrics["val_loss"]
        assert resumed_loss == pytest.approx(record.metrics["val_loss"], rel=1e-6)


def test_evicted_outputs_are_not_failure(tmp_path: Path, data: Dataset) -> None:
    """A trial whose outputs were evicted runs its teacher."""
    world = World(small("cache.use=always"), tmp_path)

    class Evicting(CachingTune):
        def _results(self, job: Any) -> Iterator[Any]:
            if job.id == "trial-0001":
                CacheStore(self.world.storage).remove(job.cache_keys[0])
            yield from super()._results(job)

    tune = Evicting(world, data)
    tune.run()
    assert tune.taught["trial-0000"] == "CachedTeacher"
    assert tune.taught["trial-0001"] == "LiveTeacher"
    assert {r.status for r in tune.explorer.records.of("trial")} == {"finished"}


def test_point_drawn_twice_while_first_waits(tmp_path: Path, data: Dataset) -> None:
    """Two points, four slots: all points are drawn while the outputs are computed."""
    study = small(
        "cache.use=always",
        AUGMENTED,
        "student.model={name: mlp, width: {choice: [8, 12]}}",
        "knowledge=[{loss: kd}]",
        trials=8,
    )
    _, explorer = run(World(study, tmp_path), data, slots=4)
    assert {r.status for r in explorer.records.of("trial")} == {"finished"}
    assert len(explorer.records.of("trial")) == 2


# The plan


def plan_of(rows: int | None, *overrides: str, **search: Any) -> CachePlan:
    return CachePlan(small(*overrides, **search), TASK, rows)


def test_predicted_bytes_are_exact(tmp_path: Path, data: Dataset) -> None:
    world = World(small(HINTS, *MODELS, AUGMENTED, "cache.use=always"), tmp_path)
    tune, _ = run(world, data)
    [spec] = tune.plan.all.values()
    [entry] = CacheStore(world.storage).entries()
    assert entry.manifest is not None
    assert spec.bytes == entry.manifest.spec.bytes == 3 * 160 * (10 + 16 * 2 * 2) * 2
    headers = entry.manifest.bytes - (spec.bytes or 0)
    assert 0 < headers < 300 * len(entry.manifest.sizes)


def test_unprofitable_outputs_are_not_cached() -> None:
    """Three views for one trial of three epochs cost more than they save."""
    [plan] = plan_of(160, AUGMENTED, trials=1, replicates=0).all.values()
    assert "about 3 epochs would use them, and they break even after 4" in plan.why_not
    assert (plan.break_even_epochs, plan.break_even_trials) == (3.75, 1.25)
    [plan] = plan_of(160, AUGMENTED, trials=3, replicates=0).all.values()
    assert plan.why_not == ""
    [plan] = plan_of(160, AUGMENTED, "cache.use=always", trials=1, replicates=0).all.values()
    assert plan.why_not == ""
    assert plan_of(160, "cache.use=never").all == {}


def test_early_stopping_reduces_expected_use() -> None:
    name = "search.scheduler={name: asha, grace_epochs: 1, reduction: 3}"
    [early] = plan_of(160, name, "search.objectives={val_accuracy: max}").all.values()
    [whole] = plan_of(160).all.values()
    assert early.expected_epochs == pytest.approx(3 * (1 + 2 / 3) + 3)
    assert whole.expected_epochs == pytest.approx(3 * 3 + 3)


def test_views_are_limited_by_space() -> None:
    long = "train.epochs=40"
    size = 160 * 10 * 2 / 1e9  # GB of one view
    [entry] = plan_of(160, AUGMENTED, long, f"cache.limit_gb={12.5 * size}").all.values()
    assert entry.views == 12 and entry.why_not == ""
    [entry] = plan_of(160, AUGMENTED, long, f"cache.limit_gb={5.5 * size}").all.values()
    assert "only 5 views would fit" in entry.why_not
    plan = plan_of(160, AUGMENTED, long, f"cache.limit_gb={12.5 * size}")
    study = plan.fixed(plan.study.bind(TASK).sample(0).resolved)
    assert (study.cache.views, study.cache.seed) == (12, 7), "every trial shows the same twelve"
    [entry] = plan_of(160, AUGMENTED, long, "cache.views=4").all.values()
    assert entry.views == 4 and entry.why_not == ""
    [entry] = plan_of(160, long).all.values()
    assert entry.views == 1, "without augmentation there is but one"


def test_layers_that_do_not_fit_are_not_cached() -> None:
    budget = "cache.features_gb=0.000001"
    [plan] = plan_of(160, HINTS, *MODELS, budget).all.values()
    assert plan.layers == {} and plan.live == ("stage3",)


def test_teacher_of_single_trial_is_not_cached() -> None:
    """born_again trains one per trial; no other trial would read its outputs."""
    assert plan_of(160, "scheme={name: born_again}", "teacher=null").all == {}
