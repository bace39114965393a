"""Live card of a running search in a notebook."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

from raykd.html_card import Card
from raykd.report.data import remarks
from raykd.report.failures import FailureAnnouncer
from raykd.report.lines import Display, setup_lines
from raykd.report.live import list_trainings
from raykd.report.run_state import RunState, run_name
from raykd.report.sparkline import front_text, trial_sparkline
from raykd.study.short_names import target_noun
from raykd.tracking.events import Event, RunEnded
from raykd.tuning.number_format import clock, metric, time_left, words
from raykd.tuning.records import learns_from, student_name

UPDATE_INTERVAL_S = 1.0
"""Minimum number of seconds between two updates of the card."""

MOST_TRAININGS = 8
MOST_REMARKS = 5

STATUS_WORDS = {"finished": "completed", "stopped": "stopped early", "front": "on the front"}


class DisplayHandle(Protocol):
    """Output of a notebook that can be replaced."""

    def update(self, card: LiveCard, /) -> None:
        """Show the card in place of the one before."""
        raise NotImplementedError


class LiveCard(Display):
    """Shows a search as a card of a notebook, replaced as events come in.

    It is updated by events, at most once a second, and at the end.

    Args:
        show: displays a card for the first time; returns a handle that replaces it.
        now: returns monotonic time in seconds.
    """

    def __init__(
        self,
        show: Callable[[LiveCard], DisplayHandle],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show
        self._now = now
        self._state = RunState(now)
        self._failures = FailureAnnouncer()
        self._remarks: deque[str] = deque(maxlen=MOST_REMARKS)
        self._lock = threading.RLock()
        self._handle: DisplayHandle | None = None
        self._last_update = 0.0
        self._ended = False

    def __enter__(self) -> LiveCard:
        self._handle = self._show(self)
        self._last_update = self._now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._ended = True
            self._update()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._state.apply(event)
            self._remarks.extend(self._remarks_on(event))
            if self._now() - self._last_update >= UPDATE_INTERVAL_S:
                self._update()

    def __repr__(self) -> str:
        with self._lock:
            name = self._state.study.name if self._state.study else "raykd"
            return f"{name}: {self._phase()}"

    def _repr_html_(self) -> str:
        """Return the current state as a card, for notebooks."""
        with self._lock:
            return self._card().html()

    def _update(self) -> None:
        self._last_update = self._now()
        if self._handle is not None:
            self._handle.update(self)

    def _remarks_on(self, event: Event) -> Iterable[str]:
        yield from (line for line, _ in remarks(event))
        match event:
            case RunEnded(status="failed"):
                yield self._failures.line(self._state.records[event.id])
            case _:
                yield from setup_lines(event)

    def _phase(self) -> str:
        return "ended" if self._ended else self._state.phase

    def _card(self) -> Card:
        state, estimate = self._state, self._state.estimate
        objectives = ", ".join(f"{way} {words(name)}" for name, way in state.objectives.items())
        card = Card(f"raykd · {state.study.name}" if state.study else "raykd", self._phase())
        done = 1.0 if self._ended else estimate.progress
        left = "" if self._ended else time_left(estimate.time_left)
        times = ", ".join(filter(None, [clock(estimate.elapsed), left]))
        card.facts(
            [
                ("progress", f"{_bar(done)} {done:.0%}  {times}"),
                ("teacher", state.teacher_name if state.study else ""),
                ("objectives", objectives if state.study else ""),
                (words(state.main_metric), trial_sparkline(state, 80).removeprefix("trials ")),
                ("front", front_text(state).partition("  ")[2]),
            ]
        )
        card.table(
            "Trainings",
            ("training", "student", "learns from", "epoch", words(state.main_metric), "status"),
            [
                (
                    run_name(record.id),
                    student_name(record),
                    learns_from(record)
                    if record.role not in ("teacher", "alone")
                    else target_noun(record.job.study),
                    f"{len(record.epochs)}/{record.job.epochs}",
                    metric(state.main_metric, record.metrics.get(state.main_metric)),
                    STATUS_WORDS.get(status, status),
                )
                for record, status in list_trainings(state, MOST_TRAININGS)
            ],
        )
        for line in self._remarks:
            card.sentence(line)
        return card


def _bar(done: float, width: int = 24) -> str:
    """Return a progress bar as text."""
    full = round(width * done)
    return "█" * full + "░" * (width - full)
