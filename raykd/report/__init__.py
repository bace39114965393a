"""What the user sees of a search: while it runs, and when it is over."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from raykd.report.lines import Display

if TYPE_CHECKING:
    from rich.console import Console


def search_display(console: Console, *, lines: bool = False) -> Display:
    """The live display in a terminal, else (or with `lines`) plain lines."""
    if console.is_terminal and not lines:
        from raykd.report.live import LiveDisplay

        return LiveDisplay(console)
    from raykd.report.lines import PlainLines

    return PlainLines(lambda line: print_line(console, line))


def epoch_display(console: Console) -> Display:
    """One line an epoch, for single trainings."""
    from raykd.report.lines import EpochLines

    return EpochLines(lambda line: print_line(console, line))


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class Shielded:
    """A listener whose own mistakes do not end the search that it is told of.

    Args:
        listener: told of every event, until it fails.
        complain: told once, in a sentence; the second argument is the traceback.
    """

    def __init__(
        self,
        listener: Callable[[Mapping[str, Any]], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._listener = listener
        self._complain = complain
        self._failed = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._failed:
            return
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - any: hours of training are worth more
            self._failed = True
            said = f"raykd's display failed ({type(error).__name__}: {error}); the search continues"
            self._complain(said, traceback.format_exc())
