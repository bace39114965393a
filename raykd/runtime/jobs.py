"""Jobs of a slot, and the reports they give.

All of it is plain data: importing this module loads no torch, so that a study's records can be
read without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from raykd.tracking.events import (
    Clock,
    Metrics,
    Role,
)
from raykd.tracking.json_types import to_json

if TYPE_CHECKING:
    from raykd.training.teacher_cache import CacheSpec

OUT_OF_MEMORY = "out of memory"
"""Begin of the reason of every failure for which memory did not suffice."""

DIVERGED = "diverged"
"""Begin of the reason of every failure for which a loss was not finite."""

PlainData = Mapping[str, Any]
"""Data that JSON can hold: a study, drawn values, a job."""


@dataclass(frozen=True)
class Job:
    """Work for one slot.

    Attributes:
        id: "teacher-0", "trial-0007", "trial-0007/seed-1", "trial-0007/alone-1", "outputs-1f3a-0",
            "wait-3".
        folder: the study's folder below the storage; empty: the job writes no log.
    """

    id: str
    _: KW_ONLY
    folder: str = ""

    @property
    def state_files(self) -> tuple[str, str]:
        """Files of the training's states after even and odd epochs, below the storage."""
        stem = f"{self.folder}/states/{self.id.replace('/', '.')}"
        return f"{stem}.0.safetensors", f"{stem}.1.safetensors"

    @property
    def failure_file(self) -> str:
        """File of the reason of a failure that ended a whole group of ranks, below the storage.

        A second line holds the place in the user's own code that raised the error.
        """
        return f"{self.folder}/states/{self.id.replace('/', '.')}.failed"

    def log_file(self, rank: int = 0) -> str:
        """Return the log of one of the job's processes, below the storage."""
        return f"{self.folder}/logs/{self.log_name(rank)}"

    def log_name(self, rank: int = 0) -> str:
        """Return the file name of a log (`raykd.training.log_file`)."""
        return self.id.replace("/", ".") + (f".rank-{rank}.log" if rank else ".log")


@dataclass(frozen=True)
class RecordedJob(Job):
    """Job with a record in the journal and a run in MLflow.

    Attributes:
        role: purpose of the job.
        study: the concrete study, as plain data.
        seed: of the training.
        epochs: number of epochs; 0: nothing is trained.
        params: the drawn values by their study path; empty for what is not drawn.
        parent: id of the trial this belongs to, or None.
        teachers: files of the teachers' networks, below the storage, in the scheme's order.
        test: whether the test split is evaluated at the end.
        tags: text that MLflow shows.
        metrics: numbers that are known before the job starts (parameters, MACs).
        names: short names for tables (`raykd.study.short_names`); empty before it starts.
    """

    role: Role
    study: PlainData
    seed: int
    epochs: int = 0
    _: KW_ONLY
    params: PlainData = field(default_factory=dict)
    parent: str | None = None
    teachers: tuple[str, ...] = ()
    test: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def network_file(self) -> str | None:
        """File, below the storage, that holds the job's network at its end, or None."""
        return None

    def plain(self) -> PlainData:
        """Return the job as the journal keeps it; `read_job` reads it back."""
        return {
            "id": self.id,
            "role": self.role,
            "study": self.study,
            "seed": self.seed,
            "epochs": self.epochs,
            "folder": self.folder,
            "params": self.params,
            "parent": self.parent,
            "teachers": self.teachers,
            "outputs": (),
            "build": None,
            "probe": None,
            "measures": None,
            "sole": False,
            "test": self.test,
            "keep": None,
            "tags": self.tags,
            "metrics": self.metrics,
            "names": self.names,
            **self._details(),
        }

    def _details(self) -> PlainData:
        """Return the entries of `plain` that only this kind of job sets."""
        return {}


