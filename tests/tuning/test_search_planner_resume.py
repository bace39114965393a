"""Interrupted searches resume at any point: no finished epoch is lost or repeated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from helpers.search_cases import (
    POINTS,
    FakeTune,
    RecordingBus,
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
from raykd.runtime.jobs import JournalJob, Report, read_job
from raykd.study.candidate import Candidate
from raykd.study.open_study import BoundStudy, OpenStudy
from raykd.study.samplers import Grid, Random
from raykd.tracking.events import EpochFinished, Event, Note, RunEnded, RunStarted
from raykd.tracking.journal import EventBus
from raykd.tuning.records import Records
from raykd.tuning.search_planner import SearchPlanner


class Crash(BaseException):
    """The driver is killed."""


class Fragile(EventBus):
    """Journal whose process dies at its n-th event, just before or just after writing it."""

    def __init__(self, journal: RecordingBus, dies_at: int, *, written: bool) -> None:
        self.journal, self.dies_at, self.written = journal, dies_at, written
        self.count = 0

    def publish(self, event: Event) -> Event:
        self.count += 1
        if self.count == self.dies_at and not self.written:
            raise Crash
        published = self.journal.publish(event)
        if self.count == self.dies_at:
            raise Crash
        return published


def small() -> OpenStudy:
    return searching(opened(), trials=3, finalists=1, replicates=1, sampler=Grid())


def without_study(recorded: RecordingBus) -> dict[str, Any]:
    """Result of a search: the end and the epoch metrics of each training."""
    records = Records.from_events(recorded.events)
    return {
        record.id: (record.role, record.status, record.epochs, record.job.plain())
        for record in records.of("teacher", "trial", "replicate", "alone")
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(small(), tmp_path_factory.mktemp("uninterrupted"))
    explore(world)
    return world


EVENTS = 1 + 2 + 1 + 3 * (1 + 3 + 1) + 1 + 2 * (1 + 3 + 1)
"""teacher, three trials, the note of the chosen one, its replicate and its null arm."""


def test_uninterrupted_search_has_expected_events(uninterrupted: World) -> None:
    assert len(uninterrupted.journal.events) == EVENTS


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("dies_at", range(1, EVENTS + 1))
def test_interrupted_at_every_point(
    dies_at: int, written: bool, uninterrupted: World, tmp_path: Path
) -> None:
    world = World(small(), tmp_path)
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, dies_at, written=written))
    recorded = list(world.journal.events)
    explorer = explore(world)
    assert explorer.finished and not explorer.fatal
    assert world.journal.events[: len(recorded)] == recorded
    assert all(e in ([1, 2, 3], [1, 2]) for e in epochs_of(world.journal.events).values())
    assert len(world.trained) == len(set(world.trained)), "no epoch is trained twice"
    actual, expected = without_study(world.journal), without_study(uninterrupted.journal)
    assert [ids(actual, role) for role in ROLES] == [ids(expected, role) for role in ROLES]
    assert {state for _, state, _, _ in actual.values()} == {"finished"}
    ended = [event.id for event in world.journal.of(RunEnded)]
    assert len(ended) == len(set(ended))
    states = [t.state for t in explorer.optuna_study.get_trials(deepcopy=False)]
    assert TrialState.RUNNING not in states and TrialState.FAIL not in states


ROLES = ("teacher", "trial", "replicate", "alone")


def ids(results: Mapping[str, Any], role: str) -> list[str]:
    """Of the roles that come after the choice the numbers alone: another order of draws makes
    another trial the best."""
    names = [name for name, (its, *_) in results.items() if its == role]
    return [name.split("/")[-1] for name in names]


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("dies_at", range(4, 60, 5))
def test_repeated_interruptions_with_several_slots(
    dies_at: int, slots: int, tmp_path: Path
) -> None:
    world = World(searching(opened(), trials=5, finalists=2, replicates=2), tmp_path)
    explorer = None
    for _ in range(60):
        journal = Fragile(world.journal, dies_at, written=dies_at % 2 == 0)
        with contextlib.suppress(Crash):
            explorer = explore(world, journal=journal, slots=slots)
            break
    assert explorer is not None and explorer.finished
    assert len(explorer.records.of("trial")) == 5
    assert len(explorer.records.of("replicate")) == len(explorer.records.of("alone")) == 4
    assert all(e in ([1, 2, 3], [1, 2]) for e in epochs_of(world.journal.events).values())
    assert len(world.trained) == len(set(world.trained))
    points = {json.dumps(r.job.params) for r in explorer.records.of("trial")}
    assert len(points) == 5


@pytest.mark.parametrize("draw_number", range(1, 12))
def test_grid_interrupted_while_drawing_loses_no_point(
    draw_number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after the n-th drawn value: the point is incomplete."""
    world = World(searching(opened(), trials=100, replicates=0, sampler=Grid()), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(BoundStudy, "draw", dying_at(draw_number))
        with pytest.raises(Crash):
            explore(world)
    explorer = explore(world)
    points = {json.dumps(r.job.params) for r in explorer.records.of("trial")}
    assert len(points) == len(explorer.records.of("trial")) == POINTS
    states = {t.state for t in explorer.optuna_study.get_trials(deepcopy=False)}
    assert states == {TrialState.COMPLETE}


def dying_at(draw_number: int) -> Any:
    draw, count = BoundStudy.draw, [0]

    class Dying:
        def __init__(self, trial: Any) -> None:
            self.trial = trial

        def __getattr__(self, name: str) -> Any:
            answer = getattr(self.trial, name)
            if not name.startswith("suggest"):
                return answer

            def suggest(*args: Any, **kwargs: Any) -> Any:
                count[0] += 1
                if count[0] == draw_number:
                    raise Crash
                return answer(*args, **kwargs)

            return suggest

    def dying(study: BoundStudy, trial: Any) -> Candidate:
        suggest: Any = Dying(trial)
        return draw(study, suggest)

    return dying


def test_incomplete_point_that_is_not_needed_is_closed(tmp_path: Path) -> None:
    world = World(searching(opened(), max_hours=1.0), tmp_path)
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, 5, written=False))  # the first trial's run
    now = [0.0]
    explorer = world.explorer(clock=lambda: now[0])
    now[0] = 1e6
    FakeTune(world, explorer).run()
    assert explorer.finished and explorer.records.of("trial") == []
    [trial] = explorer.optuna_study.get_trials(deepcopy=False)
    assert trial.state == TrialState.FAIL


