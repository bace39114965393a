"""The driver alone: trials that do nothing, in slots that answer at once.

    python benchmarks/driver.py [--trials 1000] [--slots 8] [--profile FILE] [--json FILE]
    python benchmarks/driver.py --tune

Everything that the driver does for a trial is done: Optuna draws it (TPE, in its journal file), its
pairs and costs are worked out, ASHA judges each epoch, the journal takes every event, and a thread
sends them to MLflow (sqlite).  Only the slots are made up: they answer at once, without Ray, called
as Tune calls them.  With `--tune` they are Tune's own actors, which train nothing.

The time of a trial is the time from its start to the next one's, whatever slot: its median among
trials 50 to 150, and among the last hundred.  What grows with the number of trials shows there.
`--tracking off` leaves MLflow out, to see what its thread takes from the driver's; `--sampler
random` leaves TPE out, whose draws look at every trial there was.  `--clock processor` counts the
processor time of all threads instead, which other work on the machine disturbs less.  `--profile`
writes what grew: what each function took among the late trials more than among the early ones.
"""

from __future__ import annotations

import contextlib
import cProfile
import itertools
import pstats
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from measuring import Demand, Findings, arguments, spread, tell

from raykd.runtime.jobs import Clock, IdleJob, Report, TrainJob
from raykd.storage import Storage
from raykd.tracking.events import Event, RunStarted
from raykd.tuning.executors import RayExecutor
from raykd.tuning.run import Executor, StudyRun
from raykd.tuning.search_planner import SearchPlanner
from raykd.tuning.search_run import SearchRun
from raykd.tuning.session import RunSession
from raykd.tuning.study_input import load_or_use

STUDY = """\
name: driver
data: {name: digits}
teacher:
  model: {name: resnet, depth: 14, width: 32}
  train: {epochs: 1}
student:
  model:
    name: resnet
    depth: {choice: [8, 14]}
    width: {int: [4, 64], step: 4}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
    weight: {uniform: [0.1, 2.0]}
  - loss: {choice: [null, {name: hint}, {name: at}]}
    pairs: {pairing: {hint: auto, guided: auto, max: 2, order: monotone}}
    weight: {loguniform: [0.1, 100]}
train: {epochs: 9, batch_size: 64, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.3]}}}
search:
  objectives: {val_accuracy: max}
  sampler: tpe
  scheduler: {name: asha, grace_epochs: 1, reduction: 3}
  replicates: 0
cluster: {cpus_per_worker: 0.1}
"""

LIMIT = 1.2


def metrics(job: TrainJob, epoch: int) -> dict[str, float]:
    """Accuracy of a simulated training: better with width, noisy, the same every time."""
    width = float(job.study["student"]["model"]["width"])
    noise = zlib.crc32(repr(job.params).encode()) % 1000 / 5000
    reached = min(1.0, 0.3 + width / 200 + noise + 0.02 * epoch)
    return {
        "train_loss": 1 / (epoch + 1),
        "train_accuracy": reached,
        "val_loss": 1 - reached,
        "val_accuracy": reached,
        "lr": 0.1,
        "epoch_seconds": 0.001,
        "images_per_second": 1e6,
    }


def answer(job: Any, epoch: int) -> dict[str, Any]:
    """Return a slot's result after an epoch."""
    if isinstance(job, IdleJob):
        return {"epoch": 0, "done": False}
    now, done = time.time(), epoch >= job.epochs
    report = Report(epoch, metrics(job, epoch), done, Clock(now, now))
    networks = {"outcome": report, "slot": "here:1", "epoch": epoch, "done": done}
    return {**networks, **job.metrics, **report.metrics}


CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}

# Without Ray: slots in this process, called as Tune calls its actors


