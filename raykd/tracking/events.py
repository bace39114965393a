"""Events of a study: everything that a run reports, declared once.

A run publishes each event to its listeners (`EventBus` in `raykd.tracking.journal`) and appends
most of them to the study's journal.  `Event.record` is an event as JSON; `parse` reads it back.
`python -m raykd.tracking.event_docs > docs/events.md` writes the documentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, Self

from raykd.tracking.json_types import metrics_of, type_checks

Role = Literal["teacher", "trial", "replicate", "alone", "probe"]
EndStatus = Literal["finished", "stopped", "failed"]
CacheStatus = Literal["found", "begun", "kept", "live", "removed"]
Phase = Literal["ray", "packing", "screen", "tracking"]
Metrics = Mapping[str, float]
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Event:
    """Base class of all events.

    Attributes:
        at: milliseconds since 1970 (UTC) at which the event was written; 0 before that.  Two events
            that differ only in it are equal.
    """

    kind: ClassVar[str] = ""
    journaled: ClassVar[bool] = True
    """False for events that listeners get but the journal does not keep."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Fields that the JSON leaves out where they have their defaults."""

    at: int = field(default=0, compare=False, kw_only=True)

    def fields(self) -> dict[str, Any]:
        """Return the event's own fields by name, without those that the JSON leaves out."""
        values = {name: getattr(self, name) for name in _names(type(self))}
        for name in self.optional:
            if values[name] == _default(type(self), name):
                del values[name]
        return values

    def record(self) -> dict[str, Any]:
        """Return the event as the JSON object of its line, in the order of the line."""
        return {"at": self.at, "event": self.kind, **self.fields()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Build the event from the JSON object of a line; fields of newer versions are ignored.

        Raises:
            TypeError: a field without a default is missing.
        """
        values = {name: record[name] for name in _names(cls) if name in record}
        return cls(**values, at=record.get("at", 0))


@dataclass(frozen=True)
class StudyStarted(Event):
    """A study starts or is resumed.

    Attributes:
        id: unique ID of the study; the same after a resume.
        name: name of the study.
        experiment: MLflow experiment of its runs.
        register: name under which models are registered in MLflow; null: they are not.
        text: text of the study file.
        overrides: values set on the command line, each as `a.b=value`; null: not recorded.
        resolved: the study with all its defaults.
        file: path of the study file's copy in the study folder.
        argv: command that started the study.
        git: commit of the working folder, with `branch` and `dirty`; null outside a repository.
        versions: versions of the packages that matter, by package.
        store_from: `MLFLOW_TRACKING_URI` if the tracking store comes from that variable, else "".
        content: SHA-256 of each file that the models depend on.
        seed: random seed of the study.
    """

    kind = "study"

    id: str
    name: str = ""
    experiment: str | None = None
    register: str | None = None
    text: str = ""
    overrides: Sequence[str] | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    argv: Sequence[str] = ()
    git: Mapping[str, Any] | str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    store_from: str = ""
    content: Mapping[str, str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class StudyExtended(Event):
    """A resumed study has grown since its last run: more trials, replicates or values.

    Attributes:
        grown: each changed place of the study file as `old -> new`, such as `search.trials` as
            `6 -> 10`.
        draws: true if further trials follow, after which finalists are chosen again.
        space: true if the space has more points than before.
    """

    kind = "extended"

    grown: Mapping[str, str]
    draws: bool = False
    space: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{place}: {text}" for place, text in self.grown.items())


@dataclass(frozen=True)
class DataLoaded(Event):
    """The data of a study were loaded.

    Attributes:
        name: name of the data source.
        origin: place the data were read from.
        fingerprint: SHA-256 of the data.
        sizes: number of samples of each split.
        classes: number of classes.
        input_shape: shape of one sample.
        class_names: names of the classes; empty if they have none.
        notes: remarks on how the data were read.
        warnings: problems with the data that may distort the results.
        targets: noun for the classes: "classes", "labels" or "values"; "" in an older journal.
    """

    kind = "dataset"

    name: str
    origin: str
    fingerprint: str
    sizes: Mapping[str, int]
    classes: int
    input_shape: Sequence[int]
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    targets: str = ""


@dataclass(frozen=True)
class WarningIssued(Event):
    """Something may change the results.

    Attributes:
        text: the warning, one sentence.
    """

    kind = "warning"
    journaled = False
    text: str


@dataclass(frozen=True)
class PhaseStarted(Event):
    """A step that takes time begins.

    Attributes:
        phase: `ray` (Ray starts), `packing` (trials per GPU are measured), `screen` (architectures
            are ranked) or `tracking` (the last events are uploaded to MLflow).
    """

    kind = "phase"
    journaled = False
    phase: Phase


@dataclass(frozen=True)
class GpuSharingMeasured(Event):
    """The number of trials per GPU was measured.

    Attributes:
        images_per_second: throughput of all trials together, by number of trials per GPU.
        chosen: number of trials per GPU with the highest throughput.
    """

    kind = "packing"
    journaled = False
    images_per_second: Mapping[int, float]
    chosen: int


@dataclass(frozen=True)
class StartPoint:
    """Values that a search tries first.

    Attributes:
        name: trial of another study that the values come from.
        params: values that are used, by place.
        left_out: one sentence for each value that is not used.
    """

    name: str
    params: Mapping[str, Any]
    left_out: Sequence[str]


@dataclass(frozen=True)
class WarmStarted(Event):
    """A search begins with the best trials of other studies (`--start-from`).

    Attributes:
        starts: the points that are tried first.
    """

    kind = "start"
    journaled = False
    starts: Sequence[StartPoint]


@dataclass(frozen=True)
class ArchitecturesRanked(Event):
    """Student architectures were ranked by a proxy before the first trial.

    Attributes:
        name: name of the proxy.
        candidates: number of architectures.
        unranked: number of architectures without a finite score.
        seconds: time it took.
        ranking: architectures that are tried first, best first; each with `student`, `score`
            and `params`.
    """

    kind = "screen"

    name: str
    candidates: int
    unranked: int
    seconds: float
    ranking: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ArmsPlanned(Event):
    """A layer study decided which pairings it compares.

    Attributes:
        arms: pairings, each with `id`, `kind`, `pairs` and `why_not` (the reason it is not
            trained, or "").
        layers: hint and guided layers that are compared (`hints`, `guided`) and that are shown
            (`shown_hint`, `shown_guided`); each with `name`, `shape` and `depth`.
        term: index of the loss in the study's `knowledge`.
        loss: the loss with all its fields.
        weight: weight of the loss.
        seeds: random seeds under which each arm is trained.
    """

    kind = "arms"

    arms: Sequence[Mapping[str, Any]]
    layers: Mapping[str, Sequence[Mapping[str, Any]]]
    term: int
    loss: Mapping[str, Any]
    weight: float
    seeds: Sequence[int]


@dataclass(frozen=True)
class SlotPlan:
    """Resources of the trials that run in parallel.

    Attributes:
        slots: number of trials that run in parallel.
        workers: number of workers of each trial.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker.
    """

    slots: int
    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        trials = f"{self.slots} parallel trials" if self.slots > 1 else "1 trial at a time"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        each = f"{self.cpus:g} CPU" + (f" + {self.gpus:g} GPU" if self.gpus else "")
        return f"{trials}, {workers} each ({each} per worker)"


@dataclass(frozen=True)
class Budget:
    """Upper bounds on what a study trains.

    Attributes:
        teachers: epochs of each teacher that is trained.
        trials: number of trials.
        epochs: epochs of one trial.
        chosen: number of students that are trained again.
        replicates: new seeds of each of them.
        max_hours: hours after which no new trial starts; null: no limit.
    """

    teachers: Sequence[int]
    trials: int
    epochs: int
    chosen: int
    replicates: int
    max_hours: float | None = None


@dataclass(frozen=True)
class SlotsPlanned(Event):
    """The resources and the budget of a run are known.

    Attributes:
        slots: resources of the parallel trials; null: one training at a time in this process.
        budget: upper bounds on what is trained.
        folder: path of the study folder.
    """

    kind = "plan"
    journaled = False
    slots: SlotPlan | None
    budget: Budget
    folder: str


@dataclass(frozen=True)
class TeacherCacheChanged(Event):
    """The state of a teacher's cached outputs changed.

    Attributes:
        key: address of the cache entry.  For `live` teachers that are never cached it describes
            the teacher.
        status: `found` (they are in the cache), `begun` (slots compute them), `kept` (they are
            complete), `live` (the teacher runs in every training step instead) or `removed`
            (least recently used, removed to make room).
        bytes: size of the entry.
        views: number of augmented views of each sample.
        reason: reason for `live`.
    """

    kind = "outputs"
    journaled = False
    optional = ("bytes", "views", "reason")

    key: str
    status: CacheStatus
    bytes: int | None = None
    views: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunStarted(Event):
    """A training starts, or starts again after its worker was lost.

    Attributes:
        id: ID of the run, such as `trial-0007`.
        role: `teacher`, `trial`, `replicate`, `alone` (a student trained without a teacher) or
            `probe` (computes predictors and trains no student that counts).
        parent: ID of the run it belongs to; null: the study.
        params: values drawn by the search, by place.
        tags: facts for MLflow's filters.
        seed: random seed of the run.
        assignment: everything a worker needs to carry out the run.
        name: short description in place of the ID, such as `resnet d8 w12 kd+hint #7`; absent if
            there is none.
    """

    kind = "run"
    optional = ("name",)

    id: str
    role: Role
    parent: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    assignment: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Clock:
    """Start and end of an epoch.

    Attributes:
        first_step: seconds since 1970 at the first training step.
        end: seconds since 1970 at the end.
    """

    first_step: float
    end: float


@dataclass(frozen=True)
class EpochFinished(Event):
    """A run finished an epoch.

    Attributes:
        id: ID of the run.
        epoch: number of the epoch, from 1.
        metrics: metrics of the epoch, and the costs of the network.
        slot: ID of the slot that trained it; absent where there are no slots.
        clock: start and end of the epoch; absent where they are not known.
    """

    kind = "epoch"
    optional = ("slot", "clock")

    id: str
    epoch: int
    metrics: Metrics
    slot: str | None = None
    clock: Clock | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        clock = record.get("clock")
        return cls(
            record["id"],
            record["epoch"],
            metrics_of(record),
            record.get("slot"),
            None if clock is None else Clock(clock["first_step"], clock["end"]),
            at=record.get("at", 0),
        )


@dataclass(frozen=True)
class PredictorsComputed(Event):
    """A layer study computed predictors of a pairing's gain.

    Attributes:
        id: ID of the probe.
        seed: random seed of the student.
        steps: number of training steps before `cka["steps"]` and `gradient`.
        cka: similarity of each hint layer (rows) and guided layer (columns) at the `start`, after
            the `steps`, and for the `trained` student without hint.
        gradient: similarity of the gradients of hint loss and task loss, hint layers as rows.
    """

    kind = "predictors"

    id: str | None
    seed: int
    steps: int
    cka: Mapping[str, Matrix]
    gradient: Matrix

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record.get("id"),
            record["seed"],
            record["steps"],
            {name: [[*map(float, row)] for row in rows] for name, rows in record["cka"].items()},
            [[*map(float, row)] for row in record["gradient"]],
            at=record.get("at", 0),
        )


@dataclass(frozen=True)
class RunPaused(Event):
    """A trial pauses at a rung of the scheduler; its state is kept.

    Attributes:
        id: ID of the trial.
        epoch: number of its finished epochs.
    """

    kind = "pause"

    id: str
    epoch: int


@dataclass(frozen=True)
class RunPromoted(Event):
    """A paused trial continues; in an extended search, also a trial that was stopped at a rung.

    Attributes:
        id: ID of the trial.
        epoch: number of its finished epochs.
        finishing: true if it is to complete the front, after the last trial; else absent.
    """

    kind = "promotion"
    optional = ("finishing",)

    id: str
    epoch: int
    finishing: bool = False


@dataclass(frozen=True)
class RunEnded(Event):
    """A training is over.

    Attributes:
        id: ID of the run.
        status: `finished`, `stopped` (early, by the scheduler) or `failed`.
        reason: the error of a failed run, one line.
        metrics: metrics of the last epoch and, where the role allows it, test metrics.
        raised_at: file and line of user code that raised the error; absent if there is none.
        log: log of a failed run, below the study folder; absent if there is none.
        class_hits: correct predictions of each class of the test split (at most 40 classes).
    """

    kind = "end"
    optional = ("raised_at", "log", "class_hits")

    id: str
    status: EndStatus
    reason: str = ""
    metrics: Metrics = field(default_factory=dict)
    raised_at: str = ""
    log: str = ""
    class_hits: Sequence[int] = ()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record["id"],
            record["status"],
            record.get("reason") or "",
            metrics_of(record),
            record.get("raised_at", ""),
            record.get("log", ""),
            tuple(record.get("class_hits", ())),
            at=record.get("at", 0),
        )


@dataclass(frozen=True)
class Note(Event):
    """A result or remark about a run or the study.

    Tags of the study's own notes include `pairs_left_out` (layer pairs that no loss can compare,
    one sentence a line), `start_from`, `start_left_out`, `screen`, `trials_a_gpu`,
    `teacher_outputs`, `drawing_ended` (the reason no more trials were drawn), `resumed_with`
    (packages whose versions changed: `torch 2.14 -> 2.15`), and `warning_...`.

    Attributes:
        id: ID of the run; null: the study.
        tags: facts for MLflow's filters.
        metrics: figures.
        step: step of the metrics in MLflow; absent if there are none.
    """

    kind = "note"
    optional = ("step",)

    id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    step: int | None = 0

    def fields(self) -> dict[str, Any]:
        values = {"id": self.id, "tags": self.tags, "metrics": self.metrics}
        return values if self.step is None else {**values, "step": self.step}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record.get("id"),
            record.get("tags") or {},
            metrics_of(record),
            record.get("step"),
            at=record.get("at", 0),
        )


@dataclass(frozen=True)
class SummaryWritten(Event):
    """A description of the study, or of its result, was written for its pages in MLflow.

    A later summary replaces an earlier one.

    Attributes:
        headline: the most important fact, one line of Markdown.
        text: everything else, in Markdown.
        has_result: False while there is nothing to name as best.
    """

    kind = "summary"

    headline: str
    text: str
    has_result: bool = True


@dataclass(frozen=True)
class ModelSaved(Event):
    """The network of a chosen student was saved.

    Attributes:
        id: ID of the run that trained it.
        path: file of the whole `nn.Module`, below the study folder.
        input_shape: shape of one sample.
        input_dtype: data type of a sample.
        example: NumPy file of example inputs, below the study folder; null: there is none.
        register: name under which it is registered in MLflow; null: it is not.
        aliases: aliases of the registered version (`champion`, `smallest`).
        metrics: metrics of the network.
        name: name of the network, such as `digits-resnet-d8-w4-kd`; null: `model`.
        about: more facts shown with the network.
        program: file of the network as a program of `torch.export`, below the study folder, which
            loads without raykd; absent if there is none.
        pickle_reason: reason why there is no program; absent if there is one.
    """

    kind = "model"
    optional = ("program", "pickle_reason")

    id: str
    path: str
    input_shape: Sequence[int] = ()
    input_dtype: str = "float32"
    example: str | None = None
    register: str | None = None
    aliases: Sequence[str] = ()
    metrics: Metrics = field(default_factory=dict)
    name: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    program: str | None = None
    pickle_reason: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return super().from_record({**record, "metrics": metrics_of(record)})


@dataclass(frozen=True)
class ArtifactSaved(Event):
    """A file or folder was written that belongs into MLflow.

    Attributes:
        id: ID of the run it belongs to; null: the study.
        path: path below the study folder.
        folder: folder among MLflow's artifacts.
    """

    kind = "artifact"

    id: str | None
    path: str
    folder: str = ""


@dataclass(frozen=True)
class StudyEnded(Event):
    """A run of a study is over.

    Attributes:
        status: `finished`, `failed` or `interrupted`.
    """

    kind = "done"

    status: str = "finished"


@dataclass(frozen=True)
class TrackingEnded(Event):
    """The upload to MLflow ended with the run.

    Attributes:
        delivered: true if MLflow has received every event.
        status: state of the upload, in words.
    """

    kind = "tracked"
    journaled = False
    delivered: bool
    status: str


@dataclass(frozen=True)
class ResultPrinted(Event):
    """The result of a run; the last line of a run that ended, and all of `raykd report --json`.

    The line holds the facts themselves.  For a search: `study`, `id`, `folder`, `status` (as in
    `done`, or `running`), `seconds`, `trials` (number of trials by status), `objectives`, `best`,
    `front` (each with `student`, `scheme`, `learns_from`, `pairs`, `metrics`, `params`), `chosen`
    (test accuracy `distilled` and `alone`, and the `gain`, each as `mean`, `low`, `high`, `count`;
    `gain_is_clear` if the gain differs from noise), `differences` between the finalists,
    `teachers`, `assistants`, `teacher_falls_short`, `failed`, `failures`, `left_out`, `warnings`,
    `notes`, `unfinished`, and `commands` for the next steps.  For a layer study: the content of
    `pairing.json`, and `folder`, `status`, `seconds`, `trials`, `failed`, `failures`, `commands`.

    Attributes:
        facts: the facts by name.
    """

    kind = "result"
    journaled = False
    facts: Mapping[str, Any]

    def fields(self) -> dict[str, Any]:
        return dict(self.facts)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        facts = {key: value for key, value in record.items() if key not in ("at", "event")}
        return cls(facts, at=record.get("at", 0))


@dataclass(frozen=True)
class ProblemFound:
    """One problem of a study or a machine.

    Attributes:
        message: what was found and what is allowed.
        path: place in the study file, such as `train.epochs`.
        fix: how to fix it; may be empty.
        file: the study file; may be empty.
        line: line of the file; 0 if unknown.
    """

    message: str
    path: str = ""
    fix: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class StudyRejected(Event):
    """The study could not be started or carried out; the last line of such a run.

    Attributes:
        problems: all problems that were found.
    """

    kind = "error"
    journaled = False
    problems: Sequence[ProblemFound]


EVENTS: dict[str, type[Event]] = {cls.kind: cls for cls in Event.__subclasses__()}
"""Every class of events by its `kind`, the value of `event` in the JSON."""


def parse(record: Mapping[str, Any]) -> Event | None:
    """Return the event of a line's JSON object; None for one that this version cannot read.

    Args:
        record: the object; an unknown kind (of a newer version), a missing field and a field of
            another type give None, unknown fields are ignored.
    """
    cls = EVENTS.get(record.get("event", ""))
    if cls is None:
        return None
    try:
        event = cls.from_record(record)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    is_valid = all(accepts(getattr(event, name)) for name, accepts in type_checks(cls))
    return event if is_valid else None


@cache
def _names(cls: type[Event]) -> tuple[str, ...]:
    return tuple(part.name for part in dataclasses.fields(cls) if part.name != "at")


@cache
def _default(cls: type[Event], name: str) -> Any:
    return next(part.default for part in dataclasses.fields(cls) if part.name == name)
