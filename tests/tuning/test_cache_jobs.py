"""A search whose trials read their teacher's outputs: what is computed, and what if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.search_cases import TASK, FakeTune, World, next_job, opened, roles, searching, tell
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


class Heard:
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


class Kept(FakeTune):
    """Slots that train in this process, one seat each; notes which forwards were cached."""

    def __init__(self, world: World, data: Dataset, slots: int = 1, **settings: Any) -> None:
        self.heard = Heard()
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
        for outcome in worker.outcomes(job):
            self._look(job.id, worker.training)
            yield outcome

    def _look(self, job_id: str, training: Training | None) -> None:
        source = getattr(training.distiller, "teacher", None) if training else None
        if source is not None:
            self.taught[job_id] = type(source).__name__


def small(*overrides: str, **search: Any) -> OpenStudy:
    given: dict[str, Any] = {"trials": 3, "finalists": 1, "replicates": 1}
    return searching(opened(*overrides), **{**given, **search})


def run(world: World, data: Dataset, **settings: Any) -> tuple[Kept, SearchPlanner]:
    tune = Kept(world, data, **settings)
    tune.run()
    return tune, tune.explorer


def test_outputs_are_computed_after_the_teacher_and_before_the_first_trial(
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


def test_it_comes_to_what_a_search_without_comes_to(tmp_path: Path, data: Dataset) -> None:
    values = {}
    for use in ("always", "never"):
        world = World(small(f"cache.use={use}", "cache.dtype=fp32", AUGMENTED), tmp_path / use)
        tune, explorer = run(world, data)
        assert set(tune.taught.values()) == (
            {"CachedTeacher"} if use == "always" else {"LiveTeacher"}
        )
        found = explorer.records.of("teacher", "trial", "replicate", "alone")
        values[use] = {r.id: r.metrics["val_loss"] for r in found}
    assert values["always"] == pytest.approx(values["never"], rel=1e-5)


def test_slots_share_the_work(tmp_path: Path, data: Dataset) -> None:
    """With three views in three files each slot computes one."""
    world = World(small("cache.use=always", AUGMENTED), tmp_path)
    tune, _ = run(world, data, slots=3)
    assert len(tune.shares) == len(set(tune.shares)) == 3
    assert tune.heard.statuses == ["begun", "kept"]
    one = World(small("cache.use=always", AUGMENTED), tmp_path / "one")
    run(one, data)
    ours, theirs = (CacheStore(each.storage).entries()[0].manifest for each in (world, one))
    assert ours is not None and theirs is not None
    assert ours.checksums == theirs.checksums


def test_another_study_finds_them(tmp_path: Path, data: Dataset) -> None:
    run(World(small(), tmp_path), data)
    tune, _ = run(World(small(trials=2), tmp_path), data)
    assert tune.heard.statuses == ["found"] and tune.shares == []
    assert set(tune.taught.values()) == {"CachedTeacher"}


def test_a_file_whose_bytes_changed_is_computed_anew(tmp_path: Path, data: Dataset) -> None:
    """Its size is what it was: only its checksum tells."""
    run(World(small(), tmp_path), data)
    [shard] = tmp_path.rglob("outputs/*/*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4] + bytes(byte ^ 1 for byte in whole[-4:]))
    tune, _ = run(World(small(trials=2), tmp_path), data)
    assert tune.heard.statuses == ["begun", "kept"]
    assert shard.read_bytes() == whole
    assert set(tune.taught.values()) == {"CachedTeacher"}


def test_layers_of_the_whole_space_are_kept(tmp_path: Path, data: Dataset) -> None:
    world = World(small(HINTS, *MODELS, "cache.use=always"), tmp_path)
    tune, explorer = run(world, data)
    [kept] = tune.plan.all.values()
    assert set(kept.layers) == {"stage3"} and kept.live == ()
    assert set(tune.taught.values()) == {"CachedTeacher"}
    assert {r.status for r in explorer.records.of("trial")} == {"finished"}


def test_replicates_see_the_views_of_the_trials(tmp_path: Path, data: Dataset) -> None:
    world = World(small(AUGMENTED), tmp_path)
    tune, explorer = run(world, data)
    found = explorer.records.of("trial", "replicate", "alone")
    assert {r.job.study["cache"]["seed"] for r in found} == {7}
    assert tune.taught["trial-0000"] == "CachedTeacher" and len(tune.taught) == 4


def test_a_failed_computation_leaves_the_teacher_live(tmp_path: Path, data: Dataset) -> None:
    world = World(small("cache.use=always", AUGMENTED), tmp_path)

    class Broken(Kept):
        def _results(self, job: Any) -> Iterator[Any]:
            if isinstance(job, CacheJob):
                self.shares.append(job.id)
                yield {"failed": "no luck"}
            else:
                yield from super()._results(job)

    tune = Broken(world, data, slots=2)
    tune.run()
    assert tune.heard.statuses == ["begun", "live"]
    assert tune.heard.events[-1].why == "no luck"
    assert tune.heard.notes == ["live: no luck"], "it stands in the study's run, too"
    assert {r.status for r in tune.explorer.records.of("trial")} == {"finished"}
    assert set(tune.taught.values()) == {"LiveTeacher"}


def test_a_slot_that_dies_while_it_computes_stops_nobody(tmp_path: Path, data: Dataset) -> None:
    world = World(small("cache.use=always"), tmp_path)
    explorer = Kept(world, data).explorer
    teacher = next_job(explorer)
    world.storage.write(str(teacher.keep), b"weights")
    for epoch in (1, 2):
        tell(explorer, teacher, epoch=epoch, done=epoch == 2, val_accuracy=0.5)
    build = next_job(explorer)
    assert isinstance(build, CacheJob)
    while not isinstance(held := next_job(explorer), IdleJob):
        raise AssertionError(f"{held.id} began before the outputs were there")
    explorer.slot_failed(build.id, "its slot was lost")
    explorer.end(build.id, "stopped")
    trial = next_job(explorer)
    assert trial.role == "trial" and trial.cache_keys == ()


def test_a_search_that_was_killed_goes_on_with_them(tmp_path: Path, data: Dataset) -> None:
    world = World(small(AUGMENTED, "cache.use=always"), tmp_path)
    first = Kept(world, data)
    with pytest.raises(AssertionError, match="does not end"):
        first.run(most_rounds=4)  # in the middle of the outputs, or of the first trial
    second, explorer = run(world, data)
    assert {r.status for r in explorer.records.of("trial", "replicate")} == {"finished"}
    assert set(second.taught.values()) == {"CachedTeacher"}
    fresh = World(small(AUGMENTED, "cache.use=always"), tmp_path / "fresh")
    _, whole = run(fresh, data)
    for record in whole.records.of("trial", "replicate"):
        again = explorer.records[record.id].metrics["val_loss"]
        assert again == pytest.approx(record.metrics["val_loss"], rel=1e-6)


def test_outputs_that_vanish_are_no_failure(tmp_path: Path, data: Dataset) -> None:
    """A trial whose outputs were evicted in the meantime runs its teacher."""
    world = World(small("cache.use=always"), tmp_path)

    class Evicting(Kept):
        def _results(self, job: Any) -> Iterator[Any]:
            if job.id == "trial-0001":
                CacheStore(self.world.storage).remove(job.cache_keys[0])
            yield from super()._results(job)

    tune = Evicting(world, data)
    tune.run()
    assert tune.taught["trial-0000"] == "CachedTeacher"
    assert tune.taught["trial-0001"] == "LiveTeacher"
    assert {r.status for r in tune.explorer.records.of("trial")} == {"finished"}


def test_a_point_drawn_twice_while_the_first_is_held_is_no_fault(
    tmp_path: Path, data: Dataset
) -> None:
    """Two points, four slots: all are drawn while the outputs are computed."""
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


def test_bytes_are_foretold_exactly(tmp_path: Path, data: Dataset) -> None:
    world = World(small(HINTS, *MODELS, AUGMENTED, "cache.use=always"), tmp_path)
    tune, _ = run(world, data)
    [kept] = tune.plan.all.values()
    [entry] = CacheStore(world.storage).entries()
    assert entry.manifest is not None
    assert kept.bytes == entry.manifest.spec.bytes == 3 * 160 * (10 + 16 * 2 * 2) * 2
    headers = entry.manifest.bytes - (kept.bytes or 0)
    assert 0 < headers < 300 * len(entry.manifest.sizes)


def test_what_would_not_pay_is_not_kept() -> None:
    """Three views for one trial of three epochs: computed for more than they save."""
    [kept] = plan_of(160, AUGMENTED, trials=1, replicates=0).all.values()
    assert "about 3 epochs would use them, and they break even after 4" in kept.why_not
    assert (kept.break_even_epochs, kept.break_even_trials) == (3.75, 1.25)
    [kept] = plan_of(160, AUGMENTED, trials=3, replicates=0).all.values()
    assert kept.why_not == ""
    [kept] = plan_of(160, AUGMENTED, "cache.use=always", trials=1, replicates=0).all.values()
    assert kept.why_not == ""
    assert plan_of(160, "cache.use=never").all == {}


def test_trials_that_stop_early_count_for_less() -> None:
    name = "search.scheduler={name: asha, grace_epochs: 1, reduction: 3}"
    [early] = plan_of(160, name, "search.objectives={val_accuracy: max}").all.values()
    [whole] = plan_of(160).all.values()
    assert early.expected_epochs == pytest.approx(3 * (1 + 2 / 3) + 3)
    assert whole.expected_epochs == pytest.approx(3 * 3 + 3)


def test_views_that_do_not_fit() -> None:
    long = "train.epochs=40"
    size = 160 * 10 * 2 / 1e9  # GB of one view
    [kept] = plan_of(160, AUGMENTED, long, f"cache.limit_gb={12.5 * size}").all.values()
    assert kept.views == 12 and kept.why_not == ""
    [kept] = plan_of(160, AUGMENTED, long, f"cache.limit_gb={5.5 * size}").all.values()
    assert "only 5 views would fit" in kept.why_not
    plan = plan_of(160, AUGMENTED, long, f"cache.limit_gb={12.5 * size}")
    study = plan.fixed(plan.study.bind(TASK).sample(0).resolved)
    assert (study.cache.views, study.cache.seed) == (12, 7), "every trial shows the same twelve"
    [kept] = plan_of(160, AUGMENTED, long, "cache.views=4").all.values()
    assert kept.views == 4 and kept.why_not == ""
    [kept] = plan_of(160, long).all.values()
    assert kept.views == 1, "without augmentation there is but one"


def test_layers_that_do_not_fit_stay_live() -> None:
    budget = "cache.features_gb=0.000001"
    [kept] = plan_of(160, HINTS, *MODELS, budget).all.values()
    assert kept.layers == {} and kept.live == ("stage3",)


def test_a_trial_s_own_teacher_is_not_kept() -> None:
    """born_again trains one for each trial: nobody else would read what it says."""
    assert plan_of(160, "scheme={name: born_again}", "teacher=null").all == {}