class Slots:
    """Slots that answer at once.

    Args:
        explorer: what gives them work.
        storage: where trained teachers are put.
        slots: how many.
    """

    def __init__(self, explorer: SearchPlanner, storage: Storage, slots: int) -> None:
        from raykd.runtime.early_stopping import make_stopping_rule
        from raykd.runtime.ray_tune import Reports, Stopping, Suggestions

        rule = make_stopping_rule(explorer.search, explorer.study.settings.train.epochs)
        self._storage, self._slots = storage, slots
        self._suggestions, self._stopping = Suggestions(explorer), Stopping(explorer, rule)
        self._reports = Reports(explorer, self._stopping)
        self._live: dict[str, tuple[Any, int]] = {}
        self._count = 0

    def run(self) -> None:
        """Until the explorer has nothing left."""
        while self._fill() or self._live:
            for trial, epoch in list(self._live.values()):
                self._step(trial, epoch + 1)

    def _fill(self) -> bool:
        while len(self._live) < self._slots:
            config = self._suggestions.suggest(str(self._count))
            if not isinstance(config, dict):
                return False
            self._count += 1
            trial = SimpleNamespace(trial_id=str(self._count), config=config)
            self._stopping.on_trial_add(None, trial)  # type: ignore[arg-type]
            self._live[trial.trial_id] = (trial, 0)
        return True

    def _step(self, trial: Any, epoch: int) -> None:
        job = trial.config["job"]
        result = answer(job, epoch)
        if result["done"] and job.network_file:
            self._storage.write(job.network_file, b"weights")
        stops = result["done"] or (
            self._stopping.on_trial_result(None, trial, result) == self._stopping.STOP  # type: ignore[arg-type]
        )
        result["done"] = stops
        self._reports.on_trial_result(0, [], trial, result)
        if stops:
            self._suggestions.on_trial_complete(trial.trial_id, result)
            self._reports.on_trial_complete(0, [], trial)
            del self._live[trial.trial_id]
        else:
            self._live[trial.trial_id] = (trial, epoch)


class WithoutRay(Executor):
    """Runs a study in made-up slots."""

    def execute(self, run: StudyRun[Any], session: RunSession) -> SearchPlanner:
        slots = session.study.settings.cluster.slots
        assert isinstance(slots, int)
        planner = run.planner(session, slots)
        assert isinstance(planner, SearchPlanner)
        Slots(planner, Storage(session.folder.storage), slots).run()
        return planner


# With Tune


@contextlib.contextmanager
def idle_actors() -> Iterator[None]:
    """Let Tune run actors that train nothing where the slots would be."""
    from ray import cloudpickle, tune

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

    class Idle(tune.Trainable):
        def setup(self, config: Mapping[str, Any], shared: Any, data: Any) -> None:  # type: ignore[override]
            self._root = shared.storage
            self._take(config)

        def reset_config(self, new_config: Mapping[str, Any]) -> bool:
            self._take(new_config)
            return True

        def _take(self, config: Mapping[str, Any]) -> None:
            self._job = config["job"]
            self._epoch = 0

        def step(self) -> dict[str, Any]:
            self._epoch += 1
            result = answer(self._job, self._epoch)
            if result["epoch"] == 0:  # an idle job
                time.sleep(0.02)
            if result["done"] and self._job.network_file:
                Storage(self._root).write(self._job.network_file, b"weights")
            return result

    with mock.patch("raykd.runtime.ray_tune.Slot", Idle):
        yield


# Measuring


def starts(
    trials: int,
    slots: int,
    folder: Path,
    *,
    tune: bool,
    tracking: bool,
    sampler: str = "tpe",
    objectives: str = "{val_accuracy: max}",
    clock: Callable[[], float] = time.perf_counter,
    profiles: Mapping[str, cProfile.Profile] | None = None,
) -> list[float]:
    """When each trial began, in seconds of a clock."""
    windows = windows_of(trials - 1)
    file = folder / "driver.yaml"
    file.write_text(STUDY)
    uri = f"sqlite:///{folder}/mlflow.db"
    study = load_or_use(
        file,
        [
            f"search.trials={trials}",
            f"search.sampler={sampler}",
            f"search.objectives={objectives}",
            f"cluster.slots={slots}",
            f"cluster.storage={folder}/studies",
            f"tracking.uri={uri}",
            "cache={use: never}",
        ],
    )
    began: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, RunStarted) and event.role == "trial":
            began.append(clock())
            for when, profile in (profiles or {}).items():
                if len(began) - 1 == windows[when].start:
                    profile.enable()
                elif len(began) - 1 == windows[when].stop:
                    profile.disable()
            if len(began) % 100 == 0:
                tell(f"{len(began)} trials, {began[-1] - began[0]:.1f} s")

    off = contextlib.nullcontext() if tracking else mock.patch("raykd.tracking.sync.Tracker", _Off)
    with off, idle_actors() if tune else contextlib.nullcontext():
        SearchRun(study, listeners=[hear]).run(RayExecutor() if tune else WithoutRay())
        for thread in threading.enumerate():
            if thread.name == "raykd-tracker":  # at its last chunk; its store is about to go
                thread.join(60)
    return began


