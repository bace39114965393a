from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from helpers.events import SLOTS, VALUES, Clock, Teller, watched
from raykd.report.run_state import Budget, RunState
from raykd.tracking.events import (
    EpochFinished,
    Event,
    Note,
    RunEnded,
    SlotsPlanned,
    StudyEnded,
    parse,
)
from raykd.tracking.journal import Journal


def test_phases_follow_search(teller: Teller) -> None:
    state = RunState(Clock())
    seen: list[str] = []
    for event in teller.whole():
        state.apply(event)
        if state.phase != (seen[-1] if seen else ""):
            seen.append(state.phase)
    assert seen[:5] == [
        "reading the data",
        "waiting for Ray",
        "starting the slots",
        "teacher 1/3 epochs",
        "teacher 2/3 epochs",
    ]
    assert "trials 4/8: 1 running" in seen
    assert "trials 5/8: 1 running, 1 stopped early" in seen
    assert "replicates 11/12" in seen
    assert seen[-1] == "uploading to MLflow"


def test_progress_only_grows_and_ends_at_one(teller: Teller) -> None:
    state, last = RunState(Clock()), 0.0
    for event in teller.whole():
        state.apply(event)
        assert state.estimate.progress >= last - 1e-12 or isinstance(event, Note)
        last = state.estimate.progress
    assert last == 1.0


RECORDED = Path(__file__).with_name("quickstart_events.jsonl")
"""Events of a quickstart run on two cores, with the milliseconds since its start."""


def read_event(line: str) -> Event:
    event = parse(json.loads(line))
    assert event is not None, line
    return event


def test_progress_grows_in_recorded_run() -> None:
    events = [read_event(line) for line in RECORDED.read_text().splitlines()]
    clock = Clock()
    clock.now = 0.0
    state, last = RunState(clock), 0.0
    whole = next(event.at for event in events if isinstance(event, StudyEnded))
    for event in events:
        clock.now = event.at / 1000
        if isinstance(event, SlotsPlanned):
            state.plan, state.budget = SLOTS, Budget(**event.budget)  # type: ignore[arg-type]
            continue
        state.apply(event)
        assert state.estimate.progress >= last
        last = state.estimate.progress
        if isinstance(event, EpochFinished | RunEnded) and last:  # 0 before two epochs have ended
            assert state.estimate.progress == pytest.approx(event.at / whole, abs=0.16), event
    assert last == 1.0


@pytest.mark.parametrize(("start", "epoch"), [(60.0, 10.0), (1.0, 30.0)])
def test_progress_rises_with_every_epoch_of_teacher(
    teller: Teller, start: float, epoch: float
) -> None:
    """It stood still after an early estimate that was too high, until the search caught up."""
    clock = Clock()
    state, shares = RunState(clock), [0.0]
    for event in [*teller.opening(), *teller.preparation(), *teller.teacher()]:
        clock.now += epoch if isinstance(event, EpochFinished) else start
        state.apply(event)
        if isinstance(event, EpochFinished):
            shares.append(state.estimate.progress)
    for event in [*teller.trial(0, 0.9), *teller.trial(1, 0.8)]:
        clock.now += 2 * epoch  # slower than the teacher's pace lets expect
        state.apply(event)
        if isinstance(event, EpochFinished):
            shares.append(state.estimate.progress)
    assert len(shares) == 1 + 3 + 8 and shares[1] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[1:]))
    waiting = state.estimate.progress
    clock.now += epoch
    assert waiting < state.estimate.progress < 1
    passed = state.estimate.progress
    clock.now += 1000 * epoch
    assert state.estimate.progress == pytest.approx(passed, abs=0.02), "it waits for the next epoch"


def test_slow_start_is_forgotten(teller: Teller) -> None:
    """The share shown rises at the pace of the last epochs, not of all of them."""
    shares = []
    for slow in (1.0, 50.0):
        clock = Clock()
        state = RunState(clock)
        for event in [*teller.opening(), *teller.preparation(), *teller.trial(0, 0.9)]:
            clock.now += slow
            state.apply(event)
        began = clock.now
        run = next(iter(teller.trial(1, 0.8, status="running", epochs=1)))
        state.apply(run)
        for epoch in range(1, 71):
            clock.now += 1.0
            state.apply(teller.epoch("trial-0001", epoch, 0.5))
        assert state.budget is not None and clock.now - began == 70
        shares.append(state.estimate._estimate_rest(state.budget))
    assert shares[0] == pytest.approx(shares[1])


def test_no_time_left_is_claimed_before_students_were_trained(teller: Teller) -> None:
    state, _ = watched([*teller.opening(), *teller.preparation(), *teller.teacher()], each=10)
    assert state.estimate.time_left is None


def test_time_left_uses_pace_so_far(teller: Teller) -> None:
    history = [*teller.opening(), *teller.preparation(), *teller.teacher(), *teller.trial(0, 0.9)]
    state, clock = watched(history, each=2.0)
    # Its 4 epochs and its end came 10 s after it began.  To come: 7 trials, 12 replicates.
    assert state.estimate.time_left == pytest.approx((7 + 12) * 4 * 10 / 4)
    clock.now += 4.0
    assert state.estimate.time_left == pytest.approx((7 + 12) * 4 * 14 / 4), (
        "a pause slows the pace"
    )


def test_early_stopping_shortens_time_left(teller: Teller) -> None:
    history = [*teller.opening(), *teller.preparation(), *teller.teacher()]
    history += [*teller.trial(0, 0.9), *teller.trial(1, 0.5, epochs=2, status="stopped")]
    state, _ = watched(history)
    pace = (5 + 4) / 6  # 6 epochs in 9 s
    assert state.estimate.time_left == pytest.approx((6 * 3 + 12 * 4) * pace)


def test_front_and_best_are_those_of_whole_trials(teller: Teller) -> None:
    state, _ = watched(teller.halfway())
    assert [record.id for record in state.front] == ["trial-0000", "trial-0001"]
    assert state.front[0].metrics["val_accuracy"] == VALUES[0]
    assert state.plan == SLOTS
    assert state.teacher is not None and state.teacher.metrics["val_accuracy"] == 0.9861


def test_resumed_search_shows_earlier_trials(teller: Teller) -> None:
    with Journal(teller.folder.journal) as journal:
        for event in [*teller.opening(), *teller.teacher(), *teller.trial(0, 0.9)]:
            journal.append(event)
    state, _ = watched([*teller.opening(), *teller.preparation(), *teller.trial(1, 0.8)])
    assert [record.id for record in state.records.of("teacher", "trial")] == [
        "teacher-0",
        "trial-0000",
        "trial-0001",
    ]
    passed = state.estimate.elapsed / (
        state.estimate.elapsed + 19 * 4
    )  # 1 s an epoch; 19 trainings of 4 epochs left
    assert state.estimate.progress == pytest.approx(passed, abs=0.05)