@dataclass(frozen=True)
class TrainJob(RecordedJob):
    """Train a network.

    Attributes:
        cache_keys: keys of the teachers' cached outputs, in the order of `teachers`; an empty key
            for a teacher that is run live, no keys if all are.
        exclusive: whether all other slots wait for this job, so that it may use their processors.
        keep: file, below the storage, for the trained network, or None.
    """

    _: KW_ONLY
    cache_keys: tuple[str, ...] = ()
    exclusive: bool = False
    keep: str | None = None

    @property
    def network_file(self) -> str | None:
        return self.keep

    @property
    def identity(self) -> str:
        """Digest of what determines the training; the same when it is read from the journal."""
        free = ("cluster", "search", "tracking")
        study = {key: value for key, value in self.study.items() if key not in free}
        text = json.dumps(to_json([self.id, self.seed, self.epochs, study]), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _details(self) -> PlainData:
        return {"outputs": self.cache_keys, "sole": self.exclusive, "keep": self.keep}


@dataclass(frozen=True)
class EvaluateJob(RecordedJob):
    """Evaluate a network that exists already.

    Attributes:
        weights_file: the network's file, below the storage.
    """

    _: KW_ONLY
    weights_file: str

    @property
    def network_file(self) -> str | None:
        return self.weights_file

    def _details(self) -> PlainData:
        return {"measures": self.weights_file}


@dataclass(frozen=True)
class ProbeDesign:
    """Comparison of a teacher's layers with those of a student that has only begun to learn.

    Attributes:
        term: number of the study's term that compares the layers.
        hints, guided: layers of the pairs, shallow to deep.
        teacher_layers, student_layers: layers of the CKA map.
        possible: pairs (number of hint, number of guided) that the term's loss can compare.
        steps: of training without hint before the second comparison.
        batches: number of batches to compare on.
        baseline: concrete study of the student that learns without hint.
        baseline_teachers: files of that study's teachers, below the storage.
        trained_baseline: file of that student after its whole training, or None.
    """

    term: int
    hints: tuple[str, ...]
    guided: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    student_layers: tuple[str, ...]
    possible: tuple[tuple[int, int], ...]
    steps: int
    batches: int
    baseline: PlainData
    baseline_teachers: tuple[str, ...]
    trained_baseline: str | None

    def plain(self) -> PlainData:
        """Return the design as the journal keeps it."""
        return {
            "term": self.term,
            "hints": list(self.hints),
            "guided": list(self.guided),
            "teacher_layers": list(self.teacher_layers),
            "student_layers": list(self.student_layers),
            "possible": [list(pair) for pair in self.possible],
            "steps": self.steps,
            "batches": self.batches,
            "without": self.baseline,
            "without_teachers": list(self.baseline_teachers),
            "trained": self.trained_baseline,
        }

    @classmethod
    def from_plain(cls, data: PlainData) -> ProbeDesign:
        """Read a design from the journal."""
        return cls(
            term=data["term"],
            hints=tuple(data["hints"]),
            guided=tuple(data["guided"]),
            teacher_layers=tuple(data["teacher_layers"]),
            student_layers=tuple(data["student_layers"]),
            possible=tuple((hint, guided) for hint, guided in data["possible"]),
            steps=data["steps"],
            batches=data["batches"],
            baseline=data["without"],
            baseline_teachers=tuple(data["without_teachers"]),
            trained_baseline=data["trained"],
        )


@dataclass(frozen=True)
class ProbeJob(RecordedJob):
    """Compute predictors of layer pairs."""

    _: KW_ONLY
    design: ProbeDesign

    def _details(self) -> PlainData:
        return {"probe": self.design.plain()}


@dataclass(frozen=True)
class CacheJob(Job):
    """Compute a share of a teacher's outputs on the training split.

    Attributes:
        study: the concrete study, as plain data.
        teacher: number of the teacher among those of the study.
        weights_file: the teacher's network, below the storage.
        entry: the cache entry to compute.
        share, shares: computes every `shares`-th file of the entry, from number `share`.
    """

    study: PlainData
    teacher: int
    weights_file: str
    entry: CacheSpec
    share: int
    shares: int

    @property
    def teachers(self) -> tuple[str, ...]:
        """Files of the networks that the job needs, below the storage."""
        return (self.weights_file,)


@dataclass(frozen=True)
class IdleJob(Job):
    """Keep a slot warm while there is nothing to do.

    Attributes:
        seconds: time between two questions whether there is work.
    """

    seconds: float = 0.2


JournalJob = TrainJob | EvaluateJob | ProbeJob
QueuedJob = JournalJob | CacheJob
AnyJob = QueuedJob | IdleJob


def read_job(data: PlainData) -> JournalJob:
    """Read a recorded job from the journal."""
    required = ("id", "role", "study", "seed", "epochs")
    optional = ("folder", "params", "parent", "test", "tags", "metrics", "names")
    common = {name: data[name] for name in required}
    common |= {name: data[name] for name in optional if name in data}
    common["teachers"] = tuple(data.get("teachers", ()))
    if data.get("probe") is not None:
        return ProbeJob(**common, design=ProbeDesign.from_plain(data["probe"]))
    if data.get("measures") is not None:
        return EvaluateJob(**common, weights_file=data["measures"])
    return TrainJob(
        **common,
        cache_keys=tuple(data.get("outputs", ())),
        exclusive=data.get("sole", False),
        keep=data.get("keep"),
    )


@dataclass(frozen=True)
class Report:
    """Progress of a job: an epoch of a training, or a part of another job.

    Attributes:
        epoch: number of finished epochs (of a cache job: of files).
        metrics: of this epoch; of the last one with cost and, if asked for, test metrics.
        done: whether the job is complete.
        clock: when this epoch was trained; None if it was not measured.
        history: metrics of the epochs before, if the job was resumed since the last report.
        predictors: of a probe job: its result.
        warnings: sentences on what went wrong without ending the job.
        class_hits: number of correct predictions for each class of the test split, if they were
            counted.
    """

    epoch: int
    metrics: Metrics
    done: bool
    clock: Clock | None = None
    history: tuple[Metrics, ...] = ()
    predictors: PlainData | None = None
    warnings: tuple[str, ...] = ()
    class_hits: tuple[int, ...] = ()


@dataclass(frozen=True)
class JobFailure:
    """Failure of a job.

    Attributes:
        reason: in one line.
        traceback: for the log; empty if there is none.
        raised_at: the place in the user's own code, "FILE:LINE"; empty if it took no part.
        slot_unusable: whether the slot itself cannot train anything.
    """

    reason: str
    traceback: str = ""
    raised_at: str = ""
    slot_unusable: bool = False
