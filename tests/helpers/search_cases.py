"""Small studies and a Tune without Ray for tests of searches."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import optuna
import safetensors.torch
import torch
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from raykd.data import Dataset, Placement
from raykd.models import Signature
from raykd.runtime.jobs import (
    AnyJob,
    Clock,
    IdleJob,
    JobFailure,
    JournalJob,
    Report,
)
from raykd.runtime.ray_tune import Reports, Stopping, Suggestions
from raykd.runtime.worker import Worker, WorkerContext
from raykd.storage import Storage
from raykd.study.checks.load import open_study
from raykd.study.costs import StudentCosts
from raykd.study.open_study import OpenStudy
from raykd.study.samplers import Sampler
from raykd.study.schedulers import StoppingRule
from raykd.study.yaml_file import parse_document
from raykd.tracking.events import (
    EpochFinished,
    Event,
    Note,
    RunStarted,
    parse,
)
from raykd.tracking.journal import EventBus
from raykd.tracking.json_types import to_json
from raykd.training.stored_networks import save_network
from raykd.training.teachers import teacher_spec_of
from raykd.tuning.records import Records
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.session import RunContext
from raykd.tuning.teacher_store import TeacherStore

SMALL = """\
name: small
seed: 7
data: {name: digits, limit: 160, val_limit: 60}
teacher:
  model: {name: mlp, depth: 2, width: 32}
  train: {epochs: 2, batch_size: 32}
student:
  model:
    name: mlp
    depth: {choice: [1, 2]}
    width: {int: [8, 24], step: 8}
knowledge:
  - loss:
      choice:
        - {name: kd, temperature: {choice: [2, 4]}}
        - {name: rkd}
train: {epochs: 3, batch_size: 32, optimizer: {name: sgd, lr: 0.05}}
search:
  objectives: {val_accuracy: max, params: min}
  sampler: random
  trials: 4
  finalists: 2
  replicates: 2
"""
"""18 points: 2 depths x 3 widths x (2 temperatures or rkd)."""

TEACHER_WEIGHTS = safetensors.torch.save({"weight": torch.zeros(1)})
"""A teacher's file, of some network."""

POINTS = 18
DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
TASK = Signature(input_shape=(1, 8, 8), classes=10)
FOLDER = "small-20260101-120000"

Metrics = Callable[[JournalJob, int], Mapping[str, float]]
"""(job, epoch) -> its metrics after that epoch."""

Result = dict[str, Any]
"""A report as tests write it: `epoch`, `done`, perhaps `history`, `failed`, `traceback` or
`predictors`; all else are metrics."""


def opened(*overrides: str, text: str = SMALL) -> OpenStudy:
    document = parse_document(text, "study.yaml").with_overrides(overrides)
    return open_study(document, allow_import=True)


def searching(study: OpenStudy, **search: Any) -> OpenStudy:
    """Return the study with changed search settings."""
    settings = replace(study.settings, search=replace(study.settings.search, **search))
    return replace(study, settings=settings)


E = TypeVar("E", bound=Event)


class RecordingBus(EventBus):
    """Bus that keeps events in memory in the form of the journal."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> Event:
        if event.journaled:
            parsed = parse(json.loads(json.dumps(to_json(event.record()))))
            assert parsed is not None
            self.events.append(parsed)
            event = parsed
        return event

    def of(self, kind: type[E], **fields: Any) -> list[E]:
        """Return the events of a class whose fields have these values."""
        return [
            event
            for event in self.events
            if isinstance(event, kind)
            and all(getattr(event, key) == value for key, value in fields.items())
        ]


def build_sampler(sampler: Sampler, seed: int, slots: int = 1) -> BaseSampler:
    """Build a sampler with four random trials at first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler.build(seed=seed, startup_trials=4, slots=slots)


