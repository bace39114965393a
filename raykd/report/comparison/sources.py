"""Sources of a comparison: folders, MLflow runs, experiments and filters, read as members."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from raykd.arguments import near
from raykd.errors import Problem, StudyError
from raykd.report.comparison.arms import choose_metric
from raykd.report.comparison.comparison import Comparison
from raykd.report.comparison.members import Member, member_of_folder, members_of_runs
from raykd.report.comparison.stored_studies import StoredStudies, settings_reader
from raykd.tracking.mlflow_runs import ClientRuns, RunStore, StoredRun, open_store
from raykd.tracking.store_check import check_store
from raykd.tracking.store_uri import DEFAULT_STORE, TRACKING, absolute, database_file, masked
from raykd.tuning.study_lookup import near_folders

RUN_ID = re.compile(r"[0-9a-f]{32}")

THREADS = 2
"""Experiments that are read at a time.  A busy server drops requests, more the more it has."""


@dataclass(frozen=True)
class Options:
    """Options of a comparison.

    Attributes:
        tracking_uri: URI of the MLflow store; None: MLFLOW_TRACKING_URI, else `mlflow.db` here.
        filter: filter of MLflow's runs, in MLflow's language; "": none.
        metric: metric to compare; None: see `choose_metric`.
        smaller: True if smaller values of the metric are better; None: known from its name.
        reference: arm to compare with; "": the best one.
    """

    tracking_uri: str | None = None
    filter: str = ""
    metric: str | None = None
    smaller: bool | None = None
    reference: str = ""


def compare(
    sources: Sequence[str | Path],
    *,
    tracking_uri: str | None = None,
    filter: str = "",
    metric: str | None = None,
    smaller: bool | None = None,
    reference: str = "",
) -> Comparison:
    """Compare studies, and runs that other programs recorded in MLflow.

    Args:
        sources: folders of studies (or folders that hold them), `FOLDER:trial-0007`, MLflow run
            IDs, and names or IDs of MLflow experiments.  A study is a member of the comparison;
            so are all runs of another program below one parent run, or without one.
        tracking_uri: URI of the MLflow store; None: MLFLOW_TRACKING_URI, else `mlflow.db` here.
        filter: filter of the runs in MLflow's language, such as `tags.team = 'vision'`.  Without
            sources it applies to all experiments.
        metric: metric to compare; None: `test_accuracy` where every member has it, else the first
            objective.
        smaller: True if smaller values of the metric are better; None: known from the objectives
            or the name.
        reference: ID or label of the arm to compare with; "": the best arm over several seeds.

    Raises:
        StudyError: a source does not exist, the store does not respond, or nothing has finished.
    """
    options = Options(tracking_uri, filter, metric, smaller, reference)
    members = _distinct(_members(list(map(str, sources)), options))
    if not members:
        text = "no run of the sources can be compared"
        raise StudyError(Problem(text, fix="name other sources, or another --filter"))
    comparison = Comparison(
        tuple(members), choose_metric(members, options.metric, options.smaller), options.reference
    )
    assert comparison.groups is not None  # raises for an unknown reference
    return comparison


def _members(sources: Sequence[str], options: Options) -> list[Member]:
    if not sources and not options.filter:
        text = "nothing to compare: neither a source nor a filter was given"
        fix = "name folders of studies, MLflow run IDs or experiments, or pass --filter"
        raise StudyError(Problem(text, fix=fix))
    read = {source: _folder_members(source) for source in sources}
    stored = [source for source, members in read.items() if members is None]
    if stored or (options.filter and not sources):
        read |= _stored_members(stored, options)
    return [member for members in read.values() for member in members or ()]


def _distinct(members: Sequence[Member]) -> list[Member]:
    """Return members without repeated ones, with numbers after equal names."""
    unique: dict[tuple[str, ...], Member] = {}
    for member in members:
        trainings = tuple(training.id for training in member.trainings[:1])
        unique.setdefault((str(member.place), member.name, *trainings), member)
    counts = Counter(member.name for member in unique.values())
    numbers: Counter[str] = Counter()
    named = []
    for member in unique.values():
        numbers[member.name] += 1
        is_repeated = counts[member.name] > 1
        name = f"{member.name} ({numbers[member.name]})" if is_repeated else member.name
        named.append(replace(member, name=name))
    return named


# Folders


def _folder_members(source: str) -> list[Member] | None:
    """Return the studies that a folder or `FOLDER:TRIAL` names; None if it names no folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "folder.json").exists():
            return [member_of_folder(path)]
        studies = sorted(file.parent for file in path.glob("*/folder.json"))
        if studies:
            return [member_of_folder(study) for study in studies]
        text = f"{source} is not a study's folder, and holds none: there is no folder.json"
        raise StudyError(Problem(text, fix="name the folder that `raykd search` printed"))
    folder, colon, trial = source.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        member = member_of_folder(Path(folder).expanduser(), trial)
        if not member.trainings:
            text = f"{folder} has no training {trial!r}"
            raise StudyError(Problem(text, fix="see its trials with raykd report"))
        return [member]
    return None


# MLflow