def test_resume_reports_missing_results_to_optuna(tmp_path: Path) -> None:
    world = World(small(), tmp_path)
    end = 4 + 5  # the first trial's end
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, end, written=True))
    assert world.journal.events[-1].kind == "end"
    explorer = world.explorer()
    [trial] = explorer.optuna_study.get_trials(deepcopy=False)
    record = explorer.records["trial-0000"]
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [record.metrics["val_accuracy"], record.metrics["params"]]


def test_stopped_and_failed_trials_stay_so(tmp_path: Path) -> None:
    world = World(small(), tmp_path)
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, 4 + 5 + 2, written=True))
    explorer = world.explorer()
    explorer.end("trial-0001", "stopped")
    resumed = explore(world)
    assert resumed.records["trial-0001"].status == "stopped"
    assert len(resumed.records["trial-0001"].epochs) == 1


def test_trained_points_are_known_after_resume(tmp_path: Path) -> None:
    world = World(searching(opened(), trials=6, replicates=0, sampler=Random()), tmp_path)
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, 4 + 3 * 5, written=True))
    world.study = searching(world.study, trials=100)
    explorer = explore(world)
    points = [json.dumps(r.job.params) for r in explorer.records.of("trial")]
    assert len(points) == len(set(points)) == POINTS


def test_finished_search_has_no_jobs_on_resume(uninterrupted: World) -> None:
    starts = len(uninterrupted.journal.of(RunStarted))
    explorer = explore(uninterrupted)
    assert explorer.finished and explorer.finalists
    assert len(uninterrupted.journal.of(RunStarted)) == starts


def test_no_draws_after_selection(tmp_path: Path) -> None:
    """Time limit reached, finalists selected, search interrupted: the selection is final."""
    world = World(searching(opened(), trials=50, max_hours=1.0, finalists=1), tmp_path)
    now = [0.0]

    def slow(job: JournalJob, epoch: int) -> Mapping[str, float]:
        now[0] += 300 if job.role == "trial" else 0
        return synthetic_metrics(job, epoch)

    journal = Fragile(world.journal, 4 + 4 * 5 + 1 + 3, written=True)
    explorer = world.explorer(journal=journal, clock=lambda: now[0])
    with pytest.raises(Crash):
        FakeTune(world, explorer, slow).run()
    assert roles(world.journal) == ["teacher", *["trial"] * 4, "replicate"]
    resumed = explore(world)
    assert roles(world.journal) == ["teacher", *["trial"] * 4, *["replicate", "alone"] * 2]
    assert {r.job.parent for r in resumed.records.of("replicate")} == {resumed.finalists[0].id}