class World:
    """State that survives the driver: journal, Optuna's journal, storage, trainings.

    `wrap` sees every journal before an explorer writes to it: a test may break it.
    """

    def __init__(self, study: OpenStudy, root: Path) -> None:
        self.study = study
        self.journal = RecordingBus()
        self.storage = Storage(str(root))
        self.optuna = optuna.storages.InMemoryStorage()
        self.trained: list[tuple[str, int]] = []

    def explorer(self, journal: Any = None, slots: int = 1, **changed: Any) -> SearchPlanner:
        """Build a planner that resumes from the present state, as the driver does."""
        clock = changed.pop("clock", time.time)
        context = self.context(journal, slots, **changed)
        return SearchPlanner(context, self.drawn(self.study.settings, slots), clock)

    def context(self, journal: Any = None, slots: int = 1, **changed: Any) -> RunContext:
        """Build the context of a planner that resumes from the present state."""
        search = self.study.settings.search
        return RunContext(
            study=self.study,
            signature=TASK,
            search=search,
            bus=journal or self.journal,
            storage=self.storage,
            folder=FOLDER,
            teacher_store=self.teacher_store,
            records=Records.from_events(self.journal.events),
            slots=slots,
            **{"costs": StudentCosts(search), **changed},
        )

    @property
    def teacher_store(self) -> TeacherStore:
        def warn(file: str, text: str) -> None:
            self.journal.publish(Note(None, {"warning_teacher": text}))

        return TeacherStore(self.study.settings, "digits", self.storage, warn=warn)

    def give_teacher(self) -> str:
        """Store the study's teacher; return its file."""
        [teacher] = self.study.teachers()
        file = self.teacher_store.file(
            teacher_spec_of(replace(self.study.settings, teacher=teacher))
        )
        save_network(self.storage, file, TEACHER_WEIGHTS)
        return file

    def drawn(self, settings: Any, slots: int = 1) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        objectives = settings.search.objectives.values()
        return optuna.create_study(
            storage=self.optuna,
            study_name=settings.name,
            load_if_exists=True,
            directions=[DIRECTIONS[direction] for direction in objectives],
            sampler=build_sampler(settings.search.sampler, settings.seed, slots),
        )


def outcome_of(result: Result | Report | JobFailure) -> Report | JobFailure:
    """Convert a result of a test to a report or failure."""
    if not isinstance(result, dict):
        return result
    metrics = dict(result)
    if "failed" in metrics:
        more = {key: metrics[key] for key in ("traceback", "raised_at") if key in metrics}
        unusable = metrics.get("unusable", False)
        return JobFailure(metrics["failed"], slot_unusable=unusable, **more)
    fields = {key: metrics.pop(key) for key in ("epoch", "done", "predictors") if key in metrics}
    return Report(
        **fields,
        history=tuple(metrics.pop("history", ())),
        clock=Clock(0.0, 0.0),
        metrics=metrics,
    )


def next_job(explorer: Any) -> Any:
    """Return a planner's next job, of any kind."""
    return explorer.next()


def tell(explorer: Any, job: AnyJob, **result: Any) -> None:
    """Report a job's result to a planner."""
    outcome = outcome_of(result)
    if isinstance(outcome, JobFailure):
        explorer.job_failed(job.id, outcome)
    else:
        explorer.report(job.id, outcome)


def synthetic_metrics(job: JournalJob, epoch: int) -> dict[str, float]:
    """Compute synthetic metrics of a training from the job and the epoch."""
    knowledge = [
        {**term, "pairs": [[p["hint"], p["guided"]] for p in term["pairs"] or ()]}
        for term in job.study["knowledge"]
    ]
    student = {name: value for name, value in job.study["student"].items() if value is not None}
    text = json.dumps([student, knowledge], sort_keys=True)
    seed = hashlib.sha256(f"{text}{job.seed}".encode()).digest()[0] / 2560
    metrics_ = {"train_loss": 1 / (1 + epoch), "val_accuracy": 0.5 + seed + 0.1 * epoch}
    if job.test and epoch >= job.epochs:
        metrics_["test_accuracy"] = metrics_["val_accuracy"] - 0.05
    return metrics_


def trained(world: World, job: JournalJob, metrics: Metrics) -> Iterator[Result]:
    """Yield a slot's reports of a training, resumed from its saved state."""
    storage = world.storage
    saved = filter(None, map(storage.read, job.state_files))
    history = max(map(json.loads, saved), key=len, default=[])
    if not job.epochs:
        yield {"epoch": 0, "done": True, **metrics(job, 0)}
        return
    before = list(history)
    while True:
        if len(history) < job.epochs:
            world.trained.append((job.id, len(history) + 1))
            history.append(dict(metrics(job, len(history) + 1)))
            storage.write(job.state_files[len(history) % 2], json.dumps(history).encode())
        done = len(history) == job.epochs
        if done and job.network_file:
            storage.write(job.network_file, TEACHER_WEIGHTS)
        yield {"epoch": len(history), "done": done, "history": before, **history[-1]}
        before = []


