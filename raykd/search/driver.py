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
from typing import TYPE_CHECKING, Any

import torch

from raykd.architecture import Task
from raykd.architecture.screens import Ranking
from raykd.data import Dataset
from raykd.problems import Problem, StudyError
from raykd.search.caching import Caching
from raykd.search.cluster import (
    Resources,
    check_resources,
    check_storage,
    here,
    is_standing,
    plan_slots,
    ray_session,
)
from raykd.search.conductor import Conductor
from raykd.search.explorer import Explorer
from raykd.search.fetched import with_fetched, with_versions
from raykd.search.folder import StudyFolder, Verb, create_folder
from raykd.search.lock import check_lock, is_lost, locked
from raykd.search.logs import Logs
from raykd.search.naming import network_name
from raykd.search.packing import best, packed, remember, remembered, room
from raykd.search.records import Record, Records, values_of
from raykd.search.result import StudyResult, read_result
from raykd.search.resuming import (
    content_of,
    other_versions,
    refuse_changes,
    refuse_other_files,
    resumed,
)
from raykd.search.screening import screen
from raykd.search.shelf import (
    Remarks,
    Shelf,
    check_teacher_weights,
    remarks_on_weights,
)
from raykd.search.starting import MARK as STARTED
from raykd.search.starting import Start, put_first, starts
from raykd.search.starting import absolute as absolute_run
from raykd.search.statistics import estimate, proportion_interval
from raykd.search.stopping import closing, is_stopping, stoppable
from raykd.search.stores import as_begun, store_notice, store_source, with_store
from raykd.search.trials import trial_first
from raykd.study.files import Document, read_document
from raykd.study.load import Check, check_shapes, open_study
from raykd.study.measured import check_measured
from raykd.study.models import check_models
from raykd.study.opened import OpenStudy
from raykd.study.place import parse_place
from raykd.study.schema import Cluster, Search, Study, plain, read_study
from raykd.study.student_costs import StudentCosts
from raykd.tracking.journal import Journal, events
from raykd.tracking.store import absolute, masked
from raykd.training.assembly import task_of
from raykd.training.cache.planning import CachePlan
from raykd.training.delivering import preprocessing_of, raw_samples
from raykd.training.storage import Storage, is_uri

if TYPE_CHECKING:
    from raykd.tracking.runs import Tracker

Listener = Callable[[Mapping[str, Any]], None]
CHECKS: tuple[Check, ...] = (check_teacher_weights, check_models)
"""What is looked at beyond the study itself before anything starts."""

PACKAGES = (
    *("raykd", "ray", "torch", "torchvision", "optuna", "mlflow", "numpy", "pydantic"),
    *("pillow", "scikit-learn", "timm", "transformers", "datasets"),
)


