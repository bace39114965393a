"""Fault matrix: processes of a search are killed at every moment of it, and nothing is lost.

    uv run pytest -m faults -n 0

runs all of it and prints its table.  Every case is a whole command on a Ray of its own; it is
compared with the same search undisturbed.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import fault_points
from helpers.processes import kill_all
from helpers.search_command import WAIT_S, Search
from raykd.tracking.events import RunEnded, RunStarted
from raykd.tracking.journal import events
from raykd.tuning.result import read_result

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

TRIALS = 3
Kill = Callable[[int, dict[int, str]], None]
"""Breaks something: (pid of the driver, all processes of its search)."""


def by_name(*names: str, last: bool = False, number: signal.Signals = signal.SIGKILL) -> Kill:
    """Return a fault that sends a signal to the first (or last) process whose name has a part."""

    def kill(driver: int, processes: dict[int, str]) -> None:
        pids = [p for p, text in sorted(processes.items()) if any(n in text for n in names)]
        assert pids, processes
        os.kill(pids[-1 if last else 0], number)

    return kill


def to_driver(number: signal.Signals) -> Kill:
    return lambda driver, processes: os.kill(driver, number)


@dataclass(frozen=True)
class Fault:
    """Fault of the matrix.

    Attributes:
        kill: breaks something.
        code: exit code of the command; None: any but 0.
        resumed: whether the command ends and `--resume` continues.
        seconds: in which the command ends, if it does.
        stays: whether the processes that wait at the point wait for good.
        all_ranks: whether all workers of the trial wait at the point.
        hang_s: `cluster.hang_timeout_s`.
    """

    kill: Kill
    code: int | None = 0
    resumed: bool = False
    seconds: float = WAIT_S
    stays: bool = False
    all_ranks: bool = False
    hang_s: int = 1800


SLOT = ("ray::Slot", "ray::ResourceTrainable")
FAULTS = {
    "slot": Fault(by_name(*SLOT)),
    "stopped slot": Fault(by_name(*SLOT, number=signal.SIGSTOP), hang_s=30),
    "rank 0": Fault(by_name("TrainWorker")),
    "last rank": Fault(by_name("TrainWorker", last=True)),
    "controller": Fault(by_name("TrainController")),
    "hang": Fault(lambda driver, processes: None, stays=True, hang_s=30),
    "hang of all": Fault(
        lambda driver, processes: None, seconds=600, stays=True, all_ranks=True, hang_s=60
    ),
    "driver": Fault(to_driver(signal.SIGKILL), code=-signal.SIGKILL, resumed=True),
    "SIGTERM": Fault(to_driver(signal.SIGTERM), code=143, resumed=True, seconds=60),
    "SIGINT": Fault(to_driver(signal.SIGINT), code=130, resumed=True, seconds=60),
    "GCS": Fault(by_name("gcs_server"), code=1, resumed=True, seconds=30),
    "raylet": Fault(by_name("raylet/raylet"), code=1, resumed=True, seconds=30),
}
MOMENTS = tuple(fault_points.EVENTS)
IN_SLOTS = tuple(moment for moment in MOMENTS if moment != "sending")
SOME = ("teacher", "mid-epoch", "between trials")
MATRIX = {
    1: {
        "slot": IN_SLOTS,
        "stopped slot": ("teacher", "mid-epoch", "between trials"),
        "hang": ("teacher", "outputs", "mid-epoch", "replicates"),
        "driver": MOMENTS,
        "SIGTERM": MOMENTS,
        "SIGINT": ("mid-epoch",),
        "GCS": SOME,
        "raylet": SOME,
    },
    2: {
        "rank 0": ("mid-epoch", "replicates"),
        "last rank": SOME,
        "hang of all": ("teacher", "mid-epoch"),
        "controller": SOME,
        "slot": SOME,
        "driver": ("mid-epoch",),
        "SIGTERM": ("mid-epoch",),
        "GCS": ("mid-epoch",),
    },
}
"""Moments of each fault, by the workers of a trial."""

FEW = {
    (1, "slot", "mid-epoch"),
    (1, "slot", "between trials"),
    (1, "SIGTERM", "mid-epoch"),
    (1, "GCS", "mid-epoch"),
    (2, "last rank", "mid-epoch"),
}
"""Cases that also run with the slow tests."""


def cases() -> Iterator[object]:
    for workers, faults in MATRIX.items():
        for fault, moments in faults.items():
            for moment in moments:
                marks = [pytest.mark.slow] if (workers, fault, moment) in FEW else []
                name = f"{workers}-{fault}-{moment}".replace(" ", "_")
                yield pytest.param(workers, fault, moment, marks=marks, id=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Search]:
    """The same search without a fault, for each number of workers once."""
    finished: dict[int, Search] = {}

    def search(workers: int) -> Search:
        if workers not in finished:
            new = Search(tmp_path_factory.mktemp(f"undisturbed-{workers}"), workers, "sending")
            new.release()
            assert new.end(new.start()) == 0, new.tail
            finished[workers] = new
        return finished[workers]

    return search


@pytest.fixture
def search_of(tmp_path: Path) -> Iterator[Callable[[int, str, Fault], Search]]:
    searches: list[Search] = []

    def build(workers: int, moment: str, fault: Fault) -> Search:
        waiters = workers if fault.all_ranks else 1
        search = Search(tmp_path, workers, moment, waiters=waiters, hang_s=fault.hang_s)
        searches.append(search)
        return search

    yield build
    for search in searches:
        kill_all(search.processes)


@pytest.mark.parametrize(("workers", "fault", "moment"), cases())
def test_nothing_is_lost(
    workers: int,
    fault: str,
    moment: str,
    undisturbed: Callable[[int], Search],
    search_of: Callable[[int, str, Fault], Search],
    record_property: Callable[[str, object], None],
) -> None:
    whole, broken = undisturbed(workers), FAULTS[fault]
    for name, value in (("fault", fault), ("moment", moment), ("workers", workers)):
        record_property(name, value)
    search = search_of(workers, moment, broken)
    command = search.start()
    search.reach(command)
    broken.kill(command.pid, search.processes)
    killed = time.time()
    if not broken.stays:
        search.release()
    code = search.end(command, broken.seconds)
    # At the upload all is trained and written: the command ends as if nothing had happened
    is_over = moment == "sending" and fault != "driver"
    assert code == (0 if is_over else broken.code), search.tail
    left = search.left()
    if is_over:
        assert "raykd sync" in search.output, search.tail
    if broken.resumed:
        if fault != "driver" and not is_over:
            output = search.output
            assert "to resume:" in output and "Traceback" not in output, search.tail
            assert "*** SIG" not in output and "stack trace" not in output.lower(), output
            assert not fault.startswith("SIG") or search.ending == "interrupted"
        killed = time.time()
        assert search.end(search.start("--resume", str(search.study_folder))) == 0, search.tail
        left |= search.left()
    result = read_result(search.study_folder)
    records = result.records.of("teacher", "trial", "replicate", "alone")
    lost = TRIALS - sum(r.status == "finished" for r in result.records.of("trial"))
    per_epoch = whole.steps / sum(len(epochs) for epochs in whole.epochs.values())
    redone = max(0, math.ceil((search.steps - whole.steps) / per_epoch - 1e-9))
    sent = search.metrics_in_mlflow()
    expected = whole.metrics_in_mlflow()
    runs = search.runs_in_mlflow()
    later = [e.at / 1e3 for es in search.epochs.values() for e in es if e.at / 1e3 > killed]
    for name, value in {
        "trials lost": lost,
        "epochs redone": redone,
        "metrics lost": (expected - sent).total(),
        "runs doubled": runs.total() - len(runs),
        "processes left": len(left),
        "seconds": f"{min(later) - killed:.1f}" if later else "-",
    }.items():
        record_property(name, value)
    assert not lost and {r.status for r in records} == {"finished"}, search.tail
    assert redone <= 1
    assert sent == expected and set(runs.values()) == {1}
    assert len(runs) == 1 + len(records)
    assert search.accuracies == whole.accuracies
    every = events(search.study_folder / "journal.jsonl")
    for kind in (RunStarted, RunEnded):
        counts = Counter(event.id for event in every if isinstance(event, kind))
        assert set(counts.values()) == {1}, kind
    assert not left
