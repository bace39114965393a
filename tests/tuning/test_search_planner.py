"""Search planner without Ray: synthetic metrics and a fake Tune."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from helpers.search_cases import (
    POINTS,
    SMALL,
    TASK,
    TEACHER_WEIGHTS,
    FakeTune,
    World,
    epochs_of,
    explore,
    next_job,
    opened,
    roles,
    searching,
    synthetic_metrics,
    tell,
)
from raykd.errors import Infeasible
from raykd.models import profile_model
from raykd.runtime.jobs import DIVERGED, OUT_OF_MEMORY, EvaluateJob, IdleJob, JournalJob, read_job
from raykd.schemes import Alone
from raykd.study.candidate import Candidate
from raykd.study.config import read_study
from raykd.study.open_study import BoundStudy
from raykd.study.samplers import Grid, Random, Tpe
from raykd.study.schedulers import ParetoAsha
from raykd.study.short_names import trial_tags
from raykd.tracking.events import (
    EpochFinished,
    Note,
    RunEnded,
    RunStarted,
)
from raykd.tracking.json_types import to_json
from raykd.tuning.planner import ROLES
from raykd.tuning.search_planner import SearchPlanner


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(opened(), tmp_path)


def optuna_trials(explorer: SearchPlanner) -> list[optuna.trial.FrozenTrial]:
    return explorer.optuna_study.get_trials(deepcopy=False)


def optuna_known(explorer: SearchPlanner) -> dict[str, optuna.trial.FrozenTrial]:
    """Trials known to Optuna, without infeasible and repeated draws."""
    ids = {
        t.user_attrs["raykd.id"]: t for t in optuna_trials(explorer) if "raykd.id" in t.user_attrs
    }
    assert list(ids) == [record.id for record in explorer.records.of("trial")]
    return ids


def test_next_trial_is_drawn_while_slots_are_busy(tmp_path: Path) -> None:
    world = World(opened("train.optimizer.lr={uniform: [0.01, 0.1]}"), tmp_path)
    explorer = world.explorer()
    teacher = next_job(explorer)
    assert teacher is not None and teacher.role == "teacher"
    explorer.draw_ahead()
    assert not optuna_trials(explorer), "not before there is a teacher"
    world.storage.write(str(teacher.keep), TEACHER_WEIGHTS)
    tell(explorer, teacher, epoch=teacher.epochs, done=True, **synthetic_metrics(teacher, 1))
    first = next_job(explorer)
    explorer.draw_ahead()
    explorer.draw_ahead()
    assert first is not None and first.id == "trial-0000"
    assert [trial.user_attrs["raykd.id"] for trial in optuna_trials(explorer)] == [
        "trial-0000",
        "trial-0001",
    ]
    assert "trial-0001" not in explorer.records, "it has not begun"


# Phases


def test_phases_are_in_order(world: World) -> None:
    explorer = explore(world)
    assert roles(world.journal) == ["teacher", *["trial"] * 4, *["replicate", "alone"] * 4]
    assert explorer.finished and not explorer.fatal
    assert all(r.status == "finished" for r in explorer.records.of("teacher", "trial", "alone"))
    ids = [event.id for event in world.journal.of(RunStarted)]
    assert ids[:5] == ["teacher-0", "trial-0000", "trial-0001", "trial-0002", "trial-0003"]
    assert len(set(ids)) == len(ids)
    assert len(explorer.finalists) == 2


def test_every_epoch_is_reported_once_and_before_end(world: World) -> None:
    explore(world, slots=3)
    assert all(epochs in ([1, 2, 3], [1, 2]) for epochs in epochs_of(world.journal.events).values())
    ended: set[str] = set()
    for event in world.journal.events:
        assert not isinstance(event, EpochFinished) or event.id not in ended
        if isinstance(event, RunEnded):
            assert event.id not in ended
            ended.add(event.id)
    assert len(ended) == len(world.journal.of(RunStarted)) == 13


def test_no_trial_starts_before_teacher_is_ready(world: World) -> None:
    explorer = world.explorer(slots=3)
    tune = FakeTune(world, explorer, slots=3)
    tune.run()
    events = world.journal.events
    ready = next(i for i, e in enumerate(events) if isinstance(e, RunEnded) and e.id == "teacher-0")
    first = next(i for i, e in enumerate(events) if isinstance(e, RunStarted) and e.role == "trial")
    assert ready < first
    assert tune.waited > 0, "the other slots were kept warm meanwhile"
    assert tune.most_at_once == 3


def test_idle_jobs_end_when_there_is_work(world: World) -> None:
    explorer = world.explorer(slots=2)
    teacher = next_job(explorer)
    assert teacher is not None and teacher.role == "teacher"
    waits = next_job(explorer), next_job(explorer)
    assert all(isinstance(job, IdleJob) for job in waits)
    assert waits[0].id != waits[1].id
    assert not explorer.has_work
    tell(explorer, teacher, epoch=1, done=False, val_accuracy=0.1)
    assert not explorer.has_work
    tell(explorer, teacher, epoch=2, done=True, val_accuracy=0.2)
    assert explorer.has_work
    trial = next_job(explorer)
    assert trial is not None and trial.role == "trial"


def test_teacher_that_blocks_all_trials_is_exclusive(world: World) -> None:
    explorer = world.explorer(slots=2)
    teacher = next_job(explorer)
    assert teacher.exclusive
    # A driver that goes on from here says the same, or the teacher would be another.
    resumed = world.explorer(slots=2)
    FakeTune(world, resumed, slots=2).run()
    jobs = [read_job(event.assignment) for event in world.journal.of(RunStarted)]
    assert [getattr(job, "exclusive", False) for job in jobs] == [True] + [False] * 12


def test_two_teachers_share_cpus(tmp_path: Path) -> None:
    explorer = World(opened("teacher.model.depth={choice: [1, 2]}"), tmp_path).explorer(slots=2)
    jobs = [next_job(explorer), next_job(explorer)]
    assert [(job.role, job.exclusive) for job in jobs if job] == [("teacher", False)] * 2


def test_slots_wait_for_last_trials_before_selection(world: World) -> None:
    world.study = searching(world.study, trials=1)
    explorer = world.explorer()
    for role in ("teacher", "trial"):
        at_work = next_job(explorer)
        assert at_work is not None and at_work.role == role
        waiting = next_job(explorer)
        assert isinstance(waiting, IdleJob) and not explorer.has_work
        for epoch in range(1, at_work.epochs + 1):
            done = epoch == at_work.epochs
            tell(explorer, at_work, epoch=epoch, done=done, val_accuracy=0.5)
    assert explorer.has_work
    replicate = next_job(explorer)
    assert replicate is not None and replicate.role == "replicate"


def test_slots_interleave(world: World) -> None:
    world.study = searching(world.study, trials=6)
    explorer = explore(world, slots=3)
    starts = [i for i, e in enumerate(world.journal.events) if isinstance(e, RunStarted)]
    assert len(explorer.records.of("trial")) == 6
    epochs = [e.id for e in world.journal.of(EpochFinished) if e.id.startswith("trial-")]
    assert epochs[:3] == ["trial-0000", "trial-0001", "trial-0002"], "side by side"
    assert starts == sorted(starts)
    single = World(world.study, Path(world.storage.root) / "one")
    alone = explore(single)
    assert {r.id for r in explorer.records.of("trial")} == {r.id for r in alone.records.of("trial")}


def test_no_jobs_after_end(world: World) -> None:
    explorer = explore(world)
    assert next_job(explorer) is None and next_job(explorer) is None
    assert explorer.has_work, "a slot that still waits has to be given up"


# What is asked of a slot


def test_jobs_are_self_contained(world: World) -> None:
    explore(world)
    by_id = {e.id: read_job(e.assignment) for e in world.journal.of(RunStarted)}
    teacher, trial = by_id["teacher-0"], by_id["trial-0000"]
    assert teacher.epochs == 2 and teacher.test and not teacher.teachers
    assert teacher.network_file is not None and trial.teachers == (teacher.network_file,)
    assert read_study(teacher.study).student.model.name == "mlp"
    assert trial.epochs == 3 and trial.seed == 7 and not trial.test and trial.network_file is None
    study = read_study(trial.study)
    cost = profile_model(study.student.model, TASK)
    assert trial.metrics == {"params": cost.params, "macs": cost.macs}
    assert trial.params["student.model.width"] == study.student.model.width  # type: ignore[attr-defined]
    assert trial.params["knowledge[0].loss"] in ("kd", "rkd")
    assert trial.tags.items() >= trial_tags(study, study.teacher_specs()).items()
    assert trial.tags["losses"] == trial.params["knowledge[0].loss"]


def test_only_finalists_and_teacher_use_test_data(world: World) -> None:
    explorer = explore(world)
    for record in explorer.records.of("trial"):
        assert not record.job.test and "test_accuracy" not in record.metrics
    for record in explorer.records.of("teacher", "replicate", "alone"):
        assert record.job.test and "test_accuracy" in record.metrics


def test_baseline_has_same_student_budget_and_seeds(world: World) -> None:
    explorer = explore(world)
    for chosen in explorer.finalists:
        study = read_study(chosen.job.study)
        taught = explorer.records.children(chosen.id, "replicate")
        alone = explorer.records.children(chosen.id, "alone")
        assert [r.job.seed for r in taught] == [r.job.seed for r in alone] == [8, 9]
        for ours, theirs in zip(taught, alone, strict=True):
            with_teacher, without = map(read_study, (ours.job.study, theirs.job.study))
            assert with_teacher == replace(study, seed=ours.job.seed)
            assert without.student == study.student and without.train == study.train
            assert without.data == study.data and without.seed == with_teacher.seed
            assert isinstance(without.scheme, Alone) and without.knowledge == ()
            assert not theirs.job.teachers and ours.job.teachers
            assert ours.job.epochs == theirs.job.epochs == chosen.job.epochs
            assert ours.job.network_file is not None


def test_study_without_teacher_has_no_baseline(tmp_path: Path) -> None:
    text = SMALL.replace("knowledge:", "scheme: {name: alone}\nunused:").split("unused:")
    text = text[0] + "train:" + text[1].split("train:", 1)[1]
    text = text.replace(text[text.index("teacher:") : text.index("student:")], "")
    world = World(opened(text=text), tmp_path)
    explore(world)
    assert roles(world.journal) == ["trial"] * 4 + ["replicate"] * 4


def test_study_without_labels_has_no_baseline(tmp_path: Path) -> None:
    teacher = "teacher={weights: 'models:/teacher@champion'}"
    study = opened(teacher, "knowledge=[{loss: kd}]", "data.labels_per_class=0")
    world = World(study, tmp_path)
    world.give_teacher()
    explorer = explore(world)
    assert roles(world.journal) == ["teacher", *["trial"] * 4, *["replicate"] * 4]
    assert len(explorer.finalists) == 2


def test_search_without_replicates_ends_with_selection(world: World) -> None:
    world.study = searching(world.study, replicates=0)
    explorer = explore(world)
    assert roles(world.journal) == ["teacher"] + ["trial"] * 4
    assert len(explorer.finalists) == 2
    chosen = [e.id for e in world.journal.of(Note) if e.tags == {"chosen": "true"}]
    assert chosen == [record.id for record in explorer.finalists]


# Teachers


def test_existing_teacher_is_only_evaluated(world: World) -> None:
    file = world.give_teacher()
    explore(world)
    first = read_job(world.journal.of(RunStarted)[0].assignment)
    assert (first.role, first.epochs, getattr(first, "keep", None)) == ("teacher", 0, None)
    assert isinstance(first, EvaluateJob) and first.weights_file == file and first.test
    assert world.journal.of(EpochFinished, id="teacher-0") == []
    assert world.journal.of(RunEnded, id="teacher-0")[0].status == "finished"


def test_mlflow_network_is_only_evaluated(tmp_path: Path) -> None:
    """It specifies no model, so nothing can be built or trained."""
    world = World(
        opened("teacher={weights: 'models:/teacher@champion'}", "knowledge=[{loss: kd}]"), tmp_path
    )
    file = world.give_teacher()
    explorer = world.explorer()
    first = next_job(explorer)
    assert first is not None and (first.epochs, first.weights_file) == (0, file)
    assert file.endswith(".pt")
    assert first.tags["teacher"] == "models:/teacher@champion"
    teacher = read_study(first.study).teacher
    assert teacher is not None and teacher.weights == "models:/teacher@champion"


def test_all_teachers_of_space_are_trained_first(tmp_path: Path) -> None:
    study = opened("teacher.model.width={choice: [16, 32]}")
    world = World(study, tmp_path)
    explorer = explore(world, slots=2)
    assert roles(world.journal)[:2] == ["teacher", "teacher"]
    widths = {
        read_study(r.job.study).student.model.width  # type: ignore[attr-defined]
        for r in explorer.records.of("teacher")
    }
    assert widths == {16, 32}
    by_file = {r.job.network_file: r for r in explorer.records.of("teacher")}
    assert len(by_file) == 2
    for trial in explorer.records.of("trial"):
        teacher = read_study(trial.job.study).teacher
        [large] = [by_file[file] for file in trial.job.teachers]
        assert teacher is not None
        assert read_study(large.job.study).student.model == teacher.model


CHAIN = (
    "scheme={name: assistant, chain: [{model: {name: mlp, depth: 2, width: 24}}, "
    "{model: {name: mlp, depth: 1, width: 24}}]}"
)


def test_assistant_is_trained_once_before_its_trials(tmp_path: Path) -> None:
    world = World(opened(CHAIN, "search.trials=3"), tmp_path)
    explorer = explore(world, slots=2)
    assert roles(world.journal)[:3] == ["teacher"] * 3
    teacher, first, second = explorer.records.of("teacher")
    assert [r.id for r in explorer.records.teachers] == [teacher.id]
    assert [r.id for r in explorer.records.assistants] == [first.id, second.id]
    assert first.job.teachers == (teacher.job.network_file,)
    assert second.job.teachers == (first.job.network_file,)
    assert not first.job.test and not second.job.test
    taught = read_study(second.job.study)
    assert taught.scheme.name == "offline" and [t.loss.name for t in taught.knowledge] == ["kd"]  # type: ignore[union-attr]
    for trial in explorer.records.of("trial", "replicate"):
        assert trial.job.teachers == (second.job.network_file,)
    # A trial begins only when those that teach it have ended.
    run_events = [
        (e.kind, e.id) for e in world.journal.events if isinstance(e, RunStarted | RunEnded)
    ]
    assert run_events.index(("end", first.id)) < run_events.index(("run", second.id))
    assert run_events.index(("end", second.id)) < run_events.index(("run", "trial-0000"))
    tag = world.journal.of(RunStarted, id="trial-0000")[0].tags["teacher"]
    assert tag.count("taught by") == 2


def test_assistant_of_another_study_is_reused(tmp_path: Path) -> None:
    first = explore(World(opened(CHAIN, "search.trials=1"), tmp_path))
    for record in first.records.of("teacher"):
        assert record.job.network_file is not None
        first.context.storage.write(record.job.network_file, TEACHER_WEIGHTS)
    second = explore(World(opened(CHAIN, "search.trials=2", "name=other"), tmp_path))
    assert [r.job.epochs for r in second.records.of("teacher")] == [0]
    changed = CHAIN.replace("width: 24}}]", "width: 16}}]")
    third = explore(World(opened(changed, "search.trials=1"), tmp_path))
    assert [r.job.epochs for r in third.records.of("teacher")] == [0, 2]


def test_generations_belong_to_their_trial(tmp_path: Path) -> None:
    world = World(
        opened(
            "scheme={name: born_again, generations: 2}",
            "search.trials=2",
            "search.replicates=1",
            "search.finalists=1",
        ),
        tmp_path,
    )
    explorer = explore(world, slots=2)
    ancestors = explorer.records.assistants
    assert len(ancestors) == 2 * 3  # two trials and one replicate, two networks before each
    for trial in explorer.records.of("trial", "replicate"):
        [file] = trial.job.teachers
        [previous] = [r for r in ancestors if r.job.network_file == file]
        study, trial_study = read_study(previous.job.study), read_study(trial.job.study)
        assert study.student == trial_study.student and study.train == trial_study.train
        assert study.seed != trial_study.seed and study.scheme.name == "offline"


def test_trial_without_its_assistant_fails_and_study_continues(tmp_path: Path) -> None:
    space = "scheme={choice: [{name: offline}, " + CHAIN.removeprefix("scheme=") + "]}"
    world = World(opened(space, "search.trials=6", "search.replicates=0"), tmp_path)
    explorer = world.explorer()
    while (job := next_job(explorer)) is not None:
        if isinstance(job, IdleJob):
            continue
        broken = job.role == "teacher" and not job.test
        result = {"failed": "diverged"} if broken else dict(synthetic_metrics(job, 3))
        tell(explorer, job, epoch=job.epochs, done=True, **result)
    trials = explorer.records.of("trial")
    schemes = {r.id: read_study(r.job.study).scheme.name for r in trials}
    assert set(schemes.values()) == {"offline", "assistant"} and not explorer.fatal
    for record in trials:
        assert record.status == ("failed" if schemes[record.id] == "assistant" else "finished")
        assert record.status == "finished" or record.reason.startswith("its teacher ")
    # What failed once is not tried again for every trial.
    assert len(explorer.records.assistants) == 2


def test_failed_teacher_ends_study_with_its_reason(world: World) -> None:
    explorer = world.explorer(slots=2)
    teacher = next_job(explorer)
    waiting = next_job(explorer)
    assert teacher is not None and isinstance(waiting, IdleJob)
    tell(explorer, teacher, failed="diverged in epoch 1")
    assert explorer.fatal == "the teacher could not be prepared: diverged in epoch 1"
    assert explorer.finished and explorer.has_work
    assert next_job(explorer) is None
    assert roles(world.journal) == ["teacher"]
    assert world.journal.of(RunEnded)[0].status == "failed"


# Draws


def test_infeasible_draws_never_become_trials(tmp_path: Path) -> None:
    study = opened("search.constraints={params: {max: 1000}}", "search.trials=6")
    world = World(study, tmp_path)
    explorer = explore(world)
    trials = explorer.records.of("trial")
    assert trials and all(r.job.metrics["params"] <= 1000 for r in trials)
    infeasible = [t for t in optuna_trials(explorer) if "raykd.infeasible" in t.user_attrs]
    assert infeasible, "the space holds students that are too large"
    ran = [t.number for t in optuna_trials(explorer) if t.state == TrialState.COMPLETE]
    for trial in infeasible:
        assert "params" in trial.user_attrs["raykd.infeasible"]
        assert trial.constraints == {"feasible": 1.0}
        assert "raykd.id" not in trial.user_attrs
        assert trial.state == TrialState.FAIL
    for number in ran:
        assert optuna_trials(explorer)[number].constraints == {"feasible": 0.0}


def test_many_slots_do_not_lead_to_infeasible_draws(tmp_path: Path) -> None:
    """TPE learns the constraint, though most feasible points are still running."""
    study = opened(
        "search.constraints={params: {max: 1000}}",
        "search.trials=80",
        "search.sampler=tpe",
        "train.optimizer.lr={uniform: [0.01, 0.1]}",
    )
    world = World(study, tmp_path)
    explorer = world.explorer(slots=60)
    teacher = next_job(explorer)
    assert teacher is not None and teacher.role == "teacher"
    world.storage.write(str(teacher.keep), TEACHER_WEIGHTS)
    tell(explorer, teacher, epoch=teacher.epochs, done=True, **synthetic_metrics(teacher, 1))
    for _ in range(60):
        job = next_job(explorer)
        assert job is not None and job.role == "trial"
    at_random = share_infeasible(optuna_trials(explorer))
    assert at_random > 0.2
    before = len(optuna_trials(explorer))
    stopped = StopAfterFirst(*(f"trial-{number:04d}" for number in range(80)))
    explorer = explore(world, slots=60, rule=stopped)
    assert share_infeasible(optuna_trials(explorer)[before:]) < at_random


def share_infeasible(trials: list[FrozenTrial]) -> float:
    return sum("raykd.infeasible" in trial.user_attrs for trial in trials) / len(trials)


def test_repeated_point_is_not_trained_again(world: World) -> None:
    world.study = searching(world.study, trials=POINTS + 4, sampler=Random(), replicates=0)
    explorer = explore(world)
    points = [frozenset(r.job.params.items()) for r in explorer.records.of("trial")]
    assert len(points) == len(set(points)) <= POINTS
    repeats = [t for t in optuna_trials(explorer) if "raykd.same_as" in t.user_attrs]
    assert repeats, "with 18 points and 22 trials some must be drawn twice"
    assert {trial.state for trial in repeats} == {TrialState.FAIL}
    assert all(trial.user_attrs["raykd.same_as"] in explorer.records for trial in repeats)


@pytest.mark.parametrize("seed", range(3))
def test_sampler_that_learns_draws_every_point_of_a_finite_space(seed: int, tmp_path: Path) -> None:
    """TPE repeats its best points, which must not end the search."""
    study = opened(f"seed={seed}", f"search.trials={POINTS}", "search.sampler={name: tpe}")
    explorer = explore(World(study, tmp_path))
    assert len(explorer.records.of("trial")) == POINTS
    assert len(optuna_trials(explorer)) < 20 * POINTS


def test_repeated_point_of_running_trial_is_failed(tmp_path: Path) -> None:
    study = opened(
        "student.model.depth=1", "student.model.width={choice: [8, 16]}",
        "knowledge[0].loss={name: kd}", "search.trials=4",
    )  # fmt: skip
    world = World(study, tmp_path)
    explorer = explore(world, slots=4)
    assert len(explorer.records.of("trial")) == 2
    repeats = [t for t in optuna_trials(explorer) if "raykd.same_as" in t.user_attrs]
    assert [t.state for t in repeats] == [TrialState.FAIL] * len(repeats)
    assert repeats, "with seed 7 the first point is drawn twice"


def test_exhausted_space_ends_draws(tmp_path: Path) -> None:
    study = opened("student.model.depth=1", "student.model.width=8", "search.trials=16")
    world = World(study, tmp_path)
    explorer = explore(world)
    assert len(explorer.records.of("trial")) == 3
    assert explorer.note == "every point of the space has been tried"
    assert explorer.finished
    assert len(optuna_trials(explorer)) < 50, "it is known how many points there are"


def test_exhausted_feasible_points_end_draws(tmp_path: Path) -> None:
    """The number of points is known, and when all others are infeasible."""
    study = opened("search.constraints={params: {max: 700}}", "search.trials=16")
    explorer = explore(World(study, tmp_path))
    assert 0 < len(explorer.records.of("trial")) < POINTS
    assert len(explorer.records.of("trial")) == len(
        {frozenset(t.params.items()) for t in optuna_known(explorer).values()}
    )
    assert explorer.note == "every point of the space has been tried"


def test_draws_end_if_nothing_is_feasible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_fits(study: BoundStudy, suggest: Any) -> Candidate:
        suggest.suggest_float("lr", 0.1, 0.2)
        raise Infeasible("too large")

    monkeypatch.setattr("raykd.tuning.search_planner.MAX_DRAWS", 20)
    monkeypatch.setattr(BoundStudy, "draw", nothing_fits)
    study = opened("train.optimizer.lr={uniform: [0.1, 0.2]}")
    explorer = explore(World(study, tmp_path))
    assert explorer.records.of("trial") == []
    assert "20 draws in a row" in explorer.note and explorer.finished
    assert len(optuna_trials(explorer)) == 20


@pytest.mark.parametrize("slots", [1, 4])
def test_grid_trains_every_point_once(slots: int, world: World) -> None:
    world.study = searching(world.study, sampler=Grid(), trials=100, replicates=0)
    explorer = explore(world, slots=slots)
    points = {frozenset(r.job.params.items()) for r in explorer.records.of("trial")}
    assert len(explorer.records.of("trial")) == len(points) == POINTS
    assert explorer.note == "every point of the space has been tried"


def test_equal_seeds_give_equal_trials(tmp_path: Path) -> None:
    draws = []
    for name in ("a", "b"):
        world = World(searching(opened(), sampler=Tpe(), trials=8), tmp_path / name)
        explore(world)
        draws.append(json.dumps(to_json([e.fields() for e in world.journal.events])))
    assert draws[0] == draws[1]


def test_optuna_gets_result_of_each_trial(world: World) -> None:
    explorer = explore(world)
    for record_id, trial in optuna_known(explorer).items():
        record = explorer.records[record_id]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [record.metrics["val_accuracy"], record.metrics["params"]]


def test_optuna_gets_each_epoch_for_one_objective(world: World) -> None:
    world.study = searching(world.study, objectives={"val_accuracy": "max"})
    explorer = explore(world)
    for trial in optuna_known(explorer).values():
        assert list(trial.intermediate_values) == [1, 2, 3]
        assert trial.value == pytest.approx(trial.intermediate_values[3])


def test_no_new_trial_after_max_hours(world: World) -> None:
    world.study = searching(world.study, max_hours=1.0, trials=50)
    now = [0.0]
    explorer = world.explorer(clock=lambda: now[0])

    def slow(job: JournalJob, epoch: int) -> Mapping[str, float]:
        now[0] += 300 if job.role == "trial" else 0
        return synthetic_metrics(job, epoch)

    FakeTune(world, explorer, slow).run()
    assert len(explorer.records.of("trial")) == 4  # 3 epochs of 5 minutes each
    assert all(r.status == "finished" for r in explorer.records.of("trial"))
    assert len(explorer.records.of("replicate")) == 4, (
        "what was chosen is trained again all the same"
    )


def test_max_hours_before_first_trial(world: World) -> None:
    world.study = searching(world.study, max_hours=1.0)
    now = [0.0]
    explorer = world.explorer(clock=lambda: now[0])
    now[0] = 1e6
    FakeTune(world, explorer).run()
    assert roles(world.journal) == ["teacher"]
    assert explorer.finished and explorer.finalists == [] and not explorer.fatal


# Ends


def planted(best: str, misleading: str) -> Any:
    """Validation favors one trial, everything else another."""

    def metrics(job: JournalJob, epoch: int) -> dict[str, float]:
        values = {"val_accuracy": 0.5, "test_accuracy": 0.5, "train_accuracy": 0.5}
        if job.id == best:
            values |= {"val_accuracy": 0.9, "test_accuracy": 0.1, "train_accuracy": 0.1}
        if job.id == misleading:
            values |= {"val_accuracy": 0.4, "test_accuracy": 1.0, "train_accuracy": 1.0}
        return values

    return metrics


def test_only_validation_selects(world: World) -> None:
    world.study = searching(world.study, objectives={"val_accuracy": "max"}, finalists=1)
    explorer = explore(world, planted("trial-0002", "trial-0001"))
    assert [r.id for r in explorer.finalists] == ["trial-0002"]
    assert [r.id for r in explorer.records.front({"val_accuracy": "max"})] == ["trial-0002"]


def test_early_best_epoch_is_ignored(world: World) -> None:
    """Selection uses the last epoch, not the best."""

    def peaked(job: JournalJob, epoch: int) -> dict[str, float]:
        high = job.id == "trial-0001" and epoch == 1
        return {"val_accuracy": 0.99 if high else 0.5 + 0.01 * (job.id == "trial-0003")}

    world.study = searching(world.study, objectives={"val_accuracy": "max"}, finalists=1)
    assert [r.id for r in explore(world, peaked).finalists] == ["trial-0003"]


class StopAfterFirst:
    """Stops the named trials after their first epoch."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def keeps(self, trial: Any, result: Mapping[str, Any]) -> bool:
        return trial.config["job"].id not in self.ids


