"""The live card of a search in a notebook, and the sparkline that displays share."""

from __future__ import annotations

import math

import pytest
from test_python import Cells

from helpers.events import Clock, Teller, watched
from raykd.report.notebook import LiveCard
from raykd.report.run_state import RunState
from raykd.report.sparkline import front_text, sparkline, trial_sparkline


class Output:
    """An output of a notebook that remembers what it showed."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def show(self, card: LiveCard) -> Output:
        self.update(card)
        return self

    def update(self, card: LiveCard, /) -> None:
        self.pages.append(card._repr_html_())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        ([math.nan, math.inf], ""),
        ([0.5], "█"),
        ([0.5, 0.5], "██"),
        ([0.0, 1.0, math.nan, 0.5], "▁█ ▅"),
    ],
)
def test_sparkline(values: list[float], text: str) -> None:
    assert sparkline(values) == text


@pytest.mark.parametrize("width", [20, 40, 80, 140])
def test_trials_fit_into_width(teller: Teller, width: int) -> None:
    state = RunState(Clock())
    for event in teller.whole():
        state.apply(event)
        assert len(trial_sparkline(state, width)) <= width
    assert ("to 98.15%" in trial_sparkline(state, width)) == (width > 20)


def test_front_lists_every_objective(teller: Teller) -> None:
    state, _ = watched(teller.halfway())
    assert front_text(state) == "Pareto front: 2  98.15% / 174,970 · 97.22% / 11,302"
    assert front_text(RunState(Clock())) == ""


def test_card_shows_search_and_its_end(teller: Teller) -> None:
    output, clock = Output(), Clock()
    with LiveCard(output.show, clock) as card:
        for event in teller.halfway():
            clock.now += 0.1
            card(event)
        assert repr(card) == "made-up: trials 4/8: 2 running, 1 stopped early, 1 failed"
        halfway = Cells(card._repr_html_()).texts
    assert len(output.pages) < 20, "at most one update a second"
    assert {"raykd · made-up", "Trainings", "0000", "on the front", "running"} <= set(halfway)
    assert any("trial-0003 failed: diverged in epoch 2" in text for text in halfway)
    assert "ended" in " ".join(Cells(output.pages[-1]).texts)
    assert output.pages[-1].count("<script") == 0


@pytest.mark.parametrize("events", ["none", "halfway", "whole"])
def test_card_is_well_formed_at_any_time(teller: Teller, events: str) -> None:
    output = Output()
    with LiveCard(output.show, Clock()) as card:
        for event in [] if events == "none" else getattr(teller, events)():
            card(event)
    assert [Cells(page).texts[0][:5] for page in output.pages] == ["raykd"] * len(output.pages)


def test_failed_search_leaves_card(teller: Teller) -> None:
    output = Output()
    with pytest.raises(KeyboardInterrupt), LiveCard(output.show, Clock()):
        raise KeyboardInterrupt
    assert len(output.pages) == 2
