"""Soak: a search of many short trials under random faults, resumed after each that ends it.

    uv run pytest -m faults -n 0 -s tests/faults/test_soak.py -k seed0

runs one of three seeds and prints its figures.  `RAYKD_SOAK_TRIALS` is the number of trials, 300.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.mlflow_server import Server
from helpers.processes import kill_all
from helpers.search_command import Search
from raykd.tracking.events import EpochFinished, ModelSaved, RunEnded, RunStarted
from raykd.tracking.journal import events
from raykd.tracking.sync import upload_journal
from raykd.tuning.result import read_result

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

TRIALS = int(os.environ.get("RAYKD_SOAK_TRIALS", "300"))
EPOCHS = 2
STUDY = """\
name: faults
seed: 3
data: {{name: digits, limit: 160, val_limit: 60}}
teacher:
  model: {{name: "helpers.fault_points:build", args: {{width: 32, role: teacher}}}}
  train: {{epochs: 2, batch_size: 32, optimizer: {{name: sgd, lr: 0.15}}}}
student:
  model: {{name: "helpers.fault_points:build", args: {{width: 8, role: student, step_s: 0.08}}}}
knowledge: [{{loss: {{name: kd, temperature: {{uniform: [1, 8]}}}}}}]
train:
  epochs: EPOCHS
  batch_size: 32
  optimizer: {{name: sgd, lr: {{loguniform: [0.01, 0.3]}}}}
search:
  objectives: {{val_accuracy: max}}
  sampler: random
  scheduler: none
  trials: TRIALS
  finalists: 1
  replicates: 1
cluster:
  slots: 2
  workers_per_trial: {workers}
  gpus_per_worker: 0
  cpus_per_worker: 1
  storage: {folder}/studies
  max_failures: 20