class Chronicle:
    """A journal that also tells those who listen."""

    def __init__(self, journal: Journal, listeners: Sequence[Listener]) -> None:
        self._journal = journal
        self._listeners = listeners

    def write(self, event: str, **fields: Any) -> None:
        """Keep an event and tell it.

        Raises:
            LockLost: another process has taken the study's folder.
        """
        check_lock(self._journal.path.parent)
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
    start_from: Sequence[str | Path] = (),
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Search a study's space and return what was found.

    Args:
        study: an open study (`load_study`), the path of a study file, or `FOLDER:trial-0007`: the
            study of that trial is searched again, the trial first.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to resume; `study` is then not read, and
            relative paths mean the working folder the search was begun in.
        start_from: runs whose winners are tried first, as far as they fit this study: a study's
            folder, `FOLDER:trial-0007`, or the id of a run in MLflow.  A resumed search remembers
            them.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study, its data or the cluster is not fit, another process works on the
            study to resume, or what decides its results has changed; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        folder, first = None, [str(run) for run in start_from]
        if resume is not None:
            folder, overrides = stack.enter_context(resumed(resume, "search"))
            study = folder.given
        else:
            named = trial_first(study, overrides, [absolute_run(run) for run in first])
            study, overrides, first = stack.enter_context(named)
        way = starting_from(first)
        study = opened(study, overrides, allow_import=allow_import)
        return run(study, folder, in_slots, verbose=verbose, listeners=listeners, way=way)


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
        return with_store(study)
    document = read_document(study).with_overrides(overrides)
    if allow_import:
        document = with_fetched(document)
    document = with_versions(document)
    found = open_study(document, CHECKS if checks is None else checks, allow_import=allow_import)
    return with_store(found)


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
    costs: StudentCosts
    way: Way

    def conductor(self, slots: int) -> Conductor:
        """Ready to be asked for work by so many slots."""
        return self.way.conductor(self, slots)

    def explorer(self, slots: int) -> Explorer:
        """Ready to be asked for work by so many slots."""
        storage = Storage(self.folder.storage)
        settings = self.study.settings
        drawn = open_optuna(settings.name, self.search, settings.seed, self.folder, slots)
        if isinstance(self.search.proxy, Ranking):
            self.chronicle.tell({"event": "phase", "phase": "screen"})
        screen(self.study, self.task, self.data, drawn, self.search, self.chronicle.write)
        return Explorer(
            self.study,
            self.task,
            drawn,
            self.chronicle,
            storage,
            self.folder.name,
            Shelf(self.study.settings, self.data.fingerprint, storage, self.task),
            self.records,
            self.search,
            slots=slots,
            caching=self.caching(storage, slots),
            costs=self.costs,
            logs=self.logs,
            val_counts=self.val_counts,
        )

    @property
    def val_counts(self) -> list[int]:
        """Samples of each class of the validation split."""
        targets = self.data.val.targets
        return torch.bincount(targets.cpu(), minlength=self.data.classes).tolist()

    @property
    def logs(self) -> Logs:
        """Gathers the logs of failed trainings."""
        return Logs(self.folder, self.study.settings.cluster.workers_per_trial)

    def caching(self, storage: Storage, slots: int) -> Caching:
        """Decides which teachers' outputs are kept."""
        rows = len(self.data.train)
        plan = CachePlan(self.study, self.task, rows, self.search)
        fingerprint = self.data.fingerprint
        told = self.chronicle
        return Caching(plan, storage, fingerprint, rows, slots=slots, chronicle=told)


@dataclass(frozen=True)
class Way:
    """What a verb does with a study's folder, journal, slots and tracking.

    Attributes:
        conductor: decides what so many slots train.
        conclude: writes down what was found, and returns it.
        check: raises StudyError where the study is not fit for the verb, before anything starts.
        start_from: runs whose winners are tried first.
    """

    conductor: Callable[[Enterprise, int], Conductor]
    conclude: Callable[[Chronicle, Conductor, StudyFolder], Any]
    check: Callable[[OpenStudy, Task], object] = lambda study, task: None
    start_from: tuple[str, ...] = ()


def run(
    study: OpenStudy,
    folder: StudyFolder | None,
    conduct: Callable[[Enterprise], Conductor],
    *,
    verb: Verb = "search",
    how: Search | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    way: Way | None = None,
) -> Any:
    """Open a study's folder, journal and tracking, have it conducted, and sum it up.

    Args:
        study: checked.
        folder: of an interrupted run to go on with; None: a fresh one.
        conduct: runs everything a conductor asks for (`in_slots`, or in this process).
        verb: what the user asked for.
        how: how to search; None: as the study says.
        way: what the verb does; None: it searches.

    Returns:
        What the way concludes: of a search a `StudyResult`.

    Raises:
        StudyError: the data or the cluster is not fit, or the study could not be carried out.
    """
    way = way or SEARCHING
    with stoppable(), contextlib.ExitStack() as stack:
        prepared = _prepared(study, folder, conduct, verb, how, way)
        if folder is None:
            folder = _new_folder(study, verb, way)
            stack.enter_context(locked(folder.path, verb))
        return _carried_out(prepared, folder, conduct, verbose, listeners, way)


@dataclass(frozen=True)
class _Prepared:
    """A study that is fit to be run.

    Attributes:
        known: events of the run that is resumed; none of a fresh one.
        content: digests of the files that decide what its models are.
        weights: remarks on the weights that it loads.
    """

    study: OpenStudy
    data: Dataset
    task: Task
    how: Search
    costs: StudentCosts
    known: Sequence[Mapping[str, Any]]
    content: Mapping[str, str]
    weights: Remarks