class FakeTune:
    """Fake of Tune's controller: the same calls in the same order, without Ray."""

    def __init__(
        self,
        world: World,
        explorer: SearchPlanner,
        metrics: Metrics = synthetic_metrics,
        slots: int = 1,
        rule: StoppingRule | None = None,
    ) -> None:
        self.world, self.explorer, self.metrics, self.slots = world, explorer, metrics, slots
        self._suggestions = Suggestions(explorer)
        self._stopping = Stopping(explorer, rule)
        self._reports = Reports(explorer, self._stopping)
        self._live: list[tuple[Any, Iterator[Any]]] = []
        self._count = 0
        self.waited = 0
        self.most_at_once = 0

    def run(self, most_rounds: int = 2000) -> None:
        for _ in range(most_rounds):
            self._fill()
            if not self._live:
                return
            for trial, results in list(self._live):
                self._step(trial, results)
                self._reports.on_step_end(0, [])
        raise AssertionError("the search does not end")

    def _fill(self) -> None:
        while len(self._live) < self.slots:
            config = self._suggestions.suggest(str(self._count))
            if config == Suggestions.FINISHED:
                return
            pickle.dumps(config)  # it has to travel
            self._count += 1
            trial: Any = SimpleNamespace(trial_id=str(self._count), config=config)
            trial.get_error = lambda: None
            self._stopping.on_trial_add(None, trial)
            self._live.append((trial, self._results(config["job"])))
            working = [t for t, _ in self._live if not isinstance(t.config["job"], IdleJob)]
            self.most_at_once = max(self.most_at_once, len(working))

    def _results(self, job: Any) -> Iterator[Any]:
        if not isinstance(job, IdleJob):
            yield from trained(self.world, job, self.metrics)
            return
        while True:
            self.waited += 1
            yield {"epoch": 0, "done": False}

    def _step(self, trial: Any, results: Iterator[Any]) -> None:
        job, outcome = trial.config["job"], outcome_of(next(results))
        result: dict[str, Any] = {"epoch": 0, "done": True, "outcome": outcome, "slot": "here:1"}
        if isinstance(outcome, Report):
            result |= {"epoch": outcome.epoch, "done": outcome.done}
        if isinstance(job, IdleJob):
            del result["outcome"]
        decision = "STOP" if result["done"] else None
        decision = decision or self._stopping.on_trial_result(None, trial, result)
        result["done"] = result["done"] or decision == "STOP"
        self._reports.on_trial_result(0, [], trial, result)
        if decision == "STOP":
            self._suggestions.on_trial_complete(trial.trial_id, result)
            self._reports.on_trial_complete(0, [], trial)
            self._live = [(t, r) for t, r in self._live if t is not trial]


class InProcessTune(FakeTune):
    """Tune whose single slot trains in this process."""

    def __init__(self, world: World, explorer: SearchPlanner, data: Dataset) -> None:
        super().__init__(world, explorer)
        self.worker = Worker(WorkerContext(world.storage, data, Placement()))

    def _results(self, job: Any) -> Iterator[Any]:
        yield from self.worker.outcomes(job)


def explore(world: World, metrics: Metrics = synthetic_metrics, **settings: Any) -> SearchPlanner:
    """Run a study to its end in a fake Tune."""
    slots = settings.pop("slots", 1)
    rule = settings.pop("rule", None)
    explorer = world.explorer(slots=slots, **settings)
    FakeTune(world, explorer, metrics, slots, rule).run()
    return explorer


def roles(recorded: RecordingBus) -> list[str]:
    """Return the roles of the trainings in the order of their start."""
    return [event.role for event in recorded.of(RunStarted)]


def epochs_of(events: Sequence[Event]) -> dict[str, list[int]]:
    """Return the epochs of each training in a journal, in their order."""
    epochs: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, RunStarted):
            epochs.setdefault(event.id, [])
        elif isinstance(event, EpochFinished):
            epochs[event.id].append(event.epoch)
    return epochs