tracking: {{uri: "URI"}}
"""

QUIET_S = 300.0
"""Seconds without an epoch after which a search counts as hung."""

ENDING = {
    "driver": (signal.SIGKILL, {-signal.SIGKILL}),
    "SIGTERM": (signal.SIGTERM, {143, 0}),
    "SIGINT": (signal.SIGINT, {130, 0}),
}
"""Faults that end the command: signal to its process, and exit codes."""

KINDS = (*ENDING, "slot", "pause", "raylet", "GCS", "tracking")
OFTEN = ("slot", "slot", "pause")
"""Faults that come more often than others, since the search goes on after them."""


def is_slot(text: str) -> bool:
    return "ray::Slot" in text or "ray::ResourceTrainable" in text


@dataclass
class Soak:
    """A search under faults, and what was measured.

    Attributes:
        memory: resident megabytes by kind of process, with the number of finished trials.
    """

    search: Search
    server: Server
    random: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    resumes: int = 0
    is_server_down: bool = False
    _next: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        with suppress(ValueError, FileNotFoundError):  # there is no folder yet
            journal = (self.search.study_folder / "journal.jsonl").read_bytes()
            return journal.count(f'"event": "{RunEnded.kind}"'.encode())
        return 0

    def run(self) -> None:
        """Run the search to its end; a fault every few trials."""
        command = self.search.start()
        while True:
            if self._wait_for_trials(command, self.finished + self.random.randint(3, 10)):
                return
            if self.is_server_down:
                self.server.start(wait=False)
                self.is_server_down = False
            fault = self._draw_fault()
            print(f"{self.finished} trainings: {fault}", flush=True)
            codes = self._break(fault, command)
            if codes:
                code = self.search.end(command)
                assert code in codes, (fault, code, self.search.tail)
                assert not self.search.left(), (fault, self.search.left())
                self.resumes += 1
                command = self.search.start("--resume", str(self.search.study_folder))

    def _draw_fault(self) -> str:
        """Draw a fault without replacement: the first eight are one of each kind."""
        if not self._next:
            self._next = self.random.sample(KINDS, len(KINDS))
            if self.faults:
                self._next = self.random.sample([*KINDS, *OFTEN], len(KINDS) + len(OFTEN))
        fault = self._next.pop()
        self.faults[fault] += 1
        return fault

    def _wait_for_trials(self, command: subprocess.Popen[bytes], count: int) -> bool:
        """Wait until this number of trainings is finished; return True if the search is over."""
        before, last = self.finished, time.monotonic()
        while (finished := self.finished) < count:
            if finished != before:
                before, last = finished, time.monotonic()
            if command.poll() is not None:
                assert command.returncode == 0, self.search.tail
                return True
            assert time.monotonic() - last < QUIET_S, self.search.tail
            time.sleep(0.2)
        self._measure(command.pid, finished)
        return False

    def _break(self, fault: str, command: subprocess.Popen[bytes]) -> set[int]:
        """Break something; return the exit codes of the command if it ends."""
        if fault in ENDING:
            number, codes = ENDING[fault]
            command.send_signal(number)
            return {int(code) for code in codes}
        if fault == "tracking":
            self.server.stop()
            self.is_server_down = True
            return set()
        names = {"raylet": "raylet/raylet", "GCS": "gcs_server"}
        name = names.get(fault)
        processes = sorted(self.search.processes.items())
        pids = [pid for pid, text in processes if (name in text if name else is_slot(text))]
        if not pids:
            return set()
        pid = self.random.choice(pids)
        with suppress(ProcessLookupError):
            if fault == "pause":
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.random.uniform(0.5, 3))
                os.kill(pid, signal.SIGCONT)
            else:
                os.kill(pid, signal.SIGKILL)
        return {0, 1} if fault in names else set()

    def _measure(self, driver: int, finished: int) -> None:
        pids = {driver: "driver"}
        pids |= {p: "slot" for p, text in self.search.processes.items() if is_slot(text)}
        for pid, kind in pids.items():
            with suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                self.memory.setdefault(kind, []).append((finished, megabytes))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("seed", range(3), ids="seed{}".format)
def test_many_trials_under_random_faults(
    seed: int, server: Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    text = STUDY.replace("TRIALS", str(TRIALS)).replace("EPOCHS", str(EPOCHS))
    search = Search(tmp_path, 1, "sending", text.replace("URI", server.uri))
    search.database = "server.db"
    search.release()
    soak = Soak(search, server, random.Random(seed))
    began = time.monotonic()
    try:
        soak.run()
        left = search.left()
    finally:
        kill_all(search.processes)
    seconds = time.monotonic() - began
    if soak.is_server_down:
        server.start()
    journal = search.study_folder / "journal.jsonl"
    upload_journal(journal, server.uri, patience=240)

    result = read_result(search.study_folder)
    records = result.records.of("teacher", "trial", "replicate", "alone")
    status = Counter(record.status for record in result.records.of("trial"))
    every = events(journal)
    epochs = Counter((e.id, e.epoch) for e in every if isinstance(e, EpochFinished))
    print(f"\nsoak seed {seed}: {TRIALS} trials in {seconds:.0f} s, {soak.resumes} resumes")
    print(f"  faults: {dict(soak.faults)}; status of the trials: {dict(status)}")
    for kind, points in soak.memory.items():
        figures = [f"{megabytes:.0f} MB at {count}" for count, megabytes in points]
        print(f"  {kind}: {', '.join(figures[:: max(1, len(figures) // 8)])}")
    assert status == {"finished": TRIALS}
    assert set(soak.faults) == set(KINDS)
    assert len(epochs) == EPOCHS * len(records) and set(epochs.values()) == {1}
    for kind in (RunStarted, RunEnded):
        counts = Counter(event.id for event in every if isinstance(event, kind))
        assert len(counts) == len(records) and set(counts.values()) == {1}
    runs = search.runs_in_mlflow()
    assert len(runs) == 1 + len(records) and set(runs.values()) == {1}
    models = {e.id for e in every if isinstance(e, ModelSaved) and "val_accuracy" in e.metrics}
    expected = epochs + Counter((id, EPOCHS) for id in models)  # a model repeats its metrics once
    assert search.metrics_in_mlflow() == expected
    assert not left
    for kind, points in soak.memory.items():
        sizes = [megabytes for _, megabytes in points]
        assert max(sizes) < 1.3 * sorted(sizes)[len(sizes) // 2] + 50, (kind, points)