def _stored_members(sources: Sequence[str], options: Options) -> dict[str, list[Member]]:
    """Return the members of MLflow runs and experiments, by source; "" for a filter alone."""
    uri = absolute(options.tracking_uri or os.environ.get(TRACKING) or DEFAULT_STORE)
    try:
        store = _open(uri, sources, filtered=bool(options.filter))
        experiments = store.experiments()
        tasks = {source: _resolve(store, source, experiments, uri) for source in sources}
        if not sources:
            tasks = {"": _Task(tuple(experiments.values()), "filter")}
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(lambda task: _read(store, task, uri, options), tasks.values()))
    except StudyError:
        raise
    except Exception as error:
        text = f"MLflow at {masked(uri)}: {masked(str(error))}"
        raise StudyError(Problem(text, fix="check --tracking-uri and --filter")) from error

    members: dict[str, list[Member]] = {}
    for (source, task), content in zip(tasks.items(), read, strict=True):
        if content.members is not None:
            members[source] = content.members
        else:
            runs = content.runs
            chosen = _below(runs, task.root) if task.root is not None else runs
            members[source] = members_of_runs(chosen, task.name, uri, settings_reader(uri))
        if not members[source]:
            name = f"experiment {source}" if source else "the store"
            narrowed = f" that match {options.filter!r}" if options.filter else ""
            text = f"{name} in {masked(uri)} has no runs{narrowed}"
            raise StudyError(Problem(text, fix="name another experiment, or change the filter"))
    return members


@dataclass(frozen=True)
class _Task:
    """Runs to read.

    Attributes:
        experiments: IDs of their experiments.
        name: name of the experiment.
        root: run to which they are limited, with its study or descendants; None: all runs.
    """

    experiments: tuple[str, ...]
    name: str
    root: StoredRun | None = None


@dataclass(frozen=True)
class _Content:
    """Members of a task, or None and its runs."""

    members: list[Member] | None
    runs: list[StoredRun]


def _read(store: RunStore, task: _Task, uri: str, options: Options) -> _Content:
    """Read a task: finished studies from their journals where these are complete, else all runs."""
    if isinstance(store, ClientRuns) and not options.filter:
        studies = StoredStudies(store, uri, task.experiments, options.metric)
        members = studies.all() if task.root is None else studies.of_run(task.root)
        if members is not None:
            return _Content(members, [])
    return _Content(None, store.runs(task.experiments, options.filter))


def _open(uri: str, sources: Sequence[str], *, filtered: bool) -> RunStore:
    named = f"{', '.join(sources)}: no such folder, and " if sources else ""
    file = database_file(uri)
    if file is not None and not file.exists():
        text = f"{named}there is no MLflow store {file}"
        raise StudyError(
            Problem(text, fix="name folders of studies, or the store with --tracking-uri")
        )
    check = check_store(uri)
    if not check.ok:
        raise StudyError(Problem(f"{named}MLflow: {check.message}", fix=check.fix))
    return open_store(uri, filtered=filtered)


def _resolve(store: RunStore, source: str, experiments: dict[str, str], uri: str) -> _Task:
    """Return the runs that a run ID, or the name or ID of an experiment, means."""
    if source in experiments:
        return _Task((experiments[source],), source)
    names = {id: name for name, id in experiments.items()}
    if source in names:
        return _Task((source,), names[source])
    if RUN_ID.fullmatch(source):
        run = store.run(source)
        if run is not None:
            return _Task((run.experiment_id,), names.get(run.experiment_id, source), run)
        text = f"{masked(uri)} has no run {source}"
        raise StudyError(Problem(text, fix="name another run, or its store with --tracking-uri"))
    listed = ", ".join(list(experiments)[:10])
    text = f"{source} is neither a study's folder nor an experiment or run in {masked(uri)}"
    fix = near(source, list(experiments)) or f"its experiments: {listed}; {near_folders(source)}"
    raise StudyError(Problem(text, fix=fix))


def _below(runs: Sequence[StoredRun], root: StoredRun) -> list[StoredRun]:
    """Return the runs of the root's study; of other programs the root and its descendants."""
    study = root.tags.get("raykd.study")
    if study is not None:
        of_study = [run for run in runs if run.tags.get("raykd.study") == study]
        trial = root.tags.get("raykd.id", "").partition("/")[2]
        if root.tags.get("raykd.role") == "study" or not trial:
            return of_study
        return [run for run in of_study if trial in _own_ids(run) or run.run_id == root.run_id]
    return list(_descendants(runs, root))


def _own_ids(run: StoredRun) -> tuple[str, str]:
    """Return the ID of a training in its study, and that of its trial."""
    id = run.tags.get("raykd.id", "").partition("/")[2]
    return id, id.partition("/")[0]


def _descendants(runs: Sequence[StoredRun], root: StoredRun) -> Iterator[StoredRun]:
    reached = {root.run_id}
    parents = {run.run_id: run.parent for run in runs}
    for run in runs:
        ancestor, path = run.run_id, []
        while ancestor and ancestor not in reached:
            path.append(ancestor)
            ancestor = parents.get(ancestor, "")
        if ancestor:
            reached.update(path)
            yield run
