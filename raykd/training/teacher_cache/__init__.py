"""Teachers' outputs, computed once: described, built, kept and read; `planning` chooses."""

from __future__ import annotations

from raykd.training.teacher_cache.builder import Build
from raykd.training.teacher_cache.reader import (
    CachedTeacher,
    Outputs,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.teacher_cache.spec import (
    LOGITS,
    Description,
    describe_outputs,
    network_digest,
    serves,
)
from raykd.training.teacher_cache.store import CacheStore

__all__ = [
    "LOGITS",
    "Build",
    "CacheStore",
    "CachedTeacher",
    "Description",
    "Outputs",
    "TeacherHandle",
    "describe_outputs",
    "network_digest",
    "open_cached_outputs",
    "serves",
]
