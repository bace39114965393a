"""Cache jobs: which cached teacher outputs the trainings read, and the jobs that compute them."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raykd.runtime.jobs import CacheJob, QueuedJob, TrainJob
from raykd.schemes import TeacherSpec
from raykd.storage import Storage
from raykd.study.config import Study, plain, read_study
from raykd.tracking.events import CacheStatus, Note, TeacherCacheChanged
from raykd.tracking.journal import Listener
from raykd.training.teacher_cache.builder import provenance_of
from raykd.training.teacher_cache.plan import GB, CachePlan, layer_layouts
from raykd.training.teacher_cache.spec import (
    CacheSpec,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    model_digest,
)
from raykd.training.teacher_cache.store import CacheStore, free_bytes

BEAT_S = 60.0
"""Seconds between two renewals of the marks on the entries that a study uses."""

NOTED = ("kept", "found", "live")
"""Statuses that are noted on the study's run in MLflow."""


@dataclass
class _Build:
    """A cache entry in construction, with the ids of its unfinished jobs."""

    spec: CacheSpec
    about: Mapping[str, Any]
    unfinished: set[str] = field(default_factory=set)


class CacheJobs:
    """Assigns cache entries to trainings, and queues the jobs that compute missing entries.

    A training whose teacher has no entry runs the teacher live.

    Args:
        plan: decides which outputs are worth caching.
        storage: of teachers and cache.
        fingerprint: of the data.
        rows: samples of the training split.
        slots: number of parallel jobs.
        publish: called with each event; None: nothing is published.
    """

    def __init__(
        self,
        plan: CachePlan,
        storage: Storage,
        fingerprint: str,
        rows: int,
        *,
        slots: int = 1,
        publish: Listener | None = None,
    ) -> None:
        self._plan = plan
        self._storage = storage
        self._store = CacheStore(storage)
        self._fingerprint = fingerprint
        self._rows = rows
        self._slots = slots
        self._publish = publish
        self._digests: dict[str, str] = {}
        self._assigned: set[str] = set()  # ids of trainings
        self._complete: set[str] = set()  # keys of entries
        self._failed: set[str] = set()
        self._builds: dict[str, _Build] = {}
        self._running: dict[str, CacheJob] = {}
        self._published: set[tuple[str, CacheStatus]] = set()
        self._marked: set[str] = set()
        self._user = uuid.uuid4().hex
        self._last_beat = time.monotonic()
        weakref.finalize(self, _release, self._store, self._marked, self._user)

    def beat(self) -> None:
        """Renew the marks that keep other studies from removing this study's entries.

        The planner calls it with every report.
        """
        if time.monotonic() - self._last_beat > BEAT_S:
            self._last_beat = time.monotonic()
            for key in self._marked:
                self._store.hold(key, self._user)

    def fixed(self, study: Study) -> Study:
        """Return a concrete study with its number of views fixed, the same in every trial."""
        return self._plan.fixed(study)

    # Trainings

    def assign_entries(self, queue: deque[QueuedJob], pending: Collection[str | None]) -> None:
        """Assign entries to the queued trainings whose teachers are stored.

        The jobs that compute missing entries are put first.

        Args:
            queue: of the planner.
            pending: files of the teachers that are in training or queued for it.
        """
        jobs: list[CacheJob] = []
        for place, job in enumerate(tuple(queue)):
            if not isinstance(job, TrainJob) or job.id in self._assigned or not job.teachers:
                continue
            if job.role in ("trial", "replicate") and not any(f in pending for f in job.teachers):
                self._assigned.add(job.id)
                queue[place], missing = self.assign(job)
                jobs += missing
        queue.extendleft(reversed(jobs))

    def assign(self, job: TrainJob) -> tuple[TrainJob, list[CacheJob]]:
        """Return a training with the keys of its entries, and the jobs that compute missing ones.

        The files of its teachers must be stored.
        """
        study = read_study(job.study)
        teachers = study.teacher_specs(self._plan.study.settings.seed)
        keys: list[str] = []
        missing: list[CacheJob] = []
        for number, (prepared, file) in enumerate(zip(teachers, job.teachers, strict=False)):
            spec = self._spec(study, prepared, file)
            keys.append("" if spec is None else spec.key)
            if spec is not None:
                missing += self._request(spec, job, study, number)
        return self.without_failed_entries(replace(job, cache_keys=tuple(keys))), missing

    def waits(self, job: TrainJob) -> bool:
        """Return True if an entry that a training reads is not complete yet."""
        return any(key in self._builds for key in job.cache_keys)

    def without_failed_entries(self, job: TrainJob) -> TrainJob:
        """Return a training that runs the teachers live whose entries have failed."""
        keys = tuple("" if key in self._failed else key for key in job.cache_keys)
        return replace(job, cache_keys=keys if any(keys) else ())

    # Jobs that compute entries

    def start(self, job: CacheJob) -> None:
        """Record that a slot computes a share of an entry."""
        self._running[job.id] = job

    def is_running(self, job_id: str) -> bool:
        """Return True if a slot computes this job's share of an entry."""
        return job_id in self._running

    def running_job(self, job_id: str) -> CacheJob:
        """Return a job that a slot computes."""
        return self._running[job_id]

    def finish(self, job_id: str) -> None:
        """Record that a share is complete; with the last one, the entry is."""
        job = self._running.pop(job_id)
        key = job.entry.key
        build = self._builds.get(key)
        if build is None:
            return
        build.unfinished.discard(job.id)
        if build.unfinished:
            return
        del self._builds[key]
        if self._store.complete(build.spec, build.about):
            self._complete.add(key)
            self._announce(key, "kept", bytes=build.spec.bytes, views=build.spec.views)
        else:
            self._fail(key, "some of its files are missing")

    def abort(self, job_id: str, reason: str, queue: deque[QueuedJob]) -> None:
        """Give up the entry of a failed job, and remove its other jobs from the queue."""
        key = self._running.pop(job_id).entry.key
        self._builds.pop(key, None)
        if key not in self._failed:
            self._fail(key, reason)
        for job in [job for job in queue if isinstance(job, CacheJob)]:
            if job.entry.key not in self._builds:
                queue.remove(job)

    # Entries

    def _spec(self, study: Study, prepared: TeacherSpec, file: str) -> CacheSpec | None:
        """Return the entry that a concrete study reads of a teacher; None: it is run live."""
        planned = self._plan.entry_for(study, prepared) if prepared.is_shared else None
        if planned is None:
            return None
        if planned.why_not:
            self._announce(repr(planned.teacher), "live", reason=planned.why_not)
            return None
        signature = self._plan.signature
        outputs = TeacherOutputs(
            model_digest(prepared.model),
            self._digest(file),
            planned.layers,
            layer_layouts(prepared, planned.layers, signature),
            prepared.input,
        )
        samples = TrainingSamples(self._fingerprint, self._rows, signature.response_shape)
        return cache_spec(study, outputs, samples, views=planned.views)

    def _request(
        self, spec: CacheSpec, student: TrainJob, study: Study, teacher: int
    ) -> list[CacheJob]:
        """Return the jobs that compute an entry; [] unless it is missing."""
        key = spec.key
        if key in self._complete:
            self._store.touch(key)
            return []
        if key in self._builds or key in self._failed:
            return []
        self._mark(key)  # before it is read: from here on no other study may remove it
        if self._is_valid(key):
            self._complete.add(key)
            self._store.touch(key)
            self._announce(key, "found", bytes=spec.bytes, views=spec.views)
            return []
        problem = self._make_room(spec)
        if problem:
            self._fail(key, problem)
            return []
        return self._jobs(spec, student, study, teacher)

    def _is_valid(self, key: str) -> bool:
        """Return True if an existing entry is complete and its checksums match.

        Damaged files are removed, so that they are computed again.
        """
        if self._store.is_whole(key):
            return not self._store.verify(key)
        self._store.repair(key)
        return False

    def _make_room(self, spec: CacheSpec) -> str:
        """Remove unused entries; return the reason if there is still not enough room, else ""."""
        limit = self._plan.settings.limit_gb * GB
        in_use = {*self._complete, *self._builds, spec.key}
        stored = self._store.entry(spec.key).bytes
        needed = max(0, spec.bytes - stored)
        for removed in self._store.make_room(needed, limit, in_use):
            self._announce(removed, "removed")
        foreign = [entry for entry in self._store.entries() if entry.key not in in_use]
        if foreign and sum(entry.bytes for entry in self._store.entries()) + needed > limit:
            return f"other running studies use the cache up to cache.limit_gb ({limit / GB:g})"
        free = free_bytes(self._storage)
        if free is not None and needed > free:
            return f"it needs {needed / GB:.1f} GB, and {free / GB:.1f} GB of the disk are free"
        return ""

    def _jobs(
        self, spec: CacheSpec, student: TrainJob, study: Study, teacher: int
    ) -> list[CacheJob]:
        """Return the jobs that compute an entry, one share each."""
        key, file = spec.key, student.teachers[teacher]
        build = self._builds[key] = _Build(spec, provenance_of(study, teacher, file))
        shares = min(self._slots, len(spec.shards))
        jobs = [
            CacheJob(
                id=f"outputs-{key[:12]}-{share}",
                folder=student.folder,
                study=plain(study),
                teacher=teacher,
                weights_file=file,
                entry=spec,
                share=share,
                shares=shares,
            )
            for share in range(shares)
        ]
        build.unfinished = {job.id for job in jobs}
        self._announce(key, "begun", bytes=spec.bytes, views=spec.views)
        return jobs

    def _mark(self, key: str) -> None:
        if key not in self._marked:
            self._marked.add(key)
            self._store.hold(key, self._user)

    def _fail(self, key: str, reason: str) -> None:
        self._failed.add(key)
        self._marked.discard(key)
        self._store.release(key, self._user)
        self._announce(key, "live", reason=reason)

    def _digest(self, file: str) -> str:
        if file not in self._digests:
            content = self._storage.read(file) or b""
            self._digests[file] = hashlib.sha256(content).hexdigest()
        return self._digests[file]

    def _announce(self, key: str, status: CacheStatus, **details: Any) -> None:
        """Publish the status of an entry, once."""
        if self._publish is None or (key, status) in self._published:
            return
        self._published.add((key, status))
        self._publish(TeacherCacheChanged(key, status, **details))
        if status in NOTED:
            text = (
                details.get("reason") or f"{details['views']} view(s), {details['bytes']:,} bytes"
            )
            self._publish(Note(None, {"teacher_outputs": f"{status}: {text}"}))


def _release(store: CacheStore, marked: set[str], user: str) -> None:
    with contextlib.suppress(OSError):  # the storage may have been removed
        for key in marked:
            store.release(key, user)