def test_stopped_trials_are_never_finalists(world: World) -> None:
    world.study = searching(world.study, finalists=9, replicates=1)
    explorer = explore(
        world, planted("trial-0001", "none"), rule=StopAfterFirst("trial-0001", "trial-0002")
    )
    for record_id in ("trial-0001", "trial-0002"):
        record = explorer.records[record_id]
        assert record.status == "stopped" and len(record.epochs) == 1
        assert record not in explorer.finalists
    assert explorer.finalists
    states = {record_id: trial.state for record_id, trial in optuna_known(explorer).items()}
    assert states["trial-0001"] == TrialState.PRUNED
    assert states["trial-0000"] == TrialState.COMPLETE
    assert all(len(r.epochs) == 3 for r in explorer.records.of("replicate", "alone"))


def test_early_stopping_applies_only_to_trials(world: World) -> None:
    names: list[str] = []

    class Never:
        def keeps(self, trial: Any, result: Mapping[str, Any]) -> bool:
            names.append(trial.config["job"].id)
            return True

    explore(world, rule=Never())
    assert {name.split("-")[0] for name in names} == {"trial"} and not any("/" in n for n in names)
    assert names.count("trial-0000") == 2, "not after the last epoch"


def test_pareto_asha_in_search(world: World) -> None:
    world.study = searching(world.study, trials=9, replicates=1)
    rule = ParetoAsha(world.study.settings.search.objectives, 3, 1, 3)
    explorer = explore(world, rule=rule)
    status = [r.status for r in explorer.records.of("trial")]
    assert "stopped" in status and "finished" in status
    assert explorer.records.front(world.study.settings.search.objectives)


