"""1,000 metrics to a local MLflow server, and what a training feels of it.

    python benchmarks/tracking.py [--metrics 1000] [--server-workers 4] [--json FILE]

A server of MLflow's own is started (sqlite behind it).  The metrics, ten an epoch, are sent:

- by raykd: written to a study's journal, from which its tracker's thread sends them.  `the caller
  waits` is the time the writing takes; `until they are there` includes the tracker's next look.
- by `mlflow.log_metric`, one call each, as a hand-written loop does it;
- by `mlflow.log_metric(..., synchronous=False)`, MLflow's own queue, until it is flushed;
- by one `log_batch`.

Then epochs of a small training alternate with the same epochs while the ten metrics of the epoch
before go to the server from the same process.  Epochs' wall time is noisy, so that many pairs are
needed to tell a per cent (`--epochs`); the processor time that the tracker's thread and the server
use during an epoch, less what they use without metrics, is printed next to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from measuring import Demand, Findings, arguments, in_turn, spread, tell

from raykd.tracking.events import EpochFinished, RunStarted
from raykd.tuning.estimates import estimate

PER_EPOCH = 10

ALONE, TRACKED = "epoch", "epoch, tracked"
"""The arms of the second comparison."""


@contextlib.contextmanager
def server(folder: Path, workers: int) -> Iterator[tuple[str, int]]:
    """Return a local MLflow server; yields its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", str(workers)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "server.log", "wb") as log:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
        try:
            _wait_for(address, process)
            yield address, process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError("MLflow's server did not start")


