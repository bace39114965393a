from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.events import SLOTS, VALUES, Clock, Teller, watched
from raykd.report.progress import Budget, View
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


def test_phases_follow_the_search(teller: Teller) -> None:
    view = View(Clock())
    seen: list[str] = []
    for event in teller.whole():
        view.apply(event)
        if view.phase != (seen[-1] if seen else ""):
            seen.append(view.phase)
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
    view, last = View(Clock()), 0.0
    for event in teller.whole():
        view.apply(event)
        assert view.progress >= last - 1e-12 or isinstance(event, Note)
        last = view.progress
    assert last == 1.0


RECORDED = Path(__file__).with_name("quickstart_events.jsonl")
"""The events of a run of the quickstart study on two cores, with the seconds since its start."""


def read_event(line: str) -> Event:
    event = parse(json.loads(line))
    assert event is not None, line
    return event


def test_the_share_shown_grows_with_time_in_a_recorded_run() -> None:
    events = [read_event(line) for line in RECORDED.read_text().splitlines()]
    clock = Clock()
    clock.now = 0.0
    view, last = View(clock), 0.0
    whole = next(event.at for event in events if isinstance(event, StudyEnded))
    for event in events:
        clock.now = event.at
        if isinstance(event, SlotsPlanned):
            view.plan, view.budget = SLOTS, Budget(**event.budget)  # type: ignore[arg-type]
            continue
        view.apply(event)
        assert view.progress >= last
        last = view.progress
        if isinstance(event, EpochFinished | RunEnded):
            assert view.progress == pytest.approx(event.at / whole, abs=0.16), event
    assert last == 1.0


def test_a_slow_start_is_forgotten(teller: Teller) -> None:
    """The share shown rises at the pace of the last epochs, not of all of them."""
    shares = []
    for slow in (1.0, 50.0):
        clock = Clock()
        view = View(clock)
        for event in [*teller.opening(), *teller.preparation(), *teller.trial(0, 0.9)]:
            clock.now += slow
            view.apply(event)
        began = clock.now
        run = next(iter(teller.trial(1, 0.8, status="running", epochs=1)))
        view.apply(run)
        for epoch in range(1, 71):
            clock.now += 1.0
            view.apply(teller.epoch("trial-0001", epoch, 0.5))
        assert view.budget is not None and clock.now - began == 70
        shares.append(view._estimated_rest(view.budget))
    assert shares[0] == pytest.approx(shares[1])


def test_no_time_left_is_claimed_before_students_were_trained(teller: Teller) -> None:
    view, _ = watched([*teller.opening(), *teller.preparation(), *teller.teacher()], each=10)
    assert view.time_left is None


def test_time_left_is_what_is_to_come_at_the_pace_so_far(teller: Teller) -> None:
    told = [*teller.opening(), *teller.preparation(), *teller.teacher(), *teller.trial(0, 0.9)]
    view, clock = watched(told, each=2.0)
    # Its 4 epochs and its end came 10 s after it began.  To come: 7 trials, 12 replicates.
    assert view.time_left == pytest.approx((7 + 12) * 4 * 10 / 4)
    clock.now += 4.0
    assert view.time_left == pytest.approx((7 + 12) * 4 * 14 / 4), "a pause slows the pace"


def test_early_stopping_shortens_the_time_left(teller: Teller) -> None:
    told = [*teller.opening(), *teller.preparation(), *teller.teacher()]
    told += [*teller.trial(0, 0.9), *teller.trial(1, 0.5, epochs=2, status="stopped")]
    view, _ = watched(told)
    pace = (5 + 4) / 6  # 6 epochs in 9 s
    assert view.time_left == pytest.approx((6 * 3 + 12 * 4) * pace)


def test_front_and_best_are_those_of_whole_trials(teller: Teller) -> None:
    view, _ = watched(teller.halfway())
    assert [record.id for record in view.front] == ["trial-0000", "trial-0001"]
    assert view.front[0].metrics["val_accuracy"] == VALUES[0]
    assert view.plan == SLOTS
    assert view.teacher is not None and view.teacher.metrics["val_accuracy"] == 0.9861


def test_a_search_gone_on_with_knows_what_was_before(teller: Teller) -> None:
    with Journal(teller.folder.journal) as journal:
        for event in [*teller.opening(), *teller.teacher(), *teller.trial(0, 0.9)]:
            journal.append(event)
    view, _ = watched([*teller.opening(), *teller.preparation(), *teller.trial(1, 0.8)])
    assert [record.id for record in view.records.of("teacher", "trial")] == [
        "teacher-0",
        "trial-0000",
        "trial-0001",
    ]
    passed = view.elapsed / (view.elapsed + 19 * 4)  # 1 s an epoch; 19 trainings of 4 epochs left
    assert view.progress == pytest.approx(passed, abs=0.05)