def _prepared(
    study: OpenStudy,
    folder: StudyFolder | None,
    conduct: Callable[[Enterprise], Conductor],
    verb: Verb,
    how: Search | None,
    way: Way,
) -> _Prepared:
    """Read the data and check all that can be checked before anything starts.

    Raises:
        StudyError: the study, its data or the machine is not fit, or differs from what the run to
            resume began with.
    """
    known = events(folder.journal) if folder is not None and folder.journal.exists() else []
    study = as_begun(study, known)
    settings = study.settings
    how = how or settings.search
    with in_place(study):
        if conduct is in_slots:
            check_resources(settings.cluster)
        data = load_data(settings, study.document)
        if folder is not None:
            refuse_changes(known, folder, study, data)
        task = task_of(data)
        if study.task is None:  # nothing could be checked before the data were read
            check_shapes(study, task, checks=CHECKS)
        way.check(study, task)
        content = content_of(study, task)
        refuse_other_files(known, content)
        weights = remarks_on_weights(study, task)
        costs = _costs(study, task, how, folder)
    return _Prepared(study, data, task, how, costs, known, content, weights)


def _new_folder(study: OpenStudy, verb: Verb, way: Way) -> StudyFolder:
    settings = study.settings
    with in_place(study):
        return create_folder(
            settings.name,
            settings.cluster.storage,
            study.given,
            study.overrides,
            verb,
            way.start_from,
        )


def _carried_out(
    prepared: _Prepared,
    folder: StudyFolder,
    conduct: Callable[[Enterprise], Conductor],
    verbose: bool,
    listeners: Sequence[Listener],
    way: Way,
) -> Any:
    """Have everything trained, and what came of it written down.

    Raises:
        StudyError: the study could not be carried out.
    """
    from raykd.tracking.runs import Tracker

    study, known = prepared.study, prepared.known
    settings = study.settings
    prepared.costs.keep_in(folder.measured)
    journal = Journal(folder.journal)
    chronicle = Chronicle(journal, listeners)
    _open_chronicle(chronicle, prepared, folder)
    if notice := store_notice(study):
        chronicle.tell({"event": "warning", "text": notice})
    if not known:
        _note_weights(chronicle, prepared.weights)
    tracker = Tracker(folder.journal, settings.tracking.uri)
    status = "failed"
    try:
        enterprise = Enterprise(
            study,
            prepared.task,
            prepared.data,
            folder,
            chronicle,
            Records.from_events(known),
            prepared.how,
            verbose,
            prepared.costs,
            way,
        )
        with in_place(study):
            explorer = conduct(enterprise)
        if explorer.fatal:
            raise StudyError(explorer.fatal)
        _keep_models(chronicle, explorer, folder, prepared.data, settings)
        result = way.conclude(chronicle, explorer, folder)
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    except Exception:
        check_lock(folder.path)  # Tune may have wrapped the error
        if is_stopping():  # Ray's processes may have had the signal, too
            status = "interrupted"
            raise KeyboardInterrupt from None
        raise
    finally:
        closing(hurry=tracker.abandon)
        status = "lost" if is_lost(folder.path) else status
        _close(chronicle, journal, tracker, status)
    return result


def _close(chronicle: Chronicle, journal: Journal, tracker: Tracker, status: str) -> None:
    """Write the end, and give MLflow time to get it."""
    if status == "lost":  # journal and MLflow are another process's now
        tracker.abandon()
        journal.close()
        return
    chronicle.write("done", status=status)
    chronicle.tell({"event": "phase", "phase": "tracking"})
    delivered = tracker.close(timeout=60 if status == "finished" else 10)
    chronicle.tell({"event": "tracked", "delivered": delivered, "status": str(tracker.status)})
    journal.close()


def _note_weights(chronicle: Chronicle, weights: Remarks) -> None:
    """Say what was done to the weights that are loaded."""
    tags = {"weights_notes": weights.notes, "warning_weights": weights.warnings}
    tags = {name: "\n".join(lines) for name, lines in tags.items() if lines}
    if tags:
        _note(chronicle, tags)


def _concluded(chronicle: Chronicle, conductor: Conductor, folder: StudyFolder) -> StudyResult:
    """The result of a search, its figures noted on the study's run."""
    result = read_result(folder.path)
    tags = result.tags() | ({"drawing_ended": conductor.note} if conductor.note else {})
    chronicle.write("note", id=None, tags=tags, metrics=result.figures(), step=0)
    return result


