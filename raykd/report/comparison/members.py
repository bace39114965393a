"""Members of a comparison: studies, or groups of runs that other programs recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from raykd.runtime.jobs import Role
from raykd.study.objectives import COSTS
from raykd.tracking.cursor import Cursor
from raykd.tracking.events import DataLoaded, Event, RunEnded, RunStarted, StudyStarted
from raykd.tracking.mlflow_comparison import COMPARISON
from raykd.tracking.mlflow_runs import StoredRun
from raykd.tracking.mlflow_values import run_params, text
from raykd.tracking.store_uri import absolute, masked
from raykd.tuning.records import Record, Records, run_name
from raykd.tuning.result import read_run

SEEDS = ("seed", "random_seed", "random_state", "manual_seed", "rng_seed")
"""Last parts of the names of params that hold a random seed."""

STATUS = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "running"}
"""Status of a training by MLflow's status; all others have failed."""

NUMBER = re.compile(r"\d+(\.\d+)?")

ROLES: tuple[Role, ...] = ("teacher", "trial", "replicate", "alone")
"""Roles of the trainings that are compared."""

DOMAINS = frozenset({"choice", "uniform", "loguniform", "int", "logint", "pairing"})
"""Keys of the domains in a study file."""


@dataclass(frozen=True)
class Training:
    """A training with its last metrics.

    Attributes:
        id: ID in the journal, or MLflow's run ID.
        role: "trial", "replicate", "alone", "teacher" or "probe"; "run" for other programs' runs.
        status: "running", "finished", "stopped" (early) or "failed".
        name: description of the run.
        seed: random seed; None if unknown.
        params: all values, by name, without the seed.
        metrics: last metrics and costs.
        seconds: duration; None if unknown.
        group: ID of the trial of a replicate or baseline, or arm of a layer study; else "".
        teaching: losses, layer pairs and scheme of the run, as in MLflow's tags.
    """

    id: str
    role: str
    status: str
    name: str
    seed: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    seconds: float | None
    group: str = ""
    teaching: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Data of a member.

    Attributes:
        name: name of the data source; "" if unknown.
        fingerprint: fingerprint of the splits; "" if unknown.
        options: values of the study that select and split the data.
    """

    name: str = ""
    fingerprint: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Place of a member.

    Attributes:
        folder: folder of the study; None for members from MLflow.
        uri: URI of the MLflow store.
        experiment_id, run_id: MLflow's IDs; empty if the member is not in the store.
    """

    folder: Path | None = None
    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        run = f" run {self.run_id}" if self.run_id else f" experiment {self.experiment_id}"
        return f"{masked(self.uri)}{run}"


