"""Tests of the displays of a running search."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace

import pytest
from rich.console import Console

from helpers.events import Clock, Teller, watched
from raykd.report import Shielded, search_display
from raykd.report.failures import FailureAnnouncer
from raykd.report.lines import EpochLines, JsonLines, PlainLines, outcome_line
from raykd.report.live import LiveDisplay, picture
from raykd.report.run_state import RunState
from raykd.tracking.events import Event, Note, RunEnded, RunStarted, SlotsPlanned


def drawn(state: RunState, width: int, height: int) -> list[str]:
    console = Console(
        width=width, height=height, file=io.StringIO(), record=True, color_system=None
    )
    console.print(picture(state, console.options))
    return console.export_text(styles=False).splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (60, 12), (40, 10)])
def test_picture_fits_terminal_at_every_moment(teller: Teller, width: int, height: int) -> None:
    state = RunState(Clock())
    for event in [None, *teller.whole()]:
        if event is not None:
            state.apply(event)
        if event is None or isinstance(event, SlotsPlanned | RunEnded | Note):
            lines = drawn(state, width, height)
            assert len(lines) < height
            assert max(map(len, lines)) <= width


def test_display_shows_state_of_search(teller: Teller) -> None:
    state, _ = watched(teller.halfway())
    lines = drawn(state, 140, 40)
    text = "\n".join(lines)
    assert lines[0].startswith("raykd · made-up")
    assert "2 parallel trials" in lines[0]
    assert "teacher resnet d14 w32 98.61%" in text
    assert "digits 1222/216/359" in text
    assert "max val accuracy, min params" in text
    assert "trials 4/8: 2 running, 1 stopped early, 1 failed" in text
    assert f"{state.estimate.progress:.0%}" in text and "left" in text
    assert "best so far: trial-0000 resnet d14 w16, val acc 98.15%, params 174,970" in text
    assert "Pareto front: 2" in text


def test_table_starts_with_running_trials_then_best(teller: Teller) -> None:
    state, _ = watched(teller.halfway())
    lines = drawn(state, 140, 40)
    head = next(i for i, line in enumerate(lines) if line.startswith("trial "))
    rows = [line.split() for line in lines[head + 1 : head + 7]]
    ends = [(row[0], row[-1]) for row in rows]
    assert ends == [
        ("0004", "running"),
        ("0005", "running"),
        ("0000", "front"),
        ("0001", "front"),
        ("0003", "failed"),
        ("0002", "stopped"),
    ]
    assert "1.93 kd T=1.12 + 47.3 hint" in lines[head + 3]
    assert "s2>s2 s2>s3" in lines[head + 3]


def test_drawing_is_cheap(teller: Teller) -> None:
    state, _ = watched(teller.halfway())
    console = Console(width=140, height=40, file=io.StringIO(), force_terminal=True)
    began = time.process_time()
    for _ in range(10):
        console.print(picture(state, console.options))
    assert (time.process_time() - began) / 10 < 0.1, "four a second must cost next to nothing"


def test_live_display_draws_seldom_and_leaves_clean_screen(teller: Teller) -> None:
    screen = io.StringIO()
    console = Console(width=80, height=24, file=screen, force_terminal=True)
    with LiveDisplay(console) as display:
        for event in teller.halfway():
            display(event)
        time.sleep(0.6)
    text = screen.getvalue()
    assert 1 <= text.count("raykd · made-up") <= 4
    assert "trial-0003 failed: diverged in epoch 2" in text


def test_failed_display_is_reported_once(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykd.report.live.picture", lambda state, options: 1 / 0)
    screen = io.StringIO()
    with LiveDisplay(Console(file=screen, force_terminal=True, width=120)) as display:
        time.sleep(0.6)
        for event in teller.halfway():
            display(event)
    assert screen.getvalue().count("raykd's display failed (ZeroDivisionError") == 1


def test_plain_lines_show_phases_and_ends(teller: Teller) -> None:
    lines: list[str] = []
    clock = Clock()
    plain = PlainLines(lines.append, clock)
    for event in teller.whole():
        clock.now += 1.0
        plain(event)
    text = "\n".join(lines)
    assert lines[0] == "[0:01] study made-up, seed 0, max val accuracy, min params"
    assert "data digits from scikit-learn: 1222 train, 216 val, 359 test; 10 classes: 0, 1" in text
    assert f"folder {teller.folder.path}" in text
    assert "teacher resnet d14 w32: 3 epochs" in text
    assert "up to 8 trials of 4 epochs" in text
    assert "trial-0000 finished (4/4 epochs): val accuracy 98.15%, 175k params" in text
    assert "trial-0004 stopped early (2/4 epochs): val accuracy 61.00%" in text
    assert "trial-0005 failed: diverged in epoch 2" in text
    assert "replicates of the finalists (trial-0000)" in text
    assert text.count(" finished (") == 1 + 4 + 12
    assert "%, trials" not in text, "no line of progress where others came within 10 s"


def test_plain_lines_of_progress_come_every_ten_seconds_at_most(teller: Teller) -> None:
    lines: list[tuple[float, str]] = []
    clock = Clock()
    plain = PlainLines(lambda line: lines.append((clock.now, line)), clock)
    for event in teller.halfway():
        clock.now += 4.0
        plain(event)
    progress = [(at, line) for at, line in lines if "%, " in line and " left" in line]
    assert progress
    before = {at: max((t for t, _ in lines if t < at), default=0.0) for at, _ in progress}
    assert all(at - before[at] >= 10 for at, _ in progress)
    assert any("trials 4/8" in line and "best so far trial-0000" in line for _, line in progress)


def test_json_lines_are_json(teller: Teller) -> None:
    lines: list[str] = []
    display = JsonLines(lines.append)
    published = [*teller.whole(), Note(metrics={"x": float("nan")})]
    for event in published:
        display(event)
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [event["event"] for event in read] == [event.kind for event in published]
    plan = next(event for event in read if event["event"] == "plan")
    assert plan["slots"] == {"slots": 2, "workers": 1, "cpus": 1.0, "gpus": 0.0}
    assert plan["budget"]["trials"] == 8
    assert plan["folder"] == str(teller.folder.path)
    assert read[-1]["metrics"] == {"x": "nan"}


def test_epoch_lines_show_each_epoch_of_teacher_and_student(teller: Teller) -> None:
    lines: list[str] = []
    display = EpochLines(lines.append)
    for event in [*teller.opening(), *teller.preparation(), *teller.teacher()]:
        display(event)
    assert lines[0].startswith("data digits from scikit-learn: ")
    lines = lines[lines.index("teacher-0: resnet d14 w32") :]
    assert lines[1].split("  ")[-1].strip() == "time"
    assert lines[4].split()[:2] == ["3/3", "0.3333"]
    assert "val accuracy 98.61%, test accuracy 97.50%" in lines[-1]


@pytest.mark.parametrize(
    ("terminal", "lines", "kind"),
    [(True, False, LiveDisplay), (True, True, PlainLines), (False, False, PlainLines)],
)
def test_terminal_gets_live_display(terminal: bool, lines: bool, kind: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    assert isinstance(search_display(console, lines=lines), kind)


def test_display_that_fails_does_not_end_search() -> None:
    said: list[str] = []

    def broken(event: Event) -> None:
        raise KeyError("nothing")

    shielded = Shielded(broken, lambda what, trace: said.append(what))
    for _ in range(3):
        shielded(RunStarted("a", "trial"))
    assert said == ["raykd's display failed (KeyError: 'nothing'); the search continues"]


def test_loaded_teacher_has_no_epochs(teller: Teller) -> None:
    state, _ = watched([*teller.opening(), *teller.preparation(), *teller.teacher()])
    trained = state.records["teacher-0"]
    assert "teacher-0 finished (3/3 epochs): " in outcome_line(
        trained, state.main_metric, FailureAnnouncer()
    )
    loaded = replace(trained, job=replace(trained.job, epochs=0), epochs=[])
    line = outcome_line(loaded, state.main_metric, FailureAnnouncer())
    assert line.startswith("teacher-0 loaded: val accuracy 98.61%") and "0/0" not in line
