"""One search, from an open study to its result: Ray Tune explores, Ray Train trains."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raykd.architecture import Task
from raykd.data import Batches, Dataset
from raykd.problems import Problem, StudyError
from raykd.search.cluster import SlotPlan, here, is_remote, is_standing, plan_slots, ray_session
from raykd.search.explorer import Explorer
from raykd.search.fetched import with_fetched
from raykd.search.folder import StudyFolder, Verb, create_folder, open_folder
from raykd.search.records import Records
from raykd.search.result import StudyResult, read_result
from raykd.search.shelf import Shelf, check_teacher_weights
from raykd.study.files import read_document
from raykd.study.load import Check, check_shapes, open_study
from raykd.study.models import check_models
from raykd.study.opened import OpenStudy
from raykd.study.place import parse_place
from raykd.study.schema import Search, Study, plain
from raykd.tracking.journal import Journal, events
from raykd.tracking.store import absolute
from raykd.training.assembly import task_of
from raykd.training.storage import Storage, is_uri

Listener = Callable[[Mapping[str, Any]], None]
CHECKS: tuple[Check, ...] = (check_teacher_weights, check_models)
"""What is looked at beyond the study itself before anything starts."""

PACKAGES = ("raykd", "ray", "torch", "torchvision", "optuna", "mlflow", "numpy", "pydantic")


class Chronicle:
    """A journal that also tells those who listen."""

    def __init__(self, journal: Journal, listeners: Sequence[Listener]) -> None:
        self._journal = journal
        self._listeners = listeners

    def write(self, event: str, **fields: Any) -> None:
        self._journal.write(event, **fields)
        self.tell({"event": event, **fields})

    def tell(self, event: Mapping[str, Any]) -> None:
        """Say something that need not be kept."""
        for listener in self._listeners:
            listener(event)


def search(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Search a study's space and return what was found.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to go on with; `study` is then not read.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study, its data or the cluster is not fit; nothing was started.
    """
    folder = None
    if resume is not None:
        folder, overrides = open_folder(resume)
        _refuse_another_verb(folder)
        study = folder.given
    study = opened(study, overrides, allow_import=allow_import)
    return run(study, folder, in_slots, verbose=verbose, listeners=listeners)


def _refuse_another_verb(folder: StudyFolder) -> None:
    if folder.verb != "search":
        raise StudyError(
            Problem(
                f"{folder.path} was made by `raykd {folder.verb}`, which is not gone on with",
                mend=f"run `raykd {folder.verb}` on {folder.given} again; a trained teacher is "
                "found and not trained again",
            )
        )


def opened(
    study: OpenStudy | str | Path,
    overrides: Sequence[str] = (),
    checks: Sequence[Check] | None = None,
    *,
    allow_import: bool = False,
) -> OpenStudy:
    """The study itself, or the one in the file it names, checked.

    Raises:
        StudyError: it is not fit to start.
    """
    if isinstance(study, OpenStudy):
        return study
    document = read_document(study).with_overrides(overrides)
    if allow_import:
        document = with_fetched(document)
    return open_study(document, CHECKS if checks is None else checks, allow_import=allow_import)


@contextlib.contextmanager
def in_place(study: OpenStudy) -> Iterator[None]:
    """Give each problem that names a path of the study its file and line, too."""
    try:
        yield
    except StudyError as error:
        raise StudyError(
            [
                study.document.problem(parse_place(problem.path), problem.what, problem.mend)
                if problem.path and not problem.file
                else problem
                for problem in error.problems
            ]
        ) from None


@dataclass(frozen=True)
class Enterprise:
    """What a way of running a study works with."""

    study: OpenStudy
    task: Task
    data: Dataset
    folder: StudyFolder
    chronicle: Chronicle
    records: Records
    search: Search
    verbose: bool

    def explorer(self, slots: int) -> Explorer:
        """Ready to be asked for work by so many slots."""
        storage = Storage(self.folder.storage)
        return Explorer(
            self.study,
            self.task,
            open_optuna(
                self.study.settings.name, self.search, self.study.settings.seed, self.folder, slots
            ),
            self.chronicle,
            storage,
            self.folder.name,
            Shelf(self.study.settings, self.data.fingerprint, storage),
            self.records,
            self.search,
            slots=slots,
        )