@dataclass(frozen=True)
class Member:
    """A study, or a group of runs that another program recorded.

    Attributes:
        name: name of the study or of the group.
        trainings: all its trainings.
        objectives: metric -> "max" or "min"; empty if unknown.
        data: its data.
        place: its place.
        is_study: True for raykd's studies.
        load_settings: returns the study with all its defaults, or None if it is unknown.
    """

    name: str
    trainings: tuple[Training, ...]
    objectives: Mapping[str, str]
    data: Data
    place: Place
    is_study: bool = True
    load_settings: Callable[[], Mapping[str, Any] | None] = lambda: None

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """The study's settings by place; for other runs the params that all runs share."""
        settings = self.load_settings()
        if settings is not None:
            return dict(flat_settings(settings))
        return shared_params(self.trainings)

    def settings_of_runs(self, name: str) -> tuple[str, ...]:
        """Return the values of a param among the students' trainings, sorted."""
        students = self.of("trial", "replicate", "run")
        return tuple(sorted({t.params[name] for t in students if name in t.params}))

    def of(self, *roles: str) -> list[Training]:
        """Return the trainings of the given roles."""
        return [training for training in self.trainings if training.role in roles]

    @property
    def trials(self) -> list[Training]:
        """Trials of a study, or all runs of another program."""
        return self.of("trial", "run")

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Training time by role, all slots together."""
        totals: dict[str, float] = {}
        for training in self.trainings:
            if training.seconds is not None:
                totals[training.role] = totals.get(training.role, 0.0) + training.seconds
        return totals


@cache
def is_seed(name: str) -> bool:
    """Return True for the name of a param that holds a random seed."""
    return re.split(r"[./]", name)[-1].lower() in SEEDS


def shared_params(trainings: Sequence[Training]) -> dict[str, str]:
    """Return the params that have the same value in all trainings."""
    shared: dict[str, str] = dict(trainings[0].params) if trainings else {}
    for training in trainings[1:]:
        shared = {k: v for k, v in shared.items() if training.params.get(k) == v}
    return shared


def flat_settings(value: Any, place: str = "") -> Iterable[tuple[str, str]]:
    """Yield the values of a study by place, as texts; a domain is one value."""
    is_domain = isinstance(value, Mapping) and bool(DOMAINS & value.keys())
    if isinstance(value, Mapping) and value and not is_domain:
        for key, inner in value.items():
            yield from flat_settings(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from flat_settings(inner, f"{place}[{number}]")
    else:
        yield place, "none" if value is None else text(value)


# Members from folders


def member_of_folder(path: Path, trial: str = "") -> Member:
    """Return the study in a folder, finished or not.

    Args:
        path: folder of the study.
        trial: ID of a trial, to which the member is limited; "": all trainings.

    Raises:
        StudyError: this is not a study's folder, or its journal is damaged or has no events yet.
    """
    run, _, history = read_run(path)
    sent = Cursor(run.folder / "journal.jsonl", masked(absolute(run.tracking_uri))).load()
    place = Place(run.folder, run.tracking_uri, sent.experiment, sent.run)
    member = member_of_history(run.name, history, run.records, place)
    if not trial:
        return member
    trainings = tuple(t for t in member.trainings if trial in (t.id, t.group))
    return replace(member, name=f"{run.name}:{trial}", trainings=trainings)


def member_of_history(
    name: str, history: Sequence[Event], records: Records, place: Place
) -> Member:
    """Return the study whose journal has these events and records.

    Args:
        name: name of the member.
        history: events of the journal, which start the study.
        records: records of the journal.
        place: place of the member.
    """
    start = next(event for event in reversed(history) if isinstance(event, StudyStarted))
    times = _times(history)
    started = {event.id: event for event in history if isinstance(event, RunStarted)}
    trainings = [_of_record(each, started[each.id], times) for each in records.of(*ROLES)]
    return Member(
        name=name,
        trainings=tuple(trainings),
        objectives=start.resolved["search"]["objectives"],
        data=_data_of(history, trainings),
        place=place,
        load_settings=lambda: start.resolved,
    )


def _of_record(record: Record, start: RunStarted, times: Mapping[str, float]) -> Training:
    job = record.job
    params = run_params(start)
    return Training(
        id=record.id,
        role=record.role,
        status=record.status,
        name=start.name or run_name(job),
        seed=job.seed,
        params={key: value for key, value in params.items() if not is_seed(key)},
        metrics={**job.metrics, **record.metrics},
        seconds=times.get(record.id),
        group=job.tags.get("arm") or job.parent or "",
        teaching={key: job.tags[key] for key in TEACHING if key in job.tags},
    )


TEACHING = ("scheme", "losses", "pairs", "student", "teacher")


def _times(history: Sequence[Event]) -> dict[str, float]:
    """Return the seconds of each training that has ended."""
    started: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for event in history:
        if isinstance(event, RunStarted):
            started[event.id] = event.at
        elif isinstance(event, RunEnded) and event.id in started:
            seconds[event.id] = (event.at - started[event.id]) / 1000
    return seconds


def _data_of(history: Sequence[Event], trainings: Sequence[Training]) -> Data:
    loaded = next((event for event in history if isinstance(event, DataLoaded)), None)
    options = _data_options(trainings)
    if loaded is None:
        return Data(options.get("data", ""), "", options)
    return Data(loaded.name, loaded.fingerprint, options)


def _data_options(trainings: Sequence[Training]) -> dict[str, str]:
    params = trainings[0].params if trainings else {}
    return {k: v for k, v in params.items() if k == "data" or k.startswith("data.")}


# Members from MLflow


def members_of_runs(
    runs: Sequence[StoredRun], group: str, uri: str, read_file: Callable[[str], str]
) -> list[Member]:
    """Return the studies and groups among runs of a store.

    A study of raykd is one member.  Runs of other programs are one member for each parent run,
    and one for all runs without parent and children.

    Args:
        runs: runs of one experiment or one filter; runs of comparisons are left out.
        group: name of the runs that have neither parent nor children.
        uri: URI of the store.
        read_file: returns the resolved study of a study's run, by MLflow's run ID, as YAML.
    """
    by_id = {run.run_id: run for run in runs}
    parents = {run.parent for run in runs}
    studies: dict[str, list[StoredRun]] = {}
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        if run.tags.get("raykd.role") == COMPARISON:
            continue
        study = run.tags.get("raykd.study")
        if study is not None:
            studies.setdefault(study, []).append(run)
        elif run.run_id not in parents or (run.params and run.metrics):
            groups.setdefault(_root(run, by_id, parents), []).append(run)
    members = [_study_member(id, of_study, uri, read_file) for id, of_study in studies.items()]
    for root, of_group in groups.items():
        parent = by_id.get(root)
        name = (parent.name or root) if parent is not None else group
        members.append(_group_member(name, root, of_group, uri))
    return [member for member in reversed(members) if member.trainings]


def _root(run: StoredRun, by_id: Mapping[str, StoredRun], parents: set[str]) -> str:
    """Return the ID of the run's oldest ancestor; "" for a run without parent and children."""
    root = run
    while root.parent in by_id:
        root = by_id[root.parent]
    return root.run_id if root is not run or run.run_id in parents else ""