def test_failed_trial_is_never_finalist_and_others_continue(world: World) -> None:
    explorer = world.explorer()
    tune = FakeTune(world, explorer)
    fine = tune._results

    def results(job: Any) -> Any:
        if job.id != "trial-0001":
            return fine(job)
        failed = {"failed": "diverged", "traceback": "..."}
        return iter([next(fine(job)), failed])

    tune._results = results
    tune.run()
    record = explorer.records["trial-0001"]
    assert (record.status, record.reason, len(record.epochs)) == ("failed", "diverged", 1)
    assert record not in explorer.finalists
    assert len(explorer.records.of("trial")) == 4
    states = {record_id: trial.state for record_id, trial in optuna_known(explorer).items()}
    assert states["trial-0001"] == TrialState.FAIL
    constraints = optuna_known(explorer)["trial-0001"].constraints
    assert constraints["failure"] > 0, "the sampler avoids such points"
    assert explorer.finished and not explorer.fatal


def test_trial_without_finite_objective_is_never_finalist(world: World) -> None:
    def strange(job: JournalJob, epoch: int) -> dict[str, float]:
        accuracy = {"trial-0000": float("nan"), "trial-0001": float("inf")}
        metrics = synthetic_metrics(job, epoch)
        return metrics | {"val_accuracy": accuracy.get(job.id, metrics["val_accuracy"])}

    explorer = explore(world, strange)
    assert {r.id for r in explorer.finalists} <= {"trial-0002", "trial-0003"}
    states = {record_id: trial.state for record_id, trial in optuna_known(explorer).items()}
    assert states["trial-0000"] == states["trial-0001"] == TrialState.FAIL