def run(
    study: OpenStudy,
    folder: StudyFolder | None,
    conduct: Callable[[Enterprise], Explorer],
    *,
    verb: Verb = "search",
    how: Search | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Open a study's folder, journal and tracking, have it conducted, and sum it up.

    Args:
        study: checked.
        folder: of an interrupted run to go on with; None: a fresh one.
        conduct: runs everything an explorer asks for (`in_slots`, or in this process).
        verb: what the user asked for.
        how: how to search; None: as the study says.

    Raises:
        StudyError: the data or the cluster is not fit, or the study could not be carried out.
    """
    from raykd.tracking.runs import Tracker

    settings = study.settings
    how = how or settings.search
    with in_place(study):
        data = load_data(settings)
        task = task_of(data)
        if study.task is None:  # nothing could be checked before the data were read
            check_shapes(study, task, checks=CHECKS)
        if folder is None:
            if conduct is in_slots and not is_remote():
                plan_slots(settings.cluster, here())
            storage = settings.cluster.storage
            folder = create_folder(settings.name, storage, study.given, study.overrides, verb)
    known = events(folder.journal) if folder.journal.exists() else []
    journal = Journal(folder.journal)
    chronicle = Chronicle(journal, listeners)
    _open_chronicle(chronicle, study, known, folder, data)
    tracker = Tracker(folder.journal, settings.tracking.uri)
    status = "failed"
    try:
        records = Records.from_events(known)
        with in_place(study):
            explorer = conduct(
                Enterprise(study, task, data, folder, chronicle, records, how, verbose)
            )
        if explorer.fatal:
            raise StudyError(explorer.fatal)
        _keep_models(chronicle, explorer, folder, data, settings)
        result = read_result(folder.path)
        tags = result.tags() | ({"drawing_ended": explorer.note} if explorer.note else {})
        chronicle.write("note", id=None, tags=tags, metrics=result.figures(), step=0)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        chronicle.write("done", status=status)
        chronicle.tell({"event": "phase", "phase": "tracking"})
        delivered = tracker.close(timeout=60 if status == "finished" else 10)
        chronicle.tell({"event": "tracked", "delivered": delivered, "status": str(tracker.status)})
        journal.close()
    return result


def in_slots(enterprise: Enterprise) -> Explorer:
    """Conduct a study in warm slots of the cluster."""
    cluster = enterprise.study.settings.cluster
    enterprise.chronicle.tell({"event": "phase", "phase": "ray"})
    outlived = is_standing()
    with ray_session(verbose=enterprise.verbose) as nodes:
        plan = plan_slots(cluster, nodes)
        _check_storage(enterprise.folder, nodes)
        explorer = enterprise.explorer(plan.slots)
        enterprise.chronicle.tell(
            {
                "event": "plan",
                "plan": plan,
                "study": enterprise.study,
                "folder": enterprise.folder,
            }
        )
        explore(
            explorer,
            plan,
            enterprise.folder,
            enterprise.data,
            verbose=enterprise.verbose,
            outlived=outlived,
        )
    if not explorer.finished:
        raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and just returns
    return explorer


def load_data(settings: Study) -> Dataset:
    """The study's data.

    Raises:
        StudyError: they cannot be had.
    """
    try:
        settings.data.check()
        return settings.data.load()
    except ValueError as error:
        raise StudyError(Problem(str(error), path="data")) from None


def explore(
    explorer: Explorer,
    plan: SlotPlan,
    folder: StudyFolder,
    data: Dataset,
    *,
    verbose: bool = False,
    outlived: bool = False,
) -> None:
    """Let Tune run everything the explorer asks for, in `plan.slots` warm slots.

    Args:
        outlived: whether Ray goes on when the search is over.
    """
    import ray
    from ray import tune

    from raykd.search.schedulers import make_rule
    from raykd.search.slot import Slot, SlotSetup
    from raykd.search.tune_side import Reports, Stopping, Suggestions

    epochs = explorer.study.settings.train.epochs
    rule = make_rule(explorer.search, epochs)
    setup = SlotSetup(
        storage=folder.storage,
        workers=plan.workers,
        cpus=plan.cpus,
        gpus=plan.gpus,
        max_failures=explorer.study.settings.cluster.max_failures,
        folder=_ray_folder(folder),
        outlived=outlived,
    )
    trainable = tune.with_parameters(Slot, shared=setup, data=[ray.put(data.arrays())])
    # A slot holds no CPU of its own (its workers do), but Tune wants some request.
    request = tune.PlacementGroupFactory([{"CPU": 0, "memory": 1 << 20}])
    tuner = tune.Tuner(
        tune.with_resources(trainable, request),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(explorer),
            scheduler=Stopping(explorer, rule),
            num_samples=-1,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=_ray_folder(folder),
            verbose=1 if verbose else 0,
            callbacks=[Reports(explorer)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(
                max_failures=explorer.study.settings.cluster.max_failures
            ),
        ),
    )
    with _quiet(verbose):
        tuner.fit()


def _trial_name(trial: Any) -> str:
    return trial.config["assignment"]["id"].replace("/", ".")


def _ray_folder(folder: StudyFolder) -> str:
    return (
        f"{folder.storage}/{folder.name}/ray"
        if is_uri(folder.storage)
        else str(folder.path / "ray")
    )


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not verbose:
            import logging

            warnings.simplefilter("ignore")
            for name in ("ray", "ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


def open_optuna(name: str, search: Search, seed: int, folder: StudyFolder, slots: int) -> Any:
    """Optuna's study in the folder's own database, made or taken up."""
    import optuna

    from raykd.search.samplers import make_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = optuna.storages.RDBStorage(folder.optuna)
    _trust_the_system(stored.engine)
    done = sum(summary.n_trials for summary in optuna.get_all_study_summaries(stored))
    startup = max(4, min(10, search.trials // 2))
    towards = {
        "max": optuna.study.StudyDirection.MAXIMIZE,
        "min": optuna.study.StudyDirection.MINIMIZE,
    }
    made = optuna.create_study(
        storage=stored,
        study_name=name,
        load_if_exists=True,
        directions=[towards[direction] for direction in search.objectives.values()],
        sampler=make_sampler(search.sampler, seed=seed + done, startup_trials=startup, slots=slots),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names(list(search.objectives))
    return made


def _trust_the_system(engine: Any) -> None:
    """Commit to Optuna's database without waiting for the disk.

    A draw commits some ten times; waiting each time is half of the time between two trials.  A
    killed process loses nothing by this, and after a power cut the journal still knows all.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def set_pragma(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    engine.dispose()  # connections made before listen to nobody


def _check_storage(folder: StudyFolder, nodes: Sequence[Mapping[str, float]]) -> None:
    """On several nodes, a folder that is not shared is found before anything is trained."""
    if len(nodes) < 2 or is_uri(folder.storage):
        return
    import ray

    marker = f"{folder.name}/reachable"
    Storage(folder.storage).write(marker, b"")

    @ray.remote(num_cpus=0.01)
    def sees() -> bool:
        return Storage(folder.storage).exists(marker)

    spread = [
        sees.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    if not all(ray.get(spread)):
        raise StudyError(
            Problem(
                f"{folder.storage} cannot be reached from every node of the cluster",
                path="cluster.storage",
                mend="name a folder on a shared file system, or a URI such as s3://bucket/path",
            )
        )


def _open_chronicle(
    chronicle: Chronicle,
    study: OpenStudy,
    known: Sequence[Mapping[str, Any]],
    folder: StudyFolder,
    data: Dataset,
) -> None:
    settings = study.settings
    uri = absolute(settings.tracking.uri)
    before = next((event["id"] for event in known if event["event"] == "study"), None)
    chronicle.write(
        "study",
        id=before or uuid.uuid4().hex,
        name=settings.name,
        experiment=settings.tracking.experiment or settings.name,
        register=settings.tracking.register,
        given=study.given,
        resolved=plain(replace(settings, tracking=replace(settings.tracking, uri=uri))),
        file=str(folder.given),
        argv=sys.argv,
        git=git_commit(),
        versions=versions(),
        seed=settings.seed,
    )
    chronicle.write(
        "dataset",
        name=data.name,
        origin=data.origin,
        fingerprint=data.fingerprint,
        sizes=dict(data.sizes),
        classes=data.classes,
        input_shape=list(data.input_shape),
    )


def _keep_models(
    chronicle: Chronicle, explorer: Explorer, folder: StudyFolder, data: Dataset, settings: Study
) -> None:
    """Hand each chosen student's network to MLflow: of its replicates the one with the best
    validation accuracy (the test split is not asked)."""
    storage = Storage(folder.storage)
    chosen = list(explorer.chosen)
    smallest = min(chosen, key=lambda r: r.metrics["params"], default=None)
    example = _example(data, folder.path)
    for record in chosen:
        replicates = [
            r for r in explorer.records.children(record.id, "replicate") if r.status == "finished"
        ]
        if not replicates:
            continue
        kept = max(replicates, key=lambda r: r.metrics["val_accuracy"])
        assert kept.assignment.keep is not None
        path = folder.path / "students" / Path(kept.assignment.keep).name
        if not path.exists():  # the storage is a URI
            content = storage.read(kept.assignment.keep)
            if content is None:
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        aliases = ["champion"] if record is chosen[0] else []
        aliases += ["smallest"] if record is smallest else []
        chronicle.write(
            "model",
            id=kept.id,
            path=f"students/{path.name}",
            input_shape=list(data.input_shape),
            input_dtype="float32" if example.suffix == ".npy" else "int64",
            example=example.name,
            register=settings.tracking.register,
            aliases=aliases,
            metrics={k: v for k, v in kept.metrics.items() if k.startswith(("val_", "test_"))},
        )


def _example(data: Dataset, folder: Path) -> Path:
    """The first validation samples as a model takes them, in a file: `.npy` of one tensor, `.npz`
    of a mapping."""
    import numpy as np

    batches = Batches(data.val, dataset=data, batch_size=8, seed=0, shuffle=False)
    inputs = next(iter(batches.epoch(0))).inputs
    if isinstance(inputs, torch.Tensor):
        np.save(folder / "example.npy", inputs.numpy())
        return folder / "example.npy"
    arrays: dict[str, Any] = {key: value.numpy() for key, value in inputs.items()}
    np.savez(folder / "example.npz", **arrays)
    return folder / "example.npz"


def git_commit() -> str | None:
    """The commit of the folder the study is started in, or None."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a training computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
