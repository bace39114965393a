"""Teachers' outputs, computed once: described, built, kept and read; `planning` chooses."""

from __future__ import annotations

from raykd.training.cache.building import Build
from raykd.training.cache.description import (
    LOGITS,
    Description,
    describe_outputs,
    digest_of,
    serves,
)
from raykd.training.cache.reading import CachedTeacher, Outputs, TeacherAtHand, open_outputs
from raykd.training.cache.store import OutputsStore

__all__ = [
    "LOGITS",
    "Build",
    "CachedTeacher",
    "Description",
    "Outputs",
    "OutputsStore",
    "TeacherAtHand",
    "describe_outputs",
    "digest_of",
    "open_outputs",
    "serves",
]
