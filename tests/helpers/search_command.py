"""A whole search as a command that tests break."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from helpers import fault_points
from helpers.processes import processes_with
from raykd.runtime.cluster import ray_folder
from raykd.runtime.session_sweeper import session_processes
from raykd.tracking.events import EpochFinished, StudyEnded
from raykd.tracking.journal import events

STUDY = """\
name: faults
seed: 3
data: {{name: digits, limit: 160, val_limit: 60}}
teacher:
  model: {{name: "helpers.fault_points:build", args: {{width: 32, role: teacher}}}}
  train: {{epochs: 3, batch_size: 32, optimizer: {{name: sgd, lr: 0.15}}}}
student:
  model: {{name: "helpers.fault_points:build", args: {{width: 8, role: student}}}}
knowledge: [{{loss: {{name: kd, temperature: 4}}}}]
train:
  epochs: 3
  batch_size: 32
  optimizer: {{name: sgd, lr: {{choice: [0.05, 0.1, 0.2]}}}}
search:
  objectives: {{val_accuracy: max}}
  sampler: grid
  scheduler: none
  trials: 3
  finalists: 1
  replicates: 1
cache: {{use: always}}
cluster:
  slots: 1
  workers_per_trial: {workers}
  gpus_per_worker: 0
  cpus_per_worker: 0.5
  storage: {folder}/studies
  hang_timeout_s: {hang}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""

WAIT_S = 300.0
"""Seconds in which a point is reached, or a command ends."""


class Search:
    """A search as a command, with a point at which it waits for a fault.

    Args:
        folder: of its files.
        workers: workers of each trial.
        moment: of the point.
        study: text of the study file, with places for `folder`, `workers` and `hang`.
        waiters: number of processes that wait at the point.
        hang_s: time limit of a batch or a collective operation.
    """

    def __init__(
        self,
        folder: Path,
        workers: int,
        moment: str,
        study: str = STUDY,
        *,
        waiters: int = 1,
        hang_s: int = 1800,
    ) -> None:
        self.folder = folder
        self._points = folder / "points"
        self._points.mkdir()
        (self._points / "plan.json").write_text(json.dumps({"moment": moment, "waiters": waiters}))
        self._study = folder / "study.yaml"
        self._study.write_text(study.format(folder=folder, workers=workers, hang=hang_s))
        self.log = folder / "output.txt"
        self.database = "mlflow.db"
        self._drivers: list[int] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the command; its processes are found by their environment."""
        tests = str(Path(fault_points.__file__).parents[1])
        environment = os.environ | {
            fault_points.FOLDER: str(self._points),
            "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "helpers.fault_points", "search", "--allow-import"]
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *(arguments or (str(self._study),))],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._drivers.append(process.pid)
        return process

    def end(self, command: subprocess.Popen[bytes], seconds: float = WAIT_S) -> int:
        """Wait for the command's end and return its exit code."""
        try:
            return command.wait(seconds)
        except subprocess.TimeoutExpired:
            command.send_signal(signal.SIGUSR2)
            time.sleep(1)
            pytest.fail(f"the command did not end in {seconds:.0f} s\n{self.tail}")

    def reach(self, command: subprocess.Popen[bytes]) -> None:
        """Wait until the point is reached."""
        end = time.monotonic() + WAIT_S
        while not (self._points / "reached").exists():
            assert command.poll() is None, f"it ended before\n{self.tail}"
            assert time.monotonic() < end, f"the point was not reached\n{self.tail}"
            time.sleep(0.02)

    def release(self) -> None:
        (self._points / "released").touch()

    @property
    def processes(self) -> dict[int, str]:
        """Processes of all commands; Ray may have overwritten their environment."""
        sessions = os.path.realpath(ray_folder())
        agents = [pid for driver in self._drivers for pid in session_processes(sessions, driver)]
        return dict.fromkeys(agents, "an agent of Ray") | processes_with(
            fault_points.FOLDER, str(self._points)
        )

    def left(self, seconds: float = 20) -> dict[int, str]:
        """Return the processes that are left after a while."""
        end = time.monotonic() + seconds
        while (processes := self.processes) and time.monotonic() < end:
            time.sleep(0.2)
        return processes

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def tail(self) -> str:
        return self.output[-2000:]

    @property
    def study_folder(self) -> Path:
        [folder] = (self.folder / "studies").glob("faults-*")
        return folder

    @property
    def ending(self) -> str:
        """Status with which the last command ended, from the last line of the journal."""
        last = events(self.study_folder / "journal.jsonl")[-1]
        return last.status if isinstance(last, StudyEnded) else ""

    @property
    def epochs(self) -> dict[str, list[EpochFinished]]:
        """Epochs in the journal, by training."""
        epochs: dict[str, list[EpochFinished]] = {}
        for event in events(self.study_folder / "journal.jsonl"):
            if isinstance(event, EpochFinished):
                epochs.setdefault(event.id, []).append(event)
        return epochs

    @property
    def steps(self) -> int:
        """Training steps of all networks in all processes."""
        return (self._points / "steps").stat().st_size

    @property
    def accuracies(self) -> dict[str, list[float]]:
        return {
            name: [epoch.metrics["val_accuracy"] for epoch in epochs]
            for name, epochs in self.epochs.items()
        }

    def metrics_in_mlflow(self) -> Counter[tuple[str, int]]:
        """Return how often each epoch's validation accuracy is in MLflow, by training and step."""
        query = (
            "SELECT t.value, m.step FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid "
            "WHERE t.key = 'raykd.id' AND m.key = 'val_accuracy'"
        )
        with closing(sqlite3.connect(self.folder / self.database)) as database:
            rows = database.execute(query).fetchall()
        return Counter((str(name).partition("/")[2], int(step)) for name, step in rows)

    def runs_in_mlflow(self) -> Counter[str]:
        """Return how many runs each training has in MLflow."""
        query = "SELECT value FROM tags WHERE key = 'raykd.id'"
        with closing(sqlite3.connect(self.folder / self.database)) as database:
            return Counter(str(row[0]) for row in database.execute(query))
