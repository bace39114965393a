"""The concrete study: a study file whose domains all have a value."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from raykd.data import AnySource
from raykd.errors import Problem
from raykd.losses import Term
from raykd.metrics import AGREEMENT
from raykd.models import AnyModel, CompressedModel, Model
from raykd.models.introspection.latency import Latency
from raykd.models.proxies import AnyProxy, NoProxy
from raykd.registry import Registry, option, replaced_unchecked
from raykd.schemes import AnyScheme, Offline, Teacher, TeacherContext, TeacherSpec
from raykd.schemes.base import InputName, independent_teacher, origin_of
from raykd.study.objectives import Cost, Direction
from raykd.study.samplers import AnySampler, Tpe
from raykd.study.schedulers import AnyScheduler, Unscheduled
from raykd.tasks import AnyTask, Task
from raykd.tracking.store_uri import DEFAULT_STORE
from raykd.train_config import PositiveInt, Train


@option
class Student:
    """The student network."""

    model: AnyModel
    input: InputName = None


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of study names; they are also names of folders."""


@option
class Bounds:
    """Allowed range of a constrained quantity."""

    min: float | None = None
    max: float | None = None

    def conflicts(self) -> Iterator[Problem]:
        """Yield the problem of bounds that are missing or reversed."""
        if self.min is None and self.max is None:
            yield Problem("neither min nor max is given", fix="write {max: 100_000}, or remove it")
        elif self.min is not None and self.max is not None and self.min > self.max:
            message = f"reversed bounds: min {self.min:,.9g} is greater than max {self.max:,.9g}"
            yield Problem(message, fix="exchange them")


NullArm = Literal["forward", "reverse", "random", "all_to_one", "semckd"]
"""Baselines of single pairs, besides the student without hint."""


@option
class PairStudy:
    """Settings of `raykd pairs`, which compares pairs of hint and guided layers."""

    seeds: Annotated[
        int, Field(ge=1, description="Number of seeds per arm; at least 3 are recommended")
    ] = 3
    sets: Annotated[
        int, Field(ge=0, description="Number of sampled sets of pairs, in addition to single pairs")
    ] = 0
    arms: Annotated[tuple[NullArm, ...], Field(description="Baselines for single pairs")] = (
        "forward",
        "reverse",
        "random",
        "all_to_one",
        "semckd",
    )
    steps: Annotated[
        int,
        Field(
            ge=0,
            description="Training steps without hint before the predictors are computed a "
            "second time",
        ),
    ] = 200
    batches: Annotated[
        int,
        Field(ge=0, description="Number of training batches for the predictors; 0: no predictors"),
    ] = 8


@option
class Search:
    """Settings of the search."""

    objectives: Annotated[
        dict[str, Direction],
        Field(
            description="Metrics and costs to optimize, each with its better direction. Without "
            "any: the first metric of the task",
        ),
    ] = field(default_factory=dict)
    constraints: dict[Cost, Bounds] = field(default_factory=dict)
    measure: Annotated[
        tuple[Cost, ...],
        Field(
            description="Additional costs to measure, besides params, macs and those of "
            "objectives and constraints"
        ),
    ] = ()
    latency: Annotated[Latency, Field(description="Settings for measuring latencies")] = Latency()
    sampler: AnySampler = Tpe()
    scheduler: Annotated[AnyScheduler, Field(description="Early stopping of trials")] = (
        Unscheduled()
    )
    proxy: Annotated[
        AnyProxy, Field(description="Zero-cost proxy that ranks architectures before training")
    ] = NoProxy()
    trials: PositiveInt = 16
    replicates: Annotated[
        int,
        Field(
            ge=0,
            description="Number of seeds for each finalist, with and without the teacher",
        ),
    ] = 3
    finalists: Annotated[
        int,
        Field(
            ge=1,
            description="Maximum number of students of the Pareto front that are trained again",
        ),
    ] = 3
    finish: Annotated[
        float,
        Field(
            ge=0,
            description="Epochs to spend after the last trial on paused trials that are "
            "non-dominated at their rung, as a share of the epochs of all trials before",
        ),
    ] = 0.25
    max_hours: Annotated[
        float | None, Field(gt=0, description="Stop starting new trials after this many hours")
    ] = None
    pairs: Annotated[PairStudy, Field(description="Settings of `raykd pairs`")] = PairStudy()

    def conflicts(self) -> Iterator[Problem]:
        """Yield the problems of objectives, constraints and the proxy."""
        from raykd.study.checks.rules import search_issues
        from raykd.study.yaml_file import dotted

        for issue in search_issues(self):
            yield Problem(issue.message, path=dotted(issue.place[1:]), fix=issue.fix)


