"""Quality of searches for their cost: samplers and schedulers on a table of real trainings.

    python benchmarks/search_quality.py --train FOLDER
    python benchmarks/search_quality.py --collect FOLDER
    python benchmarks/search_quality.py [--seeds 30] [--slots 1 8 100 1000] [--cache FILE]
    uv run --with syne-tune python benchmarks/search_quality.py

The table has the members of one conditional space, each trained by raykd itself: `--train` searches
the space with the sampler `grid`, once for each seed (an interrupted run continues), and
`--collect` writes every epoch's metrics and seconds to data/search_quality.json.gz.

A search is replayed on a simulated clock: an epoch takes the median of the recorded seconds of its
configuration, in any number of slots.  raykd's methods draw with its samplers and decide with its
`Promotions`, as the planner does.  Optuna, Ray Tune and Syne Tune bring their own samplers and
schedulers.  Searches in the cache file are not replayed again.

Only trials that ran to the last epoch count as found.  The hypervolume of two objectives is that of
validation accuracy and the logarithm of the parameters, above the table's median accuracy and below
its largest student.  The table's front has only three points, and two of them have 95% of the
hypervolume.  So the time until all points of the front are reached is given, too: by students with
at most as many parameters, whose accuracy is at most the noise lower.  The noise is the standard
deviation of the accuracy over seeds, among the better half of the members.
"""

from __future__ import annotations

import gzip
import heapq
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from unittest import mock

import numpy as np
import optuna
from measuring import Demand, Findings, arguments, tell
from optuna.trial import TrialState

from raykd import pareto
from raykd.compat.optuna_hypervolume import hypervolume
from raykd.errors import Infeasible
from raykd.metrics import Direction
from raykd.study.config import Search
from raykd.study.promotion import Promotions
from raykd.study.samplers import SAMPLERS
from raykd.study.schedulers import Asha, Hyperband, Unscheduled
from raykd.tuning.optuna_study import startup_trials
from raykd.tuning.search_planner import DistinctDraws, SpaceExhausted

TABLE = Path(__file__).parent / "data" / "search_quality.json.gz"
STUDY = """\
name: table
data: {name: fashion_mnist, limit: 600, val_limit: 1500}
teacher:
  model: {name: resnet, depth: 14, width: 16}
  train: {epochs: 20, batch_size: 64, optimizer: {name: sgd, lr: 0.05}}
  seed: 0
student:
  model:
    choice:
      - {name: resnet, depth: 8, width: {choice: [4, 8, 16]}, stem_type: imagenet}
      - {name: mlp, depth: {choice: [2, 3]}, width: {choice: [8, 32]}}
scheme: {name: offline}
knowledge:
  - loss: {choice: [null, {name: kd, temperature: {choice: [2, 8]}}, {name: dkd}]}
    weight: {choice: [0.3, 1.5]}
  - loss: {choice: [null, {name: hint}]}
    pairs: {pairing: {hint: [stage3, embedding], guided: [stage2, embedding], max: 1}}
    weight: 3.0
train:
  epochs: 9
  batch_size: 64
  optimizer: {name: sgd, lr: {choice: [0.02, 0.1]}, weight_decay: {choice: [0.0, 0.005]}}
search:
  sampler: grid
  trials: 2000
  replicates: 0
  objectives: {val_accuracy: max, params: min, macs: min}
cluster: {slots: 1}
"""
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "epoch_seconds")
EPOCHS = 9
SINGLE: dict[str, Direction] = {"val_accuracy": "max"}
SEVERAL: dict[str, Direction] = {"val_accuracy": "max", "params": "min"}
SHARE = 0.95
"""Share of the table's hypervolume to reach."""
PERCENTILE = 99.0
"""The best 1% of the table's accuracies are to be reached."""


# The table


def train(folder: Path) -> None:
    """Train the members of the space, once for each of two seeds."""
    from raykd.tuning.executors import LocalExecutor
    from raykd.tuning.search_run import search

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "table.yaml"
    file.write_text(STUDY)
    for seed in (1, 0):
        runs = sorted((folder / "studies").glob(f"table-{seed}-*"))
        overrides = [f"seed={seed}", f"name=table-{seed}", f"cluster.storage={folder}/studies"]
        with mock.patch("raykd.tracking.sync.Tracker"):
            search(
                file,
                overrides=() if runs else overrides,
                resume=runs[-1] if runs else None,
                executor=LocalExecutor(1, 1),
            )


