"""The concrete study: what a study file says once every domain has a value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from raykd.architecture import MODELS
from raykd.data import SOURCES
from raykd.knowledge import Term
from raykd.option import option
from raykd.schemes import SCHEMES, Offline
from raykd.schemes.teachers import Teacher
from raykd.schemes.train import PositiveInt, Train
from raykd.study.samplers import Sampler

if TYPE_CHECKING:
    from raykd.architecture.model import Model
    from raykd.data.source import Source
    from raykd.schemes.scheme import Scheme

    AnyModel = Model
    AnySource = Source
    AnyScheme = Scheme
else:
    AnyModel = MODELS.annotation
    AnySource = SOURCES.annotation
    AnyScheme = SCHEMES.annotation


@option
class Student:
    """The network that learns."""

    model: AnyModel


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of studies: they become names of folders, too."""

Direction = Literal["max", "min"]
Cost = Literal["params", "macs"]


@option
class Bounds:
    """The range a constrained quantity must keep."""

    min: float | None = None
    max: float | None = None


@option
class Asha:
    """Asynchronous successive halving (Li 2020, arXiv:1810.05934).

    With one objective Ray Tune's own; with several, rungs keep whole non-dominated fronts.
    """

    paper: ClassVar[str] = (
        "Li 2020, arXiv:1810.05934; several objectives: Schmucker 2021, arXiv:2106.12639"
    )
    stops_early: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = True
    when: ClassVar[str] = (
        "many trials whose first epochs tell good from bad; where a term starts late or is trained "
        "beforehand, let `grace_epochs` reach beyond"
    )

    name: Literal["asha"] = "asha"
    grace_epochs: Annotated[int, Field(ge=1, description="no trial stops before")] = 1
    reduction: Annotated[float, Field(gt=1, description="one in so many goes on")] = 3


@option
class Median:
    """Stop a trial below the median of the others' running means (Golovin 2017).

    It looks at the first objective.
    """

    paper: ClassVar[str] = "Golovin 2017, KDD"
    stops_early: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = False
    when: ClassVar[str] = "one objective, and fewer trials than would fill the rungs of asha"

    name: Literal["median"] = "median"
    grace_epochs: Annotated[int, Field(ge=1, description="no trial stops before")] = 1
    min_trials: Annotated[int, Field(ge=1, description="a median is of so many at least")] = 3


@option
class Unscheduled:
    """Every trial runs to its end."""

    paper: ClassVar[str] = ""
    stops_early: ClassVar[bool] = False
    several_objectives: ClassVar[bool] = True
    when: ClassVar[str] = "few trials, or trials that are all to be compared at the full budget"

    name: Literal["none"] = "none"


Scheduler = Annotated[Asha | Median | Unscheduled, Field(discriminator="name")]


@option
class Search:
    """How the space is explored."""

    objectives: Annotated[dict[str, Direction], Field(min_length=1)] = field(
        default_factory=lambda: {"val_accuracy": "max"}
    )
    constraints: dict[Cost, Bounds] = field(default_factory=dict)
    sampler: Sampler = "tpe"
    scheduler: Annotated[Scheduler, Field(description="early stopping")] = Unscheduled()
    trials: PositiveInt = 16
    replicates: Annotated[
        int, Field(ge=0, description="seeds for each chosen student and for it alone")
    ] = 3
    chosen: Annotated[int, Field(ge=1, description="at most so many points of the front")] = 3
    max_hours: Annotated[float | None, Field(gt=0, description="no new trial after")] = None


@option
class Cluster:
    """What each trial gets of the cluster."""

    slots: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(description="trials side by side; auto: as many as fit"),
    ] = "auto"
    workers_per_trial: PositiveInt = 1
    gpus_per_worker: Annotated[
        Annotated[float, Field(ge=0)] | Literal["auto"], Field(description="auto: 1 if there are")
    ] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    storage: Annotated[
        str, Field(description="folder or URI for the study's files; all nodes must reach it")
    ] = "studies"
    max_failures: Annotated[
        int, Field(ge=0, description="how often a slot's lost workers are started again")
    ] = 3


@option
class Tracking:
    """Where MLflow keeps the runs."""

    uri: str = "sqlite:///mlflow.db"
    experiment: Annotated[str | None, Field(description="null: the study's name")] = None
    register: Annotated[
        str | None, Field(description="registered model's name for the chosen students")
    ] = None


@option
class Study:
    """One search: a teacher, students and distillations, a budget, objectives."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: AnySource
    teacher: Teacher | None = None
    student: Student
    scheme: AnyScheme = Offline()
    knowledge: tuple[Term, ...] = ()
    train: Train = Train()
    search: Search = Search()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()


@lru_cache(maxsize=1)
def study_adapter() -> TypeAdapter[Study]:
    """Reads and describes `Study`."""
    return TypeAdapter(Study)


def read_study(data: Mapping[str, Any]) -> Study:
    """The concrete study that plain data (`plain`, or a file without domains) write down.

    Strict: text is no number, 8.0 no whole number, and `true` neither.

    Raises:
        pydantic.ValidationError: a ValueError; the data are no concrete study.
    """
    return study_adapter().validate_json(json.dumps(data), strict=True)


def plain(value: Any) -> Any:
    """An option (a study, a term, a model ...) as mappings, lists and scalars."""
    if dataclasses.is_dataclass(value):
        held = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(inner) for name, inner in held}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value