@contextlib.contextmanager
def interrupted(world: World, dies_at: int) -> Iterator[None]:
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, dies_at, written=True))
    yield


def test_failed_teacher_is_trained_again(tmp_path: Path) -> None:
    world = World(small(), tmp_path)
    explorer = world.explorer()
    teacher = next_job(explorer)
    assert teacher is not None
    tell(explorer, teacher, failed="out of memory")
    assert explorer.fatal
    resumed = explore(world)
    assert not resumed.fatal
    assert [(r.id, r.status) for r in resumed.records.of("teacher")] == [
        ("teacher-0", "failed"),
        ("teacher-1", "finished"),
    ]
    assert len(resumed.records.of("trial")) == 3


def test_teacher_with_lost_file_is_trained_again(tmp_path: Path) -> None:
    """For example after the study's folder was moved without its teachers."""
    world = World(small(), tmp_path)
    with interrupted(world, 4 + 5):
        [file] = [r.network_file for r in assignments(world.journal) if r.role == "teacher"]
        assert file is not None
        world.storage.remove(file)
    resumed = explore(world)
    assert [r.id for r in resumed.records.of("teacher")] == ["teacher-0", "teacher-1"]
    assert world.storage.exists(file)
    assert {r.status for r in resumed.records.of("teacher", "trial")} == {"finished"}


def test_lost_training_states_lose_no_epoch(tmp_path: Path) -> None:
    world = World(small(), tmp_path)
    with interrupted(world, 4 + 3):  # the first trial's second epoch
        for state in Path(world.storage.root).rglob("states/*"):
            state.unlink()
    resumed = explore(world)
    assert epochs_of(world.journal.events)["trial-0000"] == [1, 2, 3]
    assert world.trained.count(("trial-0000", 1)) == 2
    assert resumed.finished


def test_truncated_journal_line_is_written_again(tmp_path: Path) -> None:
    """Optuna has a trial whose first journal line was lost; it becomes the same trial."""
    world = World(small(), tmp_path)
    with interrupted(world, 5):
        lost = world.journal.events.pop()
        assert isinstance(lost, RunStarted) and lost.role == "trial"
    explorer = explore(world)
    starts = world.journal.of(RunStarted, id="trial-0000")
    assert len(starts) == 1 and starts[0].params == lost.params
    assert len(explorer.optuna_study.get_trials(deepcopy=False)) == 3


def assignments(recorded: RecordingBus) -> list[JournalJob]:
    return [read_job(event.assignment) for event in recorded.of(RunStarted)]


def test_running_trainings_precede_new_ones(tmp_path: Path) -> None:
    world = World(searching(opened(), trials=6), tmp_path)
    with pytest.raises(Crash):
        explore(world, journal=Fragile(world.journal, 14, written=True), slots=3)
    running = [r.id for r in Records.from_events(world.journal.events).running("trial")]
    assert len(running) == 3
    explorer: SearchPlanner = world.explorer()
    first = [next_job(explorer) for _ in range(4)]
    assert [a and a.id for a in first] == [*running, "trial-0003"]


def test_epochs_that_damaged_state_repeats_are_recorded_once(tmp_path: Path) -> None:
    world = World(small(), tmp_path)
    world.give_teacher()
    explorer = world.explorer()
    tell(explorer, next_job(explorer), epoch=0, done=True, val_accuracy=0.9)
    trial = next_job(explorer)
    figures = {epoch: {"val_accuracy": epoch / 10} for epoch in (1, 2, 3)}
    for epoch in (1, 2):
        explorer.report(trial.id, Report(epoch, figures[epoch], done=False))
    explorer = world.explorer()
    assert next_job(explorer).id == trial.id
    epochs = len(world.journal.of(EpochFinished, id=trial.id))
    warnings = ("states/x is damaged; the training starts over",)
    explorer.report(trial.id, Report(1, figures[1], done=False, warnings=warnings))
    for epoch in (2, 3):
        explorer.report(trial.id, Report(epoch, figures[epoch], done=epoch == 3))
    assert [e.epoch for e in world.journal.of(EpochFinished, id=trial.id)] == [1, 2, 3]
    (note,) = [n for n in world.journal.of(Note, id=trial.id) if "warning_state" in n.tags]
    assert epochs == 2 and note.tags["warning_state"] == f"{trial.id}: {warnings[0]}"