def test_failed_replicate_keeps_others(world: World) -> None:
    explorer = world.explorer()
    tune = FakeTune(world, explorer)
    fine = tune._results

    def results(job: Any) -> Any:
        if not job.id.endswith("/seed-1"):
            return fine(job)
        return iter([{"failed": "no memory"}])

    tune._results = results
    tune.run()
    assert {r.status for r in explorer.records.of("alone")} == {"finished"}
    assert sorted(r.status for r in explorer.records.of("replicate")) == [
        *["failed"] * 2,
        *["finished"] * 2,
    ]


def test_conclude_is_idempotent(world: World) -> None:
    explorer = explore(world)
    before = list(world.journal.events)
    explorer.end("trial-0000", "failed", "late")
    explorer.end("trial-0000", "stopped")
    assert world.journal.events == before
    assert explorer.records["trial-0000"].status == "finished"


def test_states_are_removed_when_training_ends(world: World) -> None:
    explore(world)
    states = Path(world.storage.root).rglob("states/*")
    assert list(states) == []


# Failures of all trials


def failing(world: World, reason: Callable[[int], str]) -> SearchPlanner:
    """Run a search of many trials that all fail."""
    world.give_teacher()
    explorer = world.explorer()
    tune = FakeTune(world, explorer)
    train = tune._results

    def results(job: Any) -> Any:
        if getattr(job, "role", "") != "trial":
            return train(job)
        return iter([{"failed": reason(len(explorer.records.of("trial")))}])

    tune._results = results
    tune.run()
    return explorer


