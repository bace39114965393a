"""Which teachers' outputs the trials of a search read, and what has to be computed before."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raykd.runtime.jobs import CacheJob, TrainJob
from raykd.schemes import TeacherSpec
from raykd.storage import Storage
from raykd.study.config import Study, plain, read_study
from raykd.study.teachers import teachers_of
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


class Chronicle(Protocol):
    def write(self, event: str, **fields: Any) -> None: ...

    def tell(self, event: Mapping[str, Any]) -> None: ...


BEAT_S = 60.0
"""Seconds between two signs of life for the entries that a study uses."""

SETTLED = ("kept", "found", "live")
"""What stands in the study's run in MLflow: whether outputs are read, or why teachers are run."""


@dataclass
class _Under:
    """An entry under construction: the shares that are not done yet."""

    description: CacheSpec
    about: Mapping[str, Any]
    left: set[str] = field(default_factory=set)


class CacheScheduler:
    """Decides for each training which teachers it reads instead of running them.

    Args:
        plan: what is worth keeping.
        storage: where teachers and outputs are.
        fingerprint: of the data.
        rows: samples of the training split.
        slots: that compute side by side.
        chronicle: is told what is kept, what is not and why.
    """

    def __init__(
        self,
        plan: CachePlan,
        storage: Storage,
        fingerprint: str,
        rows: int,
        *,
        slots: int = 1,
        chronicle: Chronicle | None = None,
    ) -> None:
        self._plan = plan
        self._storage = storage
        self._store = CacheStore(storage)
        self._fingerprint = fingerprint
        self._rows = rows
        self._slots = slots
        self._chronicle = chronicle
        self._digests: dict[str, str] = {}
        self._ready: set[str] = set()
        self._given_up: set[str] = set()
        self._building: dict[str, _Under] = {}
        self._told: set[Any] = set()
        self._held: set[str] = set()
        self._name = uuid.uuid4().hex
        self._beaten = time.monotonic()
        weakref.finalize(self, _release, self._store, self._held, self._name)

    def beat(self) -> None:
        """Keep the entries that this study uses from being removed by others; call it often."""
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            for key in self._held:
                self._store.hold(key, self._name)

    def _hold(self, key: str) -> None:
        if key not in self._held:
            self._held.add(key)
            self._store.hold(key, self._name)

    def fixed(self, study: Study) -> Study:
        """A concrete study with its views settled, the same in every trial and replicate."""
        return self._plan.fixed(study)

    def outfit(self, job: TrainJob) -> tuple[TrainJob, list[CacheJob]]:
        """The same training with the addresses of the outputs it will read, and what has to be
        computed first; its teachers are there."""
        study = read_study(job.study)
        teachers = teachers_of(study, self._plan.study.settings.seed)
        keys: list[str] = []
        builds: list[CacheJob] = []
        for number, (prepared, file) in enumerate(zip(teachers, job.teachers, strict=False)):
            description = self._description(study, prepared, file)
            if description is None:
                keys.append("")
                continue
            keys.append(description.key)
            builds += self._asked_for(description, job, study, number)
        keys = ["" if key in self._given_up else key for key in keys]
        return replace(job, cache_keys=tuple(keys) if any(keys) else ()), builds

    def waits(self, job: TrainJob) -> bool:
        """Whether outputs that a training reads are still under construction."""
        return any(key in self._building for key in job.cache_keys)

    def done(self, build: CacheJob) -> None:
        """A share is computed."""
        key = _key(build)
        under = self._building.get(key)
        if under is None:
            return
        under.left.discard(build.id)
        if under.left:
            return
        del self._building[key]
        if self._store.complete(under.description, under.about):
            self._ready.add(key)
            self._tell(key, "kept", bytes=under.description.bytes, views=under.description.views)
        else:
            self._give_up(key, "some of its files are missing")

    def failed(self, build: CacheJob, why: str) -> None:
        """A share could not be computed: the teacher is run live."""
        key = _key(build)
        self._building.pop(key, None)
        if key not in self._given_up:
            self._give_up(key, why)

    def still_wanted(self, build: CacheJob) -> bool:
        """Whether a share that is queued is still to be computed."""
        return _key(build) in self._building

    def usable(self, job: TrainJob) -> TrainJob:
        """The same training without outputs that were given up."""
        keys = tuple("" if key in self._given_up else key for key in job.cache_keys)
        return replace(job, cache_keys=keys if any(keys) else ())

    def _description(self, study: Study, prepared: TeacherSpec, file: str) -> CacheSpec | None:
        """What of a teacher a concrete study would read; None where it is to be run live."""
        kept = self._plan.entry_for(study, prepared) if prepared.is_shared else None
        if kept is None:
            return None
        if kept.why_not:
            self._tell(repr(kept.teacher), "live", why=kept.why_not)
            return None
        task = self._plan.task
        outputs = TeacherOutputs(
            model_digest(prepared.model),
            self._digest(file),
            kept.layers,
            layer_layouts(prepared, kept.layers, task),
        )
        samples = TrainingSamples(self._fingerprint, self._rows, task.classes)
        return cache_spec(study, outputs, samples, views=kept.views)

    def _asked_for(
        self, description: CacheSpec, pupil: TrainJob, study: Study, teacher: int
    ) -> list[CacheJob]:
        """What is to be computed for these outputs, if nobody has yet."""
        key = description.key
        if key in self._ready:
            self._store.touch(key)
            return []
        if key in self._building or key in self._given_up:
            return []
        self._hold(key)  # before it is read: nobody else may remove it from here on
        if self._is_there(key):
            self._ready.add(key)
            self._store.touch(key)
            self._tell(key, "found", bytes=description.bytes, views=description.views)
            return []
        why = self._room_for(description)
        if why:
            self._give_up(key, why)
            return []
        return self._shares(description, pupil, study, teacher)

    def _is_there(self, key: str) -> bool:
        """Whether an entry of another study, or of this one before, is whole to the last byte;
        what is not is taken out, to be computed anew."""
        if self._store.is_whole(key):
            return not self._store.verify(key)
        self._store.repair(key)
        return False

    def _room_for(self, description: CacheSpec) -> str:
        """Make room; why there is none, or empty."""
        limit = self._plan.settings.limit_gb * GB
        in_use = {*self._ready, *self._building, description.key}
        there = self._store.entry(description.key).bytes
        needed = max(0, description.bytes - there)
        for removed in self._store.make_room(needed, limit, in_use):
            self._tell(removed, "removed")
        others = [one for one in self._store.entries() if one.key not in in_use]
        if others and sum(one.bytes for one in self._store.entries()) + needed > limit:
            return f"running studies use the others, up to cache.limit_gb ({limit / GB:g})"
        free = free_bytes(self._storage)
        if free is not None and needed > free:
            return f"{needed / GB:.1f} GB are needed and {free / GB:.1f} GB of the disk are free"
        return ""

    def _shares(
        self, description: CacheSpec, pupil: TrainJob, study: Study, teacher: int
    ) -> list[CacheJob]:
        key = description.key
        about = provenance_of(study, teacher, pupil.teachers[teacher])
        shares = min(self._slots, len(description.shards))
        under = self._building[key] = _Under(description, about)
        builds = [
            CacheJob(
                id=f"outputs-{key[:12]}-{share}",
                folder=pupil.folder,
                study=plain(study),
                teacher=teacher,
                weights_file=pupil.teachers[teacher],
                entry=description,
                share=share,
                shares=shares,
            )
            for share in range(shares)
        ]
        under.left = {build.id for build in builds}
        self._tell(key, "begun", bytes=description.bytes, views=description.views)
        return builds

    def _give_up(self, key: str, why: str) -> None:
        self._given_up.add(key)
        self._held.discard(key)
        self._store.release(key, self._name)
        self._tell(key, "live", why=why)

    def _digest(self, file: str) -> str:
        if file not in self._digests:
            content = self._storage.read(file) or b""
            self._digests[file] = hashlib.sha256(content).hexdigest()
        return self._digests[file]

    def _tell(self, key: str, status: str, **more: Any) -> None:
        """Say it once."""
        if self._chronicle is None or (key, status) in self._told:
            return
        self._told.add((key, status))
        self._chronicle.tell({"event": "outputs", "key": key, "status": status, **more})
        if status in SETTLED:
            said = more.get("why") or f"{more['views']} view(s), {more['bytes']:,} bytes"
            tags = {"teacher_outputs": f"{status}: {said}"}
            self._chronicle.write("note", id=None, tags=tags, metrics={}, step=0)


def _release(store: CacheStore, held: set[str], name: str) -> None:
    with contextlib.suppress(OSError):  # the storage may be gone by now
        for key in held:
            store.release(key, name)


def _key(build: CacheJob) -> str:
    return build.entry.key