class Sender:
    """raykd's way: a journal, and a tracker that follows it."""

    def __init__(self, folder: Path, address: str) -> None:
        from raykd.tracking.events import StudyStarted
        from raykd.tracking.journal import Journal
        from raykd.tracking.sync import Tracker

        self.journal = Journal(folder / "journal.jsonl")
        self.journal.append(StudyStarted(f"tracking-{time.time_ns()}", name="tracking"))
        self.tracker = Tracker(self.journal.path, address, start_after=0.0)
        self.waited: list[float] = []
        self._count = 0
        self.wait()

    def send(self, metrics: int) -> None:
        """Write the metrics of a new run, and wait until they are there."""
        self.write(metrics)
        self.wait()

    def write(self, metrics: int) -> None:
        """Write the metrics of a new run."""
        start = time.perf_counter()
        self._begin()
        for _ in range(metrics // PER_EPOCH):
            self.epoch()
        self.waited.append(time.perf_counter() - start)

    def _begin(self) -> None:
        self._count += 1
        self._epoch = 0
        self._run = f"trial-{self._count:04d}"
        self.journal.append(RunStarted(self._run, role="trial", params={"lr": 0.1}))

    def epoch(self) -> None:
        """Write the metrics of the latest run's next epoch."""
        self._epoch += 1
        metrics = {f"metric_{i}": self._epoch + i for i in range(PER_EPOCH)}
        self.journal.append(EpochFinished(self._run, self._epoch, metrics))

    def wait(self) -> None:
        """Until the server has all of it."""
        while self.tracker.status.pending:
            if self.tracker.status.error:
                raise RuntimeError(self.tracker.status.error)
            time.sleep(0.005)

    def close(self) -> None:
        self.tracker.close()
        self.journal.close()


def rest(address: str, metrics: int) -> dict[str, Callable[[], None]]:
    """Return the ways of a hand-written loop."""
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("by hand")
    client = mlflow.MlflowClient(address)
    formatted = [
        (f"metric_{i}", float(step + i), step)
        for step in range(metrics // PER_EPOCH)
        for i in range(PER_EPOCH)
    ]

    def one_by_one() -> None:
        with mlflow.start_run():
            for name, value, step in formatted:
                mlflow.log_metric(name, value, step=step)

    def queued() -> None:
        with mlflow.start_run():
            for name, value, step in formatted:
                mlflow.log_metric(name, value, step=step, synchronous=False)
            mlflow.flush_async_logging()

    def batch() -> None:
        with mlflow.start_run() as run:
            now = int(time.time() * 1000)
            client.log_batch(run.info.run_id, [Metric(n, v, now, step) for n, v, step in formatted])

    return {
        "mlflow.log_metric": one_by_one,
        "mlflow.log_metric, asynchronous": queued,
        "MlflowClient.log_batch": batch,
    }


def processor_time(server_process: int) -> float:
    """Seconds that the tracker's thread and the server's processes have computed."""
    mine = psutil.Process(server_process)
    served = [process.cpu_times() for process in (mine, *mine.children(recursive=True))]
    ours = {item.native_id for item in threading.enumerate() if item.name == "raykd-tracker"}
    tracked = [thread for thread in psutil.Process().threads() if thread.id in ours]
    spent = [item.user + item.system for item in served]
    spent += [item.user_time + item.system_time for item in tracked]
    return sum(spent)


def training(epochs: int, images: int) -> Any:
    """Return a small training, as `raykd distill` runs it in the process of the tracker."""
    from raykd.data import SOURCES
    from raykd.models import Resnet
    from raykd.schemes import Alone
    from raykd.study.config import Student, Study
    from raykd.train_config import Train
    from raykd.training import Training

    source = SOURCES["fashion_mnist"](limit=images, val_limit=500)
    study = Study(
        name="tracking",
        data=source,
        student=Student(model=Resnet(depth=8, width=16)),
        scheme=Alone(),
        train=Train(epochs=epochs, batch_size=128),
    )
    return Training(study, source.load(), seed=0)


def measured(args: Any, folder: Path, address: str, server_process: int) -> Findings:
    """Both comparisons."""
    metrics, repeats = args.metrics, args.repeats
    sender = Sender(folder, address)
    arms = {"raykd": lambda: sender.send(metrics), **rest(address, metrics)}
    times = in_turn(arms, repeats)
    waited = sender.waited[1:]
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "the caller waits s": statistics.median(waited if name == "raykd" else timing.wall),
            **{f"until they are there, {key}": value for key, value in spread(timing.wall).items()},
        }
        for name, timing in times.items()
    ]
    tell("training beside it")
    pairs = args.epochs or repeats
    subject = training(2 * (pairs + 1), args.images)

    used: dict[str, list[float]] = {ALONE: [], TRACKED: []}

    def timed(name: str) -> None:
        before = processor_time(server_process)
        if name == TRACKED:
            sender.epoch()
        subject.run_epoch()
        used[name].append(processor_time(server_process) - before)

    arms = {name: partial(timed, name) for name in used}
    epochs = in_turn(arms, pairs, between=sender.wait)
    sender.close()
    means = {name: statistics.mean(each[1:]) for name, each in used.items()}  # less the warm-up
    for name, timing in epochs.items():
        beside = {"tracker and server, processor s": means[name]}
        rows.append({"way": name, **spread(timing.wall), **beside})
    slower = epochs[TRACKED].over(epochs[ALONE])
    share = (means[TRACKED] - means[ALONE]) / statistics.median(epochs[ALONE].wall)
    there = statistics.median(times["raykd"].wall)
    demands = [
        Demand(f"{metrics} metrics to a local server", 1.0, there, unit=" s"),
        Demand("epoch with tracking / without", 1.01, slower),
        Demand("processor time of tracking an epoch / the epoch", 0.01, share),
    ]
    raw = {name: asdict(timing) for name, timing in {**times, **epochs}.items()}
    settings = {"metrics": metrics, "repeats": repeats, "epochs": pairs}
    settings |= {"server_workers": args.server_workers}
    mean = estimate(epochs[TRACKED].ratios(epochs[ALONE]))
    notes = []
    if mean.count > 1:
        notes = [f"with tracking / without: mean {mean.mean:.3f} ± {mean.half_width:.3f} (95%)"]
    results = {"times": raw, "waited": waited, "used": used}
    return Findings("tracking", settings, rows, demands, results, notes)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--metrics", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=0, help="pairs of them; 0: as the repeats")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--server-workers", type=int, default=4, help="4: as MLflow starts it")
    args = parser.parse_args()
    if args.quick:
        args.metrics, args.images, args.repeats, args.server_workers = 50, 256, 1, 1
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder, args.server_workers) as (address, process):
            results = measured(args, folder, address, process)
    results.tell(args.json)


if __name__ == "__main__":
    main()