def test_study_ends_if_all_trials_fail_for_same_reason(tmp_path: Path) -> None:
    study = searching(opened(), trials=12)
    explorer = failing(World(study, tmp_path), lambda n: f"KeyError: 'layer{n}'")
    assert explorer.fatal == "all 5 trials have failed alike: KeyError: 'layer5'"


@pytest.mark.parametrize("begin", [OUT_OF_MEMORY, DIVERGED, ""])
def test_points_that_fail_by_themselves_end_no_study(tmp_path: Path, begin: str) -> None:
    study = searching(opened(), trials=12)
    causes = ("no such layer", "no such loss")
    reason = (lambda n: begin + " in step 3") if begin else (lambda n: causes[n % 2])
    explorer = failing(World(study, tmp_path), reason)
    assert not explorer.fatal and len(explorer.records.of("trial")) == 12


@pytest.mark.parametrize("begin", [OUT_OF_MEMORY, DIVERGED])
def test_sampler_learns_which_points_fail_by_themselves(tmp_path: Path, begin: str) -> None:
    explorer = failing(World(opened(), tmp_path), lambda n: f"{begin}: 2")
    trials = optuna_known(explorer).values()
    assert trials and all(trial.constraints["failure"] == 1 for trial in trials)


def test_sampler_ignores_other_failures(tmp_path: Path) -> None:
    explorer = failing(World(opened(), tmp_path), lambda n: f"KeyError: {n % 2 * 'a'}")
    trials = optuna_known(explorer).values()
    assert trials and not any("failure" in trial.constraints for trial in trials)
    assert {trial.state for trial in trials} == {TrialState.FAIL}


