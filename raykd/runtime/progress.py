"""Progress of a worker process: how many batches it has taken, and where its code is."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from raykd.data.loader import BatchCount


@dataclass(frozen=True)
class Progress:
    """Progress of a worker.

    Attributes:
        batches: number of batches that its process has taken.
        place: " (in FUNCTION, FILE:LINE)", the line that its thread runs; "" if it has ended.
    """

    batches: int
    place: str


def progress_of(thread: int) -> Progress:
    """Return the progress of this process, whose worker is a thread with this ident."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return Progress(BatchCount.total, "")
    code = frame.f_code
    place = f" (in {code.co_name}, {code.co_filename}:{frame.f_lineno})"
    return Progress(BatchCount.total, place)