class _Off:
    """No tracking."""

    status = "off"

    def __init__(self, *inputs: Any, **more: Any) -> None:
        pass

    def close(self, timeout: float = 0.0) -> bool:
        return True

    def abandon(self) -> None:
        pass


def per_trial(began: list[float]) -> dict[str, list[float]]:
    """Seconds from one start to the next, early and late."""
    each = [after - before for before, after in itertools.pairwise(began)]
    return {
        when: each[window.start : window.stop] for when, window in windows_of(len(each)).items()
    }


def windows_of(count: int) -> dict[str, range]:
    """Return the numbers of the early and of the late trials."""
    width = min(100, count // 3)
    return {"early": range(width // 2, width // 2 + width), "late": range(count - width, count)}


def growth(profiles: Mapping[str, cProfile.Profile], functions: int = 40) -> str:
    """List functions that take longer in late trials than in early ones."""
    early, late = (pstats.Stats(profiles[when]).stats for when in ("early", "late"))  # type: ignore[attr-defined]
    nothing = (0, 0, 0.0, 0.0, {})
    rows = []
    for place in early.keys() | late.keys():
        before, after = early.get(place, nothing), late.get(place, nothing)
        file, line, name = place
        key = f"{'/'.join(Path(file).parts[-3:])}:{line} {name}"
        rows.append((after[2] - before[2], after[3] - before[3], before[1], after[1], key))
    lines = ["seconds more: in it, with what it calls; calls early, late; function"]
    longest = sorted(rows, reverse=True)[:functions]
    lines += ["{:8.3f} {:8.3f} {:8d} {:8d}  {}".format(*row) for row in longest]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tune", action="store_true", help="Tune's own actors, on a Ray")
    parser.add_argument("--sampler", default="tpe", help="random: what is not Optuna's")
    parser.add_argument("--objectives", default="{val_accuracy: max}", help="as in a study")
    parser.add_argument("--tracking", choices=("on", "off"), default="on")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of the figures")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="where the time goes")
    args = parser.parse_args()
    trials = 60 if args.quick else args.trials
    rows, raw, ratios = [], [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            profiles = {"early": cProfile.Profile(), "late": cProfile.Profile()}
            began = starts(
                trials,
                args.slots,
                Path(folder),
                tune=args.tune,
                tracking=args.tracking == "on",
                sampler=args.sampler,
                objectives=args.objectives,
                clock=CLOCKS[args.clock],
                profiles=profiles if args.profile else None,
            )
            if args.profile:
                args.profile.write_text(growth(profiles))
        results = per_trial(began)
        raw.append(began)
        # Trials begin in bursts, of as many as slots became free: the mean is not affected.
        means = {when: statistics.fmean(each) for when, each in results.items()}
        ratios.append(means["late"] / means["early"])
        for when, each in results.items():
            rows.append({"trials": when, "mean ms": means[when] * 1e3, **spread(each, "ms", 1e3)})
    settings = {"trials": trials, "slots": args.slots, "tune": args.tune}
    settings |= {"tracking": args.tracking, "sampler": args.sampler}
    settings |= {"objectives": args.objectives, "clock": args.clock}
    claim = "time per trial, late / early (means)"
    demands = [Demand(claim, LIMIT, statistics.median(ratios))]
    Findings("driver", settings, rows, demands, {"began": raw, "ratios": ratios}).tell(args.json)


if __name__ == "__main__":
    main()