SEARCHING = Way(Enterprise.explorer, _concluded)


def starting_from(runs: Sequence[str]) -> Way:
    """A search that tries first what these runs found; one that is gone on with knows them."""
    known: list[Start] = []

    def check(study: OpenStudy, task: Task) -> None:
        if runs:
            known.extend(starts(study, task, runs))

    def explorer(enterprise: Enterprise, slots: int) -> Explorer:
        named, how = enterprise.folder.start_from, enterprise.search
        settings = enterprise.study.settings
        if named:
            drawn = open_optuna(settings.name, how, settings.seed, enterprise.folder, slots)
            if drawn.user_attrs.get(STARTED) is None:
                found = known or starts(enterprise.study, enterprise.task, named)
                put_first(drawn, found, enterprise.chronicle.write)
                told = [start.plain() for start in found]
                enterprise.chronicle.tell({"event": "start", "starts": told})
        return enterprise.explorer(slots)

    return Way(explorer, _concluded, check, tuple(map(absolute_run, runs)))


def _costs(study: OpenStudy, task: Task, how: Search, folder: StudyFolder | None) -> StudentCosts:
    """What measures students, or remembers what was measured, once it is sure that it can.

    Raises:
        StudyError: it cannot, or no student keeps the bounds.
    """
    costs = StudentCosts(how, task)
    if folder is not None:
        costs.keep_in(folder.measured)
    if how.trials:
        check_measured(study.bind(task), costs)
    return costs


def in_slots(enterprise: Enterprise) -> Conductor:
    """Conduct a study in warm slots of the cluster."""
    enterprise.chronicle.tell({"event": "phase", "phase": "ray"})
    outlived = is_standing()
    asked = enterprise.study.settings.cluster
    slots = 0 if outlived else plan_slots(asked, here()).slots
    groups = asked.workers_per_trial > 1
    with ray_session(verbose=enterprise.verbose, groups=groups, slots=slots) as nodes:
        plan = plan_slots(_packed(enterprise, nodes), nodes)
        folder = enterprise.folder
        check_storage(folder.storage, f"{folder.name}/reachable", nodes)
        explorer = enterprise.conductor(plan.slots)
        enterprise.chronicle.tell(
            {
                "event": "plan",
                "plan": plan,
                "study": enterprise.study,
                "folder": enterprise.folder,
                "trials": explorer.expected_trials,
            }
        )
        from raykd.search.tune_side import run_planner  # imports Ray, whose settings stand now

        own = f"{folder.storage}/{folder.name}" if is_uri(folder.storage) else str(folder.path)
        run_planner(
            explorer,
            plan,
            enterprise.study.settings,
            enterprise.search,
            enterprise.data,
            storage=folder.storage,
            folder=f"{own}/ray",
            verbose=enterprise.verbose,
            outlived=outlived,
        )
    if explorer.finished and not enterprise.verbose:  # resuming never reads them
        Storage(enterprise.folder.storage).remove_folder(f"{enterprise.folder.name}/ray")
        for name in ("logs", "states"):
            with contextlib.suppress(OSError):  # of those that are empty
                (enterprise.folder.path / name).rmdir()
    if not explorer.finished:
        raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and just returns
    return explorer


def _packed(enterprise: Enterprise, nodes: Sequence[Resources]) -> Cluster:
    """What the study asks of the cluster, the trials that share a GPU found out where it may be."""
    cluster, told = enterprise.study.settings.cluster, enterprise.chronicle
    if room(cluster, nodes) == 1:
        return cluster
    file = enterprise.folder.packing
    rates = remembered(file, nodes)
    if rates:
        return replace(cluster, gpus_per_worker=1 / best(rates))
    told.tell({"event": "phase", "phase": "packing"})
    cluster, rates = packed(enterprise.study, enterprise.task, enterprise.data, nodes)
    if rates:
        remember(file, nodes, rates)
        told.tell({"event": "packing", "images_per_second": rates, "chosen": best(rates)})
        said = {f"images_per_second_{count}_a_gpu": rate for count, rate in rates.items()}
        tags = {"trials_a_gpu": str(best(rates))}
        told.write("note", id=None, tags=tags, metrics=said, step=0)
    return cluster