def collect(folder: Path) -> dict[str, Any]:
    """Return the trainings of a folder as a table, one row for each member of the space."""
    rows: dict[str, dict[str, Any]] = {}
    for run in sorted((folder / "studies").glob("table-*-*")):
        seed = run.name.split("-")[1]
        drawn = _drawn_params(run / "optuna.log")
        curves: dict[str, list[Mapping[str, float]]] = {}
        for line in (run / "journal.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "epoch" and event["id"] in drawn:
                curves.setdefault(event["id"], []).append(event["metrics"])
        for trial, epochs in curves.items():
            if len(epochs) < EPOCHS:
                continue
            costs = {name: int(epochs[0][name]) for name in ("params", "macs")}
            row = rows.setdefault(json.dumps(drawn[trial]), {**costs, "curves": {}})
            row["curves"][seed] = {m: [float(f"{e[m]:.5g}") for e in epochs] for m in METRICS}
    listed = [{"drawn": json.loads(drawn), **row} for drawn, row in sorted(rows.items())]
    return {"study": STUDY, "epochs": EPOCHS, "rows": listed}


def _drawn_params(log: Path) -> dict[str, dict[str, Any]]:
    """Return the values that Optuna drew for each trial, in the order of their draws."""
    params: dict[int, dict[str, Any]] = {}
    named: dict[str, dict[str, Any]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["op_code"] == 5:
            choices = json.loads(entry["distribution"])["attributes"]["choices"]
            drawn = params.setdefault(entry["trial_id"], {})
            drawn[entry["param_name"]] = choices[int(entry["param_value_internal"])]
        elif "raykd.id" in entry.get("user_attr", {}):
            named[entry["user_attr"]["raykd.id"]] = params[entry["trial_id"]]
    return named


class Table:
    """Trainings of all members of a conditional space under one seed.

    Args:
        rows: of the file.
        seed: of the trainings; a row that lacks it gives those of its first seed.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], seed: str) -> None:
        self._noise = seed_noise(rows)
        curves = [row["curves"].get(seed) or next(iter(row["curves"].values())) for row in rows]
        self.accuracy = np.array([curve["val_accuracy"] for curve in curves])
        self.params = np.array([row["params"] for row in rows], dtype=float)
        seconds = [
            np.concatenate([c["epoch_seconds"] for c in row["curves"].values()]) for row in rows
        ]
        self.seconds = np.array([float(np.median(each)) for each in seconds])
        self._drawn = [dict(row["drawn"]) for row in rows]
        self._branches: dict[tuple[Any, ...], Sequence[int]] = {}  # rows by their first values
        self.choices: dict[str, list[Any]] = {}
        for drawn in self._drawn:
            for name, value in drawn.items():
                choices = self.choices.setdefault(name, [])
                if value not in choices:
                    choices.append(value)
                    choices.sort(key=str)

    def __len__(self) -> int:
        return len(self._drawn)

    def draw(self, choose: Callable[[str, list[Any]], Any]) -> int | None:
        """Draw a member of the space; None if there is none with these values.

        Args:
            choose: returns one of the values of a parameter.
        """
        rows, drawn = range(len(self)), dict[str, Any]()
        values: tuple[Any, ...] = ()
        while rows:
            name = next((name for name in self._drawn[rows[0]] if name not in drawn), None)
            if name is None:
                return rows[0]
            drawn[name] = choose(name, self.choices[name])
            values = (*values, drawn[name])
            if values not in self._branches:
                self._branches[values] = [
                    row for row in rows if self._drawn[row].get(name) == drawn[name]
                ]
            rows = self._branches[values]
        return None

    def metrics(self, row: int, epoch: int) -> dict[str, float]:
        """Return what a trial knows after an epoch."""
        accuracy = float(self.accuracy[row, epoch - 1])
        return {"epoch": epoch, "val_accuracy": accuracy, "params": float(self.params[row])}

    def volume(self, rows: Sequence[int]) -> float:
        """Return the hypervolume of members at the full budget, as a share of the table's."""
        return self._volume(np.array(rows, dtype=int)) / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._volume(np.arange(len(self)))

    @cached_property
    def _points(self) -> np.ndarray:
        """Losses at the full budget, scaled so that the reference point is (1, 1)."""
        final, size = self.accuracy[:, -1], np.log(self.params)
        floor = np.median(final)
        worse = (final.max() - final) / (final.max() - floor)
        return np.stack([worse, (size - size.min()) / (size.max() - size.min() + 0.1)], 1)

    def _volume(self, rows: np.ndarray) -> float:
        points = self._points[rows]
        points = points[(points < 1).all(1)]
        return hypervolume(points, np.ones(2)) if len(points) else 0.0

    @cached_property
    def best(self) -> float:
        """Accuracy from which a member belongs to the best 1%."""
        return float(np.percentile(self.accuracy[:, -1], PERCENTILE, method="closest_observation"))

    @cached_property
    def _goals(self) -> list[np.ndarray]:
        """For each point of the table's front, a mask of the rows that reach it."""
        final, params = self.accuracy[:, -1], self.params
        return [
            (params <= params[point]) & (final >= final[point] - self._noise)
            for point in self.front(list(range(len(self))))
        ]

    def coverage(self, rows: Sequence[int]) -> float:
        """Return the share of the table's front that members reach, within the noise."""
        return statistics.fmean(bool(goal[list(rows)].any()) for goal in self._goals)

    def front(self, rows: Sequence[int]) -> list[int]:
        """Return the rows of the front at the full budget."""
        points = np.stack([-self.accuracy[rows, -1], self.params[rows]], 1) if rows else np.empty(0)
        return [rows[n] for n in pareto.pareto(points)]


# Searches


@dataclass
class Run:
    """A trial of a simulated search.

    Attributes:
        key: name of the trial.
        row: of the table.
        epoch: the last one that it has trained.
        trial: the trial of the method's library.
    """

    key: str
    row: int
    trial: Any = None
    epoch: int = 0


class Method(Protocol):
    """A sampler and a scheduler."""

    def next(self, running: int) -> Run | None:
        """Return a trial to train further; None if there is none now."""
        ...

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        """Take an epoch's metrics; return whether the trial trains another epoch."""
        ...

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a trial's last epoch."""
        ...


class Raykd:
    """raykd's sampler, promotion and completion of the front, as in its planner.

    Args:
        table: of the trainings.
        search: settings; its number of trials is the budget.
        seed: of the draws.
        slots: trials in parallel.
    """

    def __init__(self, table: Table, search: Search, seed: int, slots: int) -> None:
        self._table, self._search, self._seed, self._slots = table, search, seed, slots
        self._optuna = _optuna_study(search.objectives, self._sampler(seed))
        self._draws = DistinctDraws(self._optuna, self._member, learns=search.sampler.learns)
        self.rule = search.scheduler.build(search.objectives, EPOCHS)
        self._runs: dict[str, Run] = {}
        self._finishing: dict[str, int] = {}  # epoch at which each trial was continued
        self._paused: set[str] = set()
        self._exhausted = False
        self.seconds = 0.0

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return self._search.sampler.build(seed, startup_trials(self._search), self._slots)

    def resume(self) -> None:
        """Do what a search does that was killed: build sampler and rule again from its records."""
        self._optuna.sampler = self._sampler(self._seed + len(self._runs))
        rule = self._search.scheduler.build(self._search.objectives, EPOCHS)
        if isinstance(rule, Promotions):
            for key, run in self._runs.items():
                for epoch in range(1, run.epoch + 1):
                    rule.record(key, self._table.metrics(run.row, epoch))
                if key in self._finishing:
                    rule.resume_finishing([key])
                if key in self._paused:
                    rule.pause(key, run.epoch)
        self.rule = rule

    def next(self, running: int) -> Run | None:
        began = time.process_time()
        try:
            return self._next(running)
        finally:
            self.seconds += time.process_time() - began

    def _next(self, running: int) -> Run | None:
        if isinstance(self.rule, Promotions) and self.rule.candidate is not None:
            return self._continue(self.rule.candidate)
        if self._may_draw:
            return self._draw()
        if running or not isinstance(self.rule, Promotions):
            return None
        whole = any(run.epoch == EPOCHS for run in self._runs.values())
        allowance = self._allowance if whole else max(self._allowance, EPOCHS)
        for key in self.rule.finish(allowance, 1):
            self._finishing[key] = self._runs[key].epoch
            return self._continue(key)
        return None

    @property
    def _may_draw(self) -> bool:
        return not self._exhausted and len(self._runs) < min(self._search.trials, len(self._table))

    @property
    def _allowance(self) -> float:
        """Epochs that may still be spent on completing the front."""
        before = sum(self._finishing.get(key, run.epoch) for key, run in self._runs.items())
        spent = sum(run.epoch for run in self._runs.values()) - before
        return self._search.finish * before - spent

    def _continue(self, key: str) -> Run:
        assert isinstance(self.rule, Promotions)
        self.rule.promote(key)
        self._paused.discard(key)
        return self._runs[key]

    def _draw(self) -> Run | None:
        try:
            trial, row = self._draws.draw()
        except SpaceExhausted:
            self._exhausted = True
            return None
        run = Run(f"trial-{len(self._runs):04d}", row, trial)
        self._draws.remember(trial.params, run.key)
        self._runs[run.key] = run
        return run

    def _member(self, trial: optuna.Trial) -> int:
        row = self._table.draw(trial.suggest_categorical)
        if row is None:
            raise Infeasible("the table has no member with these values")
        return row

    def _values(self, run: Run) -> list[float]:
        metrics = self._table.metrics(run.row, EPOCHS)
        return [metrics[name] for name in self._search.objectives]

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        began = time.process_time()
        if len(self._search.objectives) == 1:
            run.trial.report(metrics["val_accuracy"], run.epoch)
        keeps = self.rule is None or self.rule.keeps(run.key, metrics)  # type: ignore[union-attr]
        if not keeps and isinstance(self.rule, Promotions):
            self.rule.pause(run.key, run.epoch)
            self._paused.add(run.key)
            self._draws.pause(run.trial)
        self.seconds += time.process_time() - began
        return keeps

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        if len(self._search.objectives) == 1:
            run.trial.report(metrics["val_accuracy"], run.epoch)
        self._draws.complete(run.trial, self._values(run))


class Oracle:
    """The best members of the table in the order of their accuracy, those of the front first."""

    def __init__(self, table: Table, trials: int) -> None:
        front = table.front(list(range(len(table))))
        others = [int(row) for row in np.argsort(-table.accuracy[:, -1]) if row not in front]
        self._rows = [*front, *others][:trials]
        self._rows.reverse()

    def next(self, running: int) -> Run | None:
        row = self._rows.pop() if self._rows else None
        return None if row is None else Run(str(row), row)

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        return True

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        pass


def _optuna_study(
    objectives: Mapping[str, str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study_directions = {
        "max": optuna.study.StudyDirection.MAXIMIZE,
        "min": optuna.study.StudyDirection.MINIMIZE,
    }
    return optuna.create_study(
        directions=[study_directions[direction] for direction in objectives.values()],
        sampler=sampler,
        pruner=pruner,
    )


class Optuna:
    """Optuna's own sampler and pruner; a point that is drawn again is trained again."""

    def __init__(
        self, table: Table, objectives: Mapping[str, str], trials: int, study: optuna.Study
    ) -> None:
        self._table, self._objectives, self._trials = table, objectives, trials
        self._study, self._count = study, 0

    def next(self, running: int) -> Run | None:
        while self._count < self._trials:
            trial = self._study.ask()
            row = self._table.draw(trial.suggest_categorical)
            if row is not None:
                self._count += 1
                return Run(str(trial.number), row, trial)
            self._study.tell(trial, state=TrialState.FAIL)  # samplers ignore it
        return None

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        if len(self._objectives) > 1:
            return True
        run.trial.report(metrics["val_accuracy"], run.epoch)
        if not run.trial.should_prune():
            return True
        self._study.tell(run.trial, state=TrialState.PRUNED)
        return False

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._study.tell(run.trial, [metrics[name] for name in self._objectives])


class RandomSearch:
    """Random members of the space, each once and to the full budget, until none is left."""

    def __init__(self, table: Table, seed: int) -> None:
        self._others = RandomThenStop(table, seed, len(table))
        self._left = set(range(len(table)))

    def next(self, running: int) -> Run | None:
        while self._left:
            row = self._others.draw()
            if row in self._left:
                self._left.remove(row)
                return Run(str(row), row)
        return None

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        return True

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        pass


class RandomThenStop:
    """Random members of the space, stopped by another library's scheduler."""

    def __init__(self, table: Table, seed: int, trials: int) -> None:
        self._table, self._trials, self._count = table, trials, 0
        self._random = np.random.default_rng(seed)

    def draw(self) -> int | None:
        row = None
        while row is None:
            row = self._table.draw(lambda _, choices: choices[self._random.integers(len(choices))])
        return row

    def next(self, running: int) -> Run | None:
        if self._count >= self._trials:
            return None
        self._count += 1
        row = self.draw()
        return None if row is None else Run(str(self._count), row)

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        pass


class RayAsha(RandomThenStop):
    """Ray Tune's ASHA, which stops trials, with random draws."""

    def __init__(self, table: Table, seed: int, trials: int) -> None:
        from raykd.runtime.early_stopping import make_stopping_rule

        super().__init__(table, seed, trials)
        search = Search(objectives=SINGLE, scheduler=Asha(promote=False))
        self._rule: Any = make_stopping_rule(search, EPOCHS)

    def next(self, running: int) -> Run | None:
        run = super().next(running)
        if run is not None:
            run.trial = SimpleNamespace(trial_id=run.key)
            self._rule.added(run.trial)
        return run

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        return bool(self._rule.keeps(run.trial, metrics))


class SyneTune(RandomThenStop):
    """A scheduler of Syne Tune with its own searcher.

    Args:
        table: of the trainings.
        seed: of the draws.
        trials: number of trials.
        name: of the class in `syne_tune.optimizer.baselines`.
    """

    def __init__(self, table: Table, seed: int, trials: int, name: str) -> None:
        config_space = import_module("syne_tune.config_space")
        baselines = import_module("syne_tune.optimizer.baselines")

        super().__init__(table, seed, trials)
        np.random.seed(seed)  # noqa: NPY002 - MO-ASHA draws from it
        space = {name: config_space.choice(values) for name, values in table.choices.items()}
        fidelity = {"time_attr": "epoch", "max_t": EPOCHS, "random_seed": seed}
        if name == "MOASHA":
            module = import_module("syne_tune.optimizer.schedulers.multiobjective.moasha")
            self._scheduler: Any = module.MOASHA(space, metrics=["loss", "params"], **fidelity)
        else:
            self._scheduler = getattr(baselines, name)(space, metric="loss", **fidelity)
        self._make_trial = import_module("syne_tune.backend.trial_status").Trial

    def next(self, running: int) -> Run | None:
        if self._count >= self._trials:
            return None
        row, config = None, dict[str, Any]()
        while row is None:
            config = self._scheduler.suggest().config
            row = self._table.draw(lambda name, _, config=config: config[name])
        self._count += 1
        trial = self._make_trial(self._count, config, datetime.now(UTC))
        self._scheduler.on_trial_add(trial)
        return Run(str(self._count), row, trial)

    def keeps(self, run: Run, metrics: Mapping[str, float]) -> bool:
        return self._scheduler.on_trial_result(run.trial, _as_loss(metrics)) == "CONTINUE"

    def ended(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._scheduler.on_trial_complete(run.trial, _as_loss(metrics))


def _as_loss(metrics: Mapping[str, float]) -> dict[str, float]:
    return {**metrics, "epoch": int(metrics["epoch"]), "loss": -metrics["val_accuracy"]}


# The simulated clock


@dataclass
class Outcome:
    """Figures of one simulated search.

    Attributes:
        volume_s: seconds of the clock until 95% of the table's hypervolume; inf: never.
        best_s: seconds until an accuracy of the best 1%; inf: never.
        front_s: seconds until all points of the table's front are reached; inf: never.
        total_s: seconds of the clock that the search took.
        slot_s: seconds of all slots together.
        volume: share of the table's hypervolume at the end.
        coverage: share of the points of the table's front that are reached at the end.
        accuracy: the best at the end.
        front: rows of the front at the end.
        driver_ms: processor time of the driver for a trial; of raykd only.
        curve: clock, share of the hypervolume and best accuracy, whenever one of them grew.
    """

    volume_s: float = math.inf
    best_s: float = math.inf
    front_s: float = math.inf
    total_s: float = 0.0
    slot_s: float = 0.0
    volume: float = 0.0
    coverage: float = 0.0
    accuracy: float = 0.0
    front: list[int] = field(default_factory=list)
    driver_ms: float = 0.0
    curve: list[tuple[float, float, float]] = field(default_factory=list)


def simulate(table: Table, method: Method, slots: int, killed_at: float = math.inf) -> Outcome:
    """Run a search on the simulated clock.

    Args:
        table: of the trainings.
        method: draws and decides.
        slots: trials in parallel.
        killed_at: seconds of the clock at which the driver is killed and resumes.
    """
    outcome, whole = Outcome(), list[int]()
    busy: list[tuple[float, int, Run]] = []
    now, count, trials = 0.0, 0, set[str]()

    def start(run: Run) -> None:
        nonlocal count
        count += 1
        trials.add(run.key)
        heapq.heappush(busy, (now + table.seconds[run.row], count, run))

    while True:
        while len(busy) < slots and (run := method.next(len(busy))) is not None:
            start(run)
        if not busy:
            break
        now, _, run = heapq.heappop(busy)
        run.epoch += 1
        outcome.slot_s += table.seconds[run.row]
        if now >= killed_at and isinstance(method, Raykd):
            method.resume()
            killed_at = math.inf
        metrics = table.metrics(run.row, run.epoch)
        if run.epoch == EPOCHS:
            method.ended(run, metrics)
            whole.append(run.row)
            _note_progress(table, outcome, whole, now)
        elif method.keeps(run, metrics):
            start(run)
    outcome.total_s = now
    outcome.front = table.front(whole)
    outcome.coverage = table.coverage(whole)
    if isinstance(method, Raykd):
        outcome.driver_ms = 1e3 * method.seconds / max(1, len(trials))
    return outcome


def _note_progress(table: Table, outcome: Outcome, whole: list[int], now: float) -> None:
    accuracy = max(outcome.accuracy, float(table.accuracy[whole[-1], -1]))
    volume = table.volume(list(dict.fromkeys(whole)))
    if (volume, accuracy) != (outcome.volume, outcome.accuracy):
        outcome.curve.append((now, volume, accuracy))
    outcome.volume, outcome.accuracy = volume, accuracy
    if volume >= SHARE:
        outcome.volume_s = min(outcome.volume_s, now)
    if accuracy >= table.best:
        outcome.best_s = min(outcome.best_s, now)
    if outcome.front_s > now and table.coverage(whole) == 1:
        outcome.front_s = now


# Methods by name


RAYKD = {
    "single": ("tpe+none", "tpe+asha-g4-r2", "tpe+asha"),
    "several": ("tpe+none", "tpe+asha-g4-r2", "tpe+asha"),
}
"""raykd's samplers and schedulers to compare."""

PEERS = {
    "single": (
        "ray asha",
        "optuna tpe",
        "optuna tpe+hyperband",
        "syne ASHA",
        "syne BOHB",
        "syne ASHACQR",
    ),
    "several": ("optuna tpe", "optuna nsga2", "syne MOASHA"),
}
OBJECTIVES = {"single": SINGLE, "several": SEVERAL}
SCHEDULERS: dict[str, type[Asha] | type[Hyperband]] = {"asha": Asha, "hyperband": Hyperband}


def changes_of(text: str) -> dict[str, Any]:
    """Return the settings of a search by the name of its method.

    Args:
        text: sampler, `+`, and scheduler with its grace epochs, reduction and brackets; `f` is
            the percentage of `search.finish`: `tpe+asha-g4-r2-f50`.
    """
    sampler, _, scheduler = text.partition("+")
    name, *options = scheduler.split("-")
    values = {option[0]: int(option[1:]) for option in options}
    changes: dict[str, Any] = {"sampler": SAMPLERS[sampler](), "scheduler": Unscheduled()}
    if "f" in values:
        changes["finish"] = values.pop("f") / 100
    if name != "none":
        fields = {"g": "grace_epochs", "r": "reduction", "b": "brackets"}
        settings: dict[str, Any] = {fields[letter]: n for letter, n in values.items()}
        changes["scheduler"] = SCHEDULERS[name](**settings)
    return changes


def default_method() -> str:
    """Return the name of raykd's defaults."""
    (name,) = (text for text in RAYKD["several"] if Search(**changes_of(text)) == Search())
    return f"raykd {name}"


def make(name: str, kind: str, table: Table, seed: int, slots: int, trials: int) -> Method:
    """Build a method by its name.

    Args:
        name: `raykd SAMPLER+SCHEDULER`, `oracle`, `random`, or one of the peers'.
        kind: single or several objectives.
        table: of the trainings.
        seed: of the draws.
        slots: trials in parallel.
        trials: the budget.
    """
    objectives = OBJECTIVES[kind]
    library, _, rest = name.partition(" ")
    if library == "oracle":
        return Oracle(table, trials)
    if library == "random":
        return RandomSearch(table, seed)
    if library == "raykd":
        search = Search(objectives=dict(objectives), trials=trials, **changes_of(rest))
        return Raykd(table, search, seed, slots)
    if library == "syne":
        return SyneTune(table, seed, trials, rest)
    if library == "ray":
        return RayAsha(table, seed, trials)
    samplers, pruner = optuna.samplers, None
    if rest == "nsga2":
        sampler = samplers.NSGAIISampler(seed=seed)
    else:
        sampler = samplers.TPESampler(seed=seed, constant_liar=slots > 1)
    if rest == "tpe+hyperband":
        pruner = optuna.pruners.HyperbandPruner(1, EPOCHS, 3)
    return Optuna(table, objectives, trials, _optuna_study(objectives, sampler, pruner))


@dataclass(frozen=True)
class Cell:
    """One search to replay."""

    name: str
    kind: str
    slots: int
    trials: int
    seed: int
    killed: bool = False


class Replays:
    """Outcomes of searches, each replayed once.

    Args:
        rows: of the table.
        cache: file with a line for each search that was replayed; None: there is none.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], cache: Path | None = None) -> None:
        seeds = sorted({seed for row in rows for seed in row["curves"]})
        counts = {seed: sum(seed in row["curves"] for row in rows) for seed in seeds}
        # Searches alternate between the seeds that have (nearly) all trainings.
        whole = [seed for seed in seeds if counts[seed] >= 0.95 * len(rows)]
        whole = whole or [max(seeds, key=counts.__getitem__)]
        self.tables = [Table(rows, seed) for seed in whole]
        self._cache, self._done = cache, dict[Cell, Outcome]()
        for line in cache.read_text().splitlines() if cache and cache.exists() else ():
            entry = json.loads(line)
            self._done[Cell(**entry["cell"])] = Outcome(**entry["outcome"])

    def table(self, seed: int) -> Table:
        """Return the table that a search of a seed is replayed on."""
        return self.tables[seed % len(self.tables)]

    def of(self, cell: Cell) -> Outcome:
        """Return the outcome of a search."""
        if cell not in self._done:
            table = self.table(cell.seed)
            method = make(cell.name, cell.kind, table, cell.seed, cell.slots, cell.trials)
            killed_at = math.inf
            if cell.killed:
                killed_at = self.of(Cell(**{**asdict(cell), "killed": False})).total_s / 2
            self._done[cell] = outcome = simulate(table, method, cell.slots, killed_at)
            if self._cache is not None:
                with open(self._cache, "a") as file:
                    entry = {"cell": asdict(cell), "outcome": asdict(outcome)}
                    file.write(json.dumps(entry) + "\n")
        return self._done[cell]


# Figures


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95% bootstrap interval."""
    drawer, array = np.random.default_rng(0), np.array(values)
    resampled = _medians(array[drawer.integers(len(array), size=(2000, len(array)))])
    low, high = np.percentile(resampled, [2.5, 97.5], method="nearest")
    return statistics.median_low(values), float(low), float(high)


def _medians(rows: np.ndarray) -> np.ndarray:
    """Return the lower median of each row; inf may be among the values."""
    return np.sort(rows, axis=1)[:, (rows.shape[1] - 1) // 2]


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio of two medians and its 95% bootstrap interval."""
    drawer, first, second = np.random.default_rng(0), np.array(above), np.array(below)
    firsts = _medians(first[drawer.integers(len(first), size=(2000, len(first)))])
    seconds = _medians(second[drawer.integers(len(second), size=(2000, len(second)))])
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(firsts / seconds, [2.5, 97.5], method="nearest")
    return statistics.median_low(above) / statistics.median_low(below), float(low), float(high)


def seed_noise(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the standard deviation over seeds of the accuracy, among the better half."""
    finals = [
        [curve["val_accuracy"][-1] for curve in row["curves"].values()]
        for row in rows
        if len(row["curves"]) > 1
    ]
    if not finals:
        return 0.0
    middle = statistics.median(map(statistics.fmean, finals))
    better = [each for each in finals if statistics.fmean(each) >= middle]
    return float(np.sqrt(np.mean([np.var(each, ddof=1) for each in better])))


def reached(table: Table, front: Sequence[int], other: Sequence[int], noise: float) -> float:
    """Return the share of a front's points that another front has, within the noise.

    Such a point has as few parameters, and at most `noise` less accuracy.
    """
    final, params = table.accuracy[:, -1], table.params
    hits = [
        any(params[o] <= params[p] and final[o] >= final[p] - noise for o in other) for p in front
    ]
    return statistics.fmean(hits) if hits else math.nan


def names_of(kind: str, peers: bool) -> list[str]:
    """Return the methods to compare."""
    others = [name for name in PEERS[kind] if peers or not name.startswith("syne")]
    return ["oracle", "random", *(f"raykd {name}" for name in RAYKD[kind]), *others]


def main() -> None:
    parser = arguments(__doc__, repeats=30)
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train the table")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="write the table's file")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 100, 1000])
    parser.add_argument("--trials", type=int, default=60, help="budget of a search")
    parser.add_argument("--kinds", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="searches replayed before")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw hypervolume and best")
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return
    if args.collect:
        text = json.dumps(collect(args.collect), separators=(",", ":"))
        TABLE.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(TABLE, f"{TABLE.stat().st_size / 1e6:.2f} MB")
        return
    rows = json.loads(gzip.decompress(TABLE.read_bytes()))["rows"]
    if args.quick:
        args.repeats, args.slots, args.trials, args.methods = 2, [8], 12, [default_method()]
    warnings.simplefilter("ignore")
    replays = Replays(rows, args.cache)
    compare(replays, args, rows).tell(args.json)
    if args.picture:
        draw(replays, args)


def compare(replays: Replays, args: Any, rows: Sequence[Mapping[str, Any]]) -> Findings:
    """Replay every method with every number of slots."""
    settings = {"trials": args.trials, "seeds": args.repeats, "members": len(rows)}
    findings = Findings("search_quality", settings)
    noise = seed_noise(rows)
    for kind in args.kinds:
        for slots in args.slots:
            outcomes = dict(_replayed(replays, args, kind, slots))
            for name, each in outcomes.items():
                findings.rows.append(_row(kind, slots, name, each))
            findings.demands += list(_demands(replays, kind, slots, outcomes, noise))
    if "several" in args.kinds:
        findings.demands += list(_resumed(replays, args))
    findings.notes.append(f"accuracy over seeds of one training: standard deviation {noise:.2%}")
    return findings


def _replayed(
    replays: Replays, args: Any, kind: str, slots: int
) -> Iterator[tuple[str, list[Outcome]]]:
    for name in args.methods or names_of(kind, _has_syne_tune()):
        cells = [Cell(name, kind, slots, args.trials, seed) for seed in range(args.repeats)]
        yield name, [replays.of(cell) for cell in cells]
        tell(f"{kind}, {slots} slots: {name}")


def _has_syne_tune() -> bool:
    return find_spec("syne_tune") is not None


TARGETS = {
    "single": (("best 1% s", "best_s"),),
    "several": (("95% HV s", "volume_s"), ("front s", "front_s"), ("best 1% s", "best_s")),
}


def _row(kind: str, slots: int, name: str, each: Sequence[Outcome]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "objectives": kind, "slots": slots}
    for title, values in TARGETS[kind]:
        median, low, high = median_interval([getattr(outcome, values) for outcome in each])
        row[title] = f"{median:.4g} [{low:.4g}, {high:.4g}]"
        hits = sum(math.isfinite(getattr(outcome, values)) for outcome in each)
        row[f"{title[:-2]} hit"] = f"{hits}/{len(each)}"
    if kind == "several":
        row["front"] = statistics.fmean(outcome.coverage for outcome in each)
    row["HV"] = statistics.fmean(outcome.volume for outcome in each)
    row["best"] = statistics.fmean(outcome.accuracy for outcome in each)
    row["slot s"] = statistics.fmean(outcome.slot_s for outcome in each)
    row["driver ms"] = statistics.fmean(outcome.driver_ms for outcome in each) or None
    return row


def _demands(
    replays: Replays, kind: str, slots: int, outcomes: Mapping[str, list[Outcome]], noise: float
) -> Iterator[Demand]:
    mine = default_method()
    if mine not in outcomes:
        return
    place = f"{kind}, {slots} slots"
    for title, target in TARGETS[kind]:
        seconds = {name: [getattr(o, target) for o in each] for name, each in outcomes.items()}
        default = seconds[mine]
        if "random" in seconds:
            ratio, low, high = ratio_interval(seconds["random"], default)
            claim = f"{place}, {title}: random / default [{low:.3g}, {high:.3g}]"
            yield Demand(claim, 5, ratio, at_least=True)
        peers = [name for name in seconds if not name.startswith(("raykd", "oracle", "random"))]
        if peers:
            best = min(peers, key=lambda name: statistics.median_low(seconds[name]))
            ratio, low, high = ratio_interval(seconds[best], default)
            claim = f"{place}, {title}: best peer ({best}) / default [{low:.3g}, {high:.3g}]"
            yield Demand(claim, 1, ratio, at_least=True)
    if kind == "several" and "raykd tpe+none" in outcomes:
        shares = [
            reached(replays.table(seed), whole.front, found.front, noise)
            for seed, (whole, found) in enumerate(
                zip(outcomes["raykd tpe+none"], outcomes[mine], strict=True)
            )
        ]
        yield Demand(f"{place}: front of tpe+none found", 0.9, statistics.fmean(shares), True)
    driver = statistics.fmean(outcome.driver_ms for outcome in outcomes[mine])
    yield Demand(f"{place}: driver a trial", 100, driver, unit=" ms")


def _resumed(replays: Replays, args: Any) -> Iterator[Demand]:
    """Compare searches that were killed at half their time with undisturbed ones."""
    slots = 8 if 8 in args.slots else args.slots[0]
    cells = [Cell(default_method(), "several", slots, args.trials, s) for s in range(args.repeats)]
    killed = [replays.of(Cell(**{**asdict(cell), "killed": True})) for cell in cells]
    gaps = [replays.of(cell).volume - each.volume for cell, each in zip(cells, killed, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    claim = f"hypervolume undisturbed - killed (interval +-{1.96 * error:.3f})"
    yield Demand(claim, 1.96 * error, abs(statistics.fmean(gaps)))


def draw(replays: Replays, args: Any) -> None:
    """Draw hypervolume against the clock for several objectives, and best accuracy for one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slots = 8 if 8 in args.slots else args.slots[0]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"several": "hypervolume (share of the table's)", "single": "best accuracy (%)"}
    for axes, kind in zip(figure.subplots(1, 2), ("several", "single"), strict=True):
        for name, outcomes in _replayed(replays, args, kind, slots):
            end = max(o.curve[-1][0] for o in outcomes if o.curve)
            clock = np.geomspace(max(end / 500, 1e-3), end, 200)
            column = 1 if kind == "several" else 2
            scale = 1 if kind == "several" else 100
            steps = [_at(o.curve, clock, column) for o in outcomes]
            axes.plot(clock, scale * np.mean(steps, axis=0), lw=1.5, label=name)
        axes.set(xscale="log", xlabel=f"seconds of the clock, {slots} slots", title=titles[kind])
        if kind == "single":
            axes.set_ylim(bottom=70)
        axes.legend(fontsize=7)
    figure.savefig(args.picture, dpi=120)


def _at(curve: Sequence[Sequence[float]], clock: np.ndarray, column: int) -> np.ndarray:
    """Return a column of a curve at times of the clock; 0 before its first point."""
    places = np.searchsorted([point[0] for point in curve], clock, side="right")
    return np.array([0.0, *(point[column] for point in curve)])[places]


if __name__ == "__main__":
    main()