def _study_member(
    study: str, runs: Sequence[StoredRun], uri: str, read_file: Callable[[str], str]
) -> Member:
    parent = next((run for run in runs if run.tags.get("raykd.id") == study), None)
    trainings = [each for run in runs if run is not parent if (each := _of_run(run)).role in ROLES]
    trainings.sort(key=lambda training: training.id)
    params = trainings[0].params if trainings else {}
    prefix = "search.objectives."
    objectives = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
    names = sorted(objectives, key=lambda name: (not name.startswith("val_"), name))
    fingerprint = parent.tags.get("raykd.data_fingerprint", "") if parent is not None else ""
    options = _data_options(trainings)

    def settings() -> Mapping[str, Any] | None:
        written = read_file(parent.run_id) if parent is not None else ""
        if not written:
            return None
        import yaml

        return yaml.safe_load(written)

    run_id = parent.run_id if parent is not None else ""
    return Member(
        name=parent.name if parent is not None else params.get("name", study),
        trainings=tuple(trainings),
        objectives={name: objectives[name] for name in names},  # stores do not keep the order
        data=Data(options.get("data", ""), fingerprint, options),
        place=Place(None, uri, runs[0].experiment_id, run_id),
        load_settings=settings,
    )


def _of_run(run: StoredRun) -> Training:
    """Return a training that raykd recorded."""
    tags = run.tags
    id = tags.get("raykd.id", run.run_id).partition("/")[2] or run.run_id
    role = tags.get("raykd.role", "trial")
    group = id.rpartition("/")[0] if role in ("replicate", "alone") else ""
    seed = run.params.get("seed", "")
    costs = {name: float(tags[name]) for name in COSTS if NUMBER.fullmatch(tags.get(name, ""))}
    return Training(
        id=id,
        role=role,
        status=tags.get("raykd.status", STATUS.get(run.status, "failed")),
        name=run.name,
        seed=int(seed) if seed.lstrip("-").isdigit() else None,
        params={key: value for key, value in run.params.items() if not is_seed(key)},
        metrics={**costs, **run.metrics},
        seconds=_seconds(run),
        group=tags.get("arm") or group,
        teaching={key: tags[key] for key in TEACHING if key in tags},
    )


def _seconds(run: StoredRun) -> float | None:
    return None if run.start is None or run.end is None else (run.end - run.start) / 1000


def _group_member(name: str, root: str, runs: Sequence[StoredRun], uri: str) -> Member:
    datasets = sorted({dataset for run in runs for dataset in run.datasets})
    names, _, digest = ", ".join(datasets).partition("@") if len(datasets) == 1 else ("", "", "")
    return Member(
        name=name,
        trainings=tuple(_of_other(run) for run in reversed(runs)),
        objectives={},
        data=Data(names or ", ".join(datasets), digest),
        place=Place(None, uri, runs[0].experiment_id, root),
        is_study=False,
    )


def _of_other(run: StoredRun) -> Training:
    seeds = [value for key, value in run.params.items() if is_seed(key)]
    seed = seeds[0] if len(seeds) == 1 else json.dumps(seeds)
    return Training(
        id=run.run_id,
        role="run",
        status=STATUS.get(run.status, "failed"),
        name=run.name,
        seed=int(seed) if seed.lstrip("-").isdigit() else None,
        params={key: value for key, value in run.params.items() if not is_seed(key)},
        metrics=run.metrics,
        seconds=_seconds(run),
    )