def load_data(settings: Study, document: Document | None = None) -> Dataset:
    """Load the data of a study.

    Args:
        settings: the concrete study.
        document: its file, which errors name with the line.

    Raises:
        StudyError: the data are missing or cannot be used.
    """
    try:
        settings.data.check()
        return settings.data.load()
    except ValueError as error:
        if document is not None:
            raise StudyError(document.problem(("data",), str(error))) from None
        raise StudyError(Problem(str(error), path="data")) from None


def open_optuna(name: str, search: Search, seed: int, folder: StudyFolder, slots: int) -> Any:
    """Optuna's study in the folder's own file, made or taken up."""
    import optuna

    from raykd.search.draws import DrawsFile
    from raykd.search.samplers import make_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = optuna.storages.JournalStorage(DrawsFile(folder.optuna))
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


def _open_chronicle(chronicle: Chronicle, prepared: _Prepared, folder: StudyFolder) -> None:
    """Write what the run begins with, or goes on with."""
    study, data, known = prepared.study, prepared.data, prepared.known
    settings = study.settings
    uri = masked(absolute(settings.tracking.uri))
    before = next((event["id"] for event in known if event["event"] == "study"), None)
    present = versions()
    chronicle.write(
        "study",
        id=before or uuid.uuid4().hex,
        name=settings.name,
        experiment=settings.tracking.experiment or settings.name,
        register=settings.tracking.register,
        given=study.given,
        overrides=list(study.overrides),
        resolved=plain(replace(settings, tracking=replace(settings.tracking, uri=uri))),
        file=str(folder.given),
        argv=sys.argv,
        git=git_commit(),
        versions=present,
        store_from=store_source(study),
        content=dict(prepared.content),
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
        class_names=list(data.class_names),
        notes=list(data.notes),
        warnings=list(data.warnings),
    )
    others = other_versions(known, present)
    if others:
        said = f"resumed with other versions than before ({', '.join(others)})"
        chronicle.tell({"event": "warning", "text": f"{said}: results may differ in last digits"})
        _note(chronicle, {"resumed_with": ", ".join(others)})
    left_out = () if known else study.bind(prepared.task).narrowed.lines
    if left_out:
        _note(chronicle, {"pairs_left_out": "\n".join(left_out)})


def _note(chronicle: Chronicle, tags: Mapping[str, str]) -> None:
    chronicle.write("note", id=None, tags=dict(tags), metrics={}, step=0)


def _keep_models(
    chronicle: Chronicle, explorer: Conductor, folder: StudyFolder, data: Dataset, settings: Study
) -> None:
    """Hand each chosen student's network to MLflow: of its replicates the one with the best
    validation accuracy (the test split is not asked)."""
    storage = Storage(folder.storage)
    chosen = list(explorer.finalists)
    smallest = min(chosen, key=lambda r: r.metrics["params"], default=None)
    preprocessing, example = preprocessing_of(data), _example(data, folder.path)
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
            input_shape=list(preprocessing.shape),
            input_dtype=preprocessing.dtype,
            example=example.name,
            register=settings.tracking.register,
            aliases=aliases,
            metrics={k: v for k, v in kept.metrics.items() if k.startswith(("val_", "test_"))},
            name=network_name(read_study(kept.assignment.study)),
            about=_about(kept, replicates, data),
        )


def _about(kept: Record, replicates: Sequence[Record], data: Dataset) -> dict[str, Any]:
    """Test accuracy with its interval, of the network that is kept and over all seeds."""
    name, size = "test_accuracy", len(data.test)
    low, high = proportion_interval(kept.metrics[name], size)
    text = f"{kept.metrics[name]:.2%} (95% CI {low:.2%} to {high:.2%}, {size} test samples)"
    over = estimate(values_of(replicates, name))
    if over.count > 1:
        text += f"; mean of {over.count} seeds {over.mean:.2%} ± {100 * over.half_width:.2f}"
    return {
        "accuracy": text,
        "test_accuracy_interval": [low, high],
        "trial": kept.assignment.parent or "",
    }


EXAMPLE_SAMPLES = 8


def _example(data: Dataset, folder: Path) -> Path:
    """The first validation samples, raw, in a file: `.npy` of one tensor, `.npz` of a mapping."""
    import numpy as np

    inputs = raw_samples(data, torch.arange(min(EXAMPLE_SAMPLES, len(data.val))), "val")
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
