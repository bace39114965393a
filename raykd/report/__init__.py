"""Displays of a running study, and summaries of its result."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from raykd.report.lines import Display
from raykd.tracking.events import Event
from raykd.tracking.journal import Listener

if TYPE_CHECKING:
    from rich.console import Console


def search_display(console: Console, *, lines: bool = False) -> Display:
    """Return the live display for a terminal, else (or with `lines`) plain lines."""
    if console.is_terminal and not lines:
        from raykd.report.live import LiveDisplay

        return LiveDisplay(console)
    from raykd.report.lines import PlainLines

    return PlainLines(lambda line: print_line(console, line))


def epoch_display(console: Console) -> Display:
    """Return the display of single trainings: one line per epoch."""
    from raykd.report.lines import EpochLines

    return EpochLines(lambda line: print_line(console, line))


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class Shielded:
    """A listener whose errors do not end the run.

    Args:
        listener: called with every event, until it fails.
        complain: called once, with a sentence and the traceback.
    """

    def __init__(
        self,
        listener: Listener,
        complain: Callable[[str, str], None],
    ) -> None:
        self._listener = listener
        self._complain = complain
        self._failed = False

    def __call__(self, event: Event) -> None:
        if self._failed:
            return
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - any: hours of training are worth more
            self._failed = True
            message = f"raykd's display failed ({type(error).__name__}: {error})"
            self._complain(f"{message}; the search continues", traceback.format_exc())
