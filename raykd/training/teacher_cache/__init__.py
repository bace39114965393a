"""Cached teacher outputs: specification, builder, store, reader, plan."""

from __future__ import annotations

from raykd.training.teacher_cache.builder import CacheBuilder
from raykd.training.teacher_cache.reader import (
    CachedOutputs,
    CachedTeacher,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.teacher_cache.spec import (
    LOGITS,
    CacheSpec,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    find_mismatch,
    network_digest,
)
from raykd.training.teacher_cache.store import CacheStore

__all__ = [
    "LOGITS",
    "CacheBuilder",
    "CacheSpec",
    "CacheStore",
    "CachedOutputs",
    "CachedTeacher",
    "TeacherHandle",
    "TeacherOutputs",
    "TrainingSamples",
    "cache_spec",
    "find_mismatch",
    "network_digest",
    "open_cached_outputs",
]