@option
class Cluster:
    """Resources for the trials."""

    slots: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(
            description="Number of parallel trials. auto: as many as fit; on GPUs, if "
            "gpus_per_worker is auto too, the number per GPU with the highest "
            "throughput in images per second"
        ),
    ] = "auto"
    max_slots: Annotated[
        int | None,
        Field(
            ge=1,
            description="Maximum number of parallel trials with `slots: auto`. On a Ray cluster "
            "that is joined, the search begins with the slots that fit, and the others are "
            "requested from the cluster's autoscaler. null: as many as fit",
        ),
    ] = None
    workers_per_trial: PositiveInt = 1
    gpus_per_worker: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"],
        Field(
            description="GPUs per worker. auto: 1 if available, or the fraction selected by "
            "`slots: auto`"
        ),
    ] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    storage: Annotated[
        str,
        Field(
            description="Folder or URI for the files of the study. Must be accessible from "
            "all nodes"
        ),
    ] = "studies"
    max_failures: Annotated[
        int, Field(ge=0, description="Maximum number of restarts of lost workers per slot")
    ] = 3
    hang_timeout_s: Annotated[
        int,
        Field(
            ge=1,
            description="Seconds that the workers of a trial wait for one of them; then the "
            "trial fails and names its rank. Also the seconds that a worker, or all workers of a "
            "trial, may take for a batch; then the trial continues in another slot",
        ),
    ] = 1800
    split_batches: Annotated[
        bool,
        Field(
            description="If the memory of the GPU or of the host does not suffice for a batch, "
            "train on it in 2, 4, ... parts whose gradients are added. Batch norm then uses the "
            "statistics of a part. Not with several workers per trial, `compile: graph`, or losses "
            "that relate samples"
        ),
    ] = False


@option
class Cache:
    """Cache of teacher outputs on the training samples, shared by all trials.

    The views are replayable: view k of a sample is the same in every trial, replicate and process,
    so its teacher outputs can be cached (Beyer 2022, arXiv:2106.05237, "consistent").  Logits are
    cached instead of probabilities, which depend on the temperature.
    """

    use: Annotated[
        Literal["auto", "always", "never"],
        Field(description="Use of the cache. auto: if it fits and saves time"),
    ] = "auto"
    views: Annotated[
        PositiveInt | Literal["auto"],
        Field(
            description="Number of different augmented views per sample, reused in turn "
            "over the epochs. auto: one per epoch, or fewer if they do not fit"
        ),
    ] = "auto"
    seed: Annotated[
        int | None,
        Field(ge=0, lt=2**31, description="Random seed of the views. null: the seed of the study"),
    ] = None
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"], Field(description="Data type of the cached outputs")
    ] = "fp16"
    features_gb: Annotated[
        float,
        Field(
            ge=0,
            description="Maximum size of the cached hint layers per teacher, in GB. Layers "
            "that do not fit are computed in every training step",
        ),
    ] = 4.0
    limit_gb: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum size of all cached outputs in the storage, in GB. Beyond "
            "it, the least recently used are removed",
        ),
    ] = 20.0
    folder: Annotated[
        str | None,
        Field(
            description="Folder on each node to copy outputs to before reading. null: read "
            "them from the storage, or from a copy in the temporary folder if "
            "the storage is a URI"
        ),
    ] = None


REGISTER_PATTERN = r"^[^/:\s][^/:]*$"
"""Pattern of names in MLflow's model registry."""


@option
class Tracking:
    """MLflow tracking settings."""

    uri: str = DEFAULT_STORE
    experiment: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=500,
            description="Name of the MLflow experiment. null: the name of the study",
        ),
    ] = None
    register: Annotated[
        str | None,
        Field(
            pattern=REGISTER_PATTERN,
            max_length=256,
            description="Name of the registered model for the finalists",
        ),
    ] = None


