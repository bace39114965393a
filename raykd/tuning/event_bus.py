"""Bus of a run's events: the journal keeps them, listeners show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raykd.tracking.journal import Journal
from raykd.tuning.study_lock import check_lock

Listener = Callable[[Mapping[str, Any]], None]


class EventBus:
    """Writes events to a journal and sends them to listeners.

    Args:
        journal: of the run.
        listeners: called with each event as it happens.
    """

    def __init__(self, journal: Journal, listeners: Sequence[Listener]) -> None:
        self._journal = journal
        self._listeners = listeners

    def write(self, event: str, **fields: Any) -> None:
        """Write an event to the journal and send it to the listeners.

        Raises:
            LockLost: another process has taken the study's folder.
        """
        check_lock(self._journal.path.parent)
        self._journal.write(event, **fields)
        self.tell({"event": event, **fields})

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event to the listeners alone."""
        for listener in self._listeners:
            listener(event)