# Slots that die


def lose_slot(explorer: SearchPlanner, job: Any, reason: str) -> Any:
    """Lose the slot of a job as often as the study allows; return the job as it is given again."""
    reassigned = job
    for _ in range(explorer.study.settings.cluster.max_failures):
        explorer.slot_failed(job.id, reason)
        reassigned = next_job(explorer)
        assert reassigned is not None and reassigned.id == job.id
    return reassigned


def test_slot_that_never_started_ends_study(world: World) -> None:
    """After as many attempts as the study allows no other slot will do better."""
    world.give_teacher()
    explorer = world.explorer()
    first = next_job(explorer)
    assert first is not None
    tell(explorer, first, epoch=0, done=True, val_accuracy=0.9)
    trial = next_job(explorer)
    assert trial is not None and trial.role == "trial"
    lose_slot(explorer, trial, "no such device")
    explorer.slot_failed(trial.id, "no such device")
    assert next_job(explorer) is None
    assert explorer.fatal == "no slot could be started: no such device"
    assert explorer.records["trial-0000"].reason == "no such device"


def test_every_job_of_lost_slot_is_reassigned(world: World) -> None:
    """Whatever its role; nothing is started, reported or drawn twice."""
    explorer, undisturbed = world.explorer(), World(world.study, Path(world.storage.root, "other"))
    tune = FakeTune(world, explorer)
    train, lost = tune._results, set()

    def results(job: Any) -> Any:
        if job.id in lost or isinstance(job, IdleJob):
            yield from train(job)
            return
        lost.add(job.id)
        first = next(train(job))  # one epoch, and its slot is gone
        yield first
        explorer.slot_failed(job.id, "its node went away")
        tune._live = [(t, r) for t, r in tune._live if t.config["job"].id != job.id]
        yield {"epoch": 0, "done": False}

    tune._results = results
    tune.run()
    assert {record.role for record in explorer.records.of(*ROLES)} >= {"teacher", "trial", "alone"}
    assert not explorer.fatal and explorer.finished
    assert {record.status for record in explorer.records.of(*ROLES)} == {"finished"}
    for record in explorer.records.of(*ROLES):
        epochs = [e.epoch for e in world.journal.of(EpochFinished, id=record.id)]
        assert epochs == list(range(1, record.job.epochs + 1)), record.id
        assert len(world.journal.of(RunStarted, id=record.id)) == 1
        assert len(world.journal.of(RunEnded, id=record.id)) == 1
    explore(undisturbed)
    assert len(world.trained) == len(undisturbed.trained)
    assert [t.state for t in optuna_known(explorer).values()] == [TrialState.COMPLETE] * 4