@option
class Study:
    """A study: teacher, students, distillation methods, budget and objectives."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: AnySource
    task: Annotated[
        AnyTask | None,
        Field(description="Meaning of the targets, and metrics. null: the task of the data"),
    ] = None
    teacher: Teacher | None = None
    student: Student
    scheme: AnyScheme = Offline()
    knowledge: tuple[Term, ...] = ()
    train: Train = Train()
    search: Search = Search()
    cluster: Cluster = Cluster()
    cache: Cache = Cache()
    tracking: Tracking = Tracking()

    def __post_init__(self) -> None:
        # Only here are data, task and objectives together, so defaults of one come from another
        task = self.task or self.data.default_task()
        object.__setattr__(self, "task", task)
        if not self.search.objectives:
            lead: dict[str, Direction] = {f"val_{task.lead}": "max"}
            with contextlib.suppress(ValueError):  # a metric of the user, refused by the checks
                lead = {f"val_{task.lead}": task.direction(task.lead)}
            search = replaced_unchecked(self.search, objectives=lead)
            object.__setattr__(self, "search", search)

    @property
    def learning_task(self) -> Task:
        """The task, that of the data if the study names none."""
        assert self.task is not None, "set by __post_init__"
        return self.task

    def teacher_specs(self, seed: int | None = None) -> tuple[TeacherSpec, ...]:
        """Return the networks that teach under the scheme, in the order of the scheme.

        Args:
            seed: random seed of the networks that trials share; None: the seed of the study.
        """
        return self.scheme.teachers(self.teacher_context(seed))

    def required_networks(self, seed: int | None = None) -> tuple[TeacherSpec, ...]:
        """Return all networks that must exist before the study can be trained.

        They are its teachers in the order of the scheme, then the trained network that its student
        inherits weights from, if it does (even if that network is one of the teachers), then the
        reference teacher, if it is none of them.

        Args:
            seed: as for `teacher_specs`.
        """
        origin = origin_of(self.student.model, self.teacher_context(seed))
        networks = self.teacher_specs(seed) + (() if origin is None else (origin,))
        reference = self.reference_teacher(seed)
        return networks if reference in (None, *networks) else (*networks, reference)

    def reference_teacher(self, seed: int | None = None) -> TeacherSpec | None:
        """Return the teacher whose agreement with the student is a metric of the task.

        It is the `teacher` of the study, under any scheme.

        Args:
            seed: as for `teacher_specs`.

        Returns:
            None if the agreement is no metric, or the study has no teacher.
        """
        if self.teacher is None or AGREEMENT not in self.learning_task.metrics:
            return None
        return independent_teacher(self.teacher, self.teacher_context(seed))

    def teacher_context(self, seed: int | None = None) -> TeacherContext:
        """Return the facts from which a scheme derives its teachers.

        Args:
            seed: as for `teacher_specs`.
        """
        return TeacherContext(
            teacher=self.teacher,
            student=self.student.model,
            train=self.train,
            knowledge=self.knowledge,
            seed=self.seed if seed is None else seed,
            trial_seed=self.seed,
            augment=self.data.augment,
            student_input=self.student.input,
        )


def study_adapter() -> TypeAdapter[Study]:
    """Pydantic's adapter of `Study`."""
    return _adapter_of(Registry.version)


@lru_cache(maxsize=1)
def _adapter_of(version: int) -> TypeAdapter[Study]:
    return TypeAdapter(Study)


def read_study(data: Mapping[str, Any]) -> Study:
    """Read a concrete study from plain data (`plain`, or a file without domains).

    Strict: text, 8.0 and `true` are not whole numbers.

    Raises:
        pydantic.ValidationError: a ValueError; the data are not a concrete study.
    """
    return with_sources(study_adapter().validate_json(json.dumps(data), strict=True))


def with_sources(study: Study) -> Study:
    """Return the study with its teacher's model as base of all compressed models without one.

    A teacher that is itself a compressed model inherits no weights.
    """
    teacher = study.teacher
    if (
        teacher is not None
        and isinstance(teacher.model, CompressedModel)
        and teacher.model.inherit_weights
    ):
        fresh = dataclasses.replace(teacher.model, inherit_weights=False)
        teacher = dataclasses.replace(teacher, model=fresh)
    model = teacher.model if teacher is not None else None
    student, scheme = _derived_from(model, (study.student, study.scheme))
    if (teacher, student, scheme) == (study.teacher, study.student, study.scheme):
        return study
    return dataclasses.replace(study, teacher=teacher, student=student, scheme=scheme)


def _derived_from(teacher: Model | None, value: Any) -> Any:
    """Return a part of a study with bases of compressed models; the same object if it has none."""
    if isinstance(value, Model):
        return value.bind_teacher(teacher)
    if isinstance(value, tuple):
        value_of = tuple(_derived_from(teacher, inner) for inner in value)
        return value if all(map(operator.is_, value_of, value)) else value_of
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: _derived_from(teacher, value_of) for name, value_of in fields.items()}
    changed = {name: value_of for name, value_of in changed.items() if value_of is not fields[name]}
    return dataclasses.replace(value, **changed) if changed else value


def plain(value: Any) -> Any:
    """Return an option (a study, a term, a model ...) as mappings, lists and scalars."""
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(inner) for name, inner in fields}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value
