"""Events as JSON: the lines stay as they are, byte for byte."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from raykd.tracking.event_docs import NESTED, fields_of, page
from raykd.tracking.events import (
    EVENTS,
    EpochFinished,
    Event,
    RunStarted,
    parse,
)
from raykd.tracking.journal import EventBus, Journal, events
from raykd.tracking.json_types import to_json

LINES = Path(__file__).with_name("golden_events.jsonl").read_text().splitlines()
"""Lines of real runs, with long values cut; at least one of each kind."""


def event_of(line: str) -> Event:
    event = parse(json.loads(line))
    assert event is not None, line
    return event


@pytest.mark.parametrize("line", LINES, ids=[json.loads(line)["event"] for line in LINES])
def test_event_gives_its_line_back(line: str) -> None:
    assert json.dumps(to_json(event_of(line).record()), ensure_ascii=False) == line


def test_every_kind_has_line() -> None:
    assert {event_of(line).kind for line in LINES} == set(EVENTS)


def test_bus_writes_lines_of_journaled_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Event] = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        bus = EventBus(journal, [received.append])
        for line in LINES:
            event = event_of(line)
            monkeypatch.setattr("time.time_ns", lambda at=event.at: at * 1_000_000)
            bus.publish(event)
    assert [event.kind for event in received] == [event_of(line).kind for line in LINES]
    journaled = [line for line in LINES if event_of(line).journaled]
    assert (tmp_path / "journal.jsonl").read_text().splitlines() == journaled
    read = [json.dumps(to_json(e.record()), ensure_ascii=False) for e in events(journal.path)]
    assert read == journaled


def test_newer_fields_and_kinds_are_ignored() -> None:
    epoch = {"at": 1, "event": "epoch", "id": "t", "epoch": 2, "metrics": {}, "newer": 3}
    assert parse(epoch) == EpochFinished("t", 2, {})
    assert parse({"at": 1, "event": "newer"}) is None
    assert parse({"at": 1, "event": "epoch"}) is None, "fields are missing"
    assert parse({"at": 1}) is None


def test_events_are_equal_apart_from_their_times() -> None:
    assert RunStarted("t", "trial", at=1) == RunStarted("t", "trial", at=2)


def test_documentation_is_up_to_date() -> None:
    file = Path(__file__).parents[2] / "docs" / "events.md"
    assert file.read_text() == page(), "run: python -m raykd.tracking.event_docs > docs/events.md"


@pytest.mark.parametrize("cls", [*EVENTS.values(), *NESTED])
def test_every_field_is_documented(cls: type) -> None:
    assert [*fields_of(cls)] == [f.name for f in dataclasses.fields(cls) if f.name != "at"]