def test_job_of_repeatedly_lost_slots_fails_alone(world: World) -> None:
    explorer = world.explorer()
    tune = FakeTune(world, explorer)
    train, losses = tune._results, []

    def results(job: Any) -> Any:
        if job.id != "trial-0001":
            yield from train(job)
            return
        losses.append(job.id)
        explorer.slot_failed(job.id, "its node went away")
        tune._live = [(t, r) for t, r in tune._live if t.config["job"] is not job]
        yield {"epoch": 0, "done": False}

    tune._results = results
    tune.run()
    assert not explorer.fatal and explorer.finished
    assert len(losses) == 1 + explorer.study.settings.cluster.max_failures
    assert explorer.records["trial-0001"].reason == "its node went away"
    assert len(explorer.records.of("trial")) == 4


def test_slot_that_was_dead_before_its_job_began_does_not_count(world: World) -> None:
    explorer = world.explorer()
    job = next_job(explorer)
    assert job is not None
    for _ in range(10):
        explorer.slot_failed(job.id, "gone", began=False)
        assert next_job(explorer) == job
    assert world.journal.of(RunEnded) == []


def test_slot_that_dies_while_idle_fails_no_training(world: World) -> None:
    explorer = world.explorer(slots=2)
    next_job(explorer)
    waiting = next_job(explorer)
    assert isinstance(waiting, IdleJob)
    explorer.slot_failed(waiting.id, "gone")
    assert world.journal.of(RunEnded) == []


# Books


def test_epoch_metrics_are_equal_live_and_replayed(world: World) -> None:
    explorer = world.explorer()
    teacher = next_job(explorer)
    assert teacher is not None
    history = [{"val_accuracy": 0.1}]
    tell(explorer, teacher, epoch=2, done=True, val_accuracy=0.2, history=history)
    trial = next_job(explorer)
    assert trial is not None
    history = [{"val_accuracy": 0.1}, {"val_accuracy": 0.2}]
    tell(explorer, trial, epoch=3, done=True, val_accuracy=0.3, history=history)
    metrics = [e.metrics for e in world.journal.of(EpochFinished, id=trial.id)]
    assert [m["val_accuracy"] for m in metrics] == [0.1, 0.2, 0.3]
    assert len({frozenset(m) for m in metrics}) == 1
    assert epochs_of(world.journal.events) == {"teacher-0": [1, 2], "trial-0000": [1, 2, 3]}
