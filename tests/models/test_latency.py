"""Measured latency, against a plain loop and with fake clocks."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from raykd.models import Resnet, Signature
from raykd.models.introspection import latency
from raykd.models.introspection.latency import (
    MIN_RUNS,
    Latency,
    Timing,
    device_name,
    time_calls,
    torch_latency,
    unmet_conditions,
)

TASK = Signature((3, 32, 32), 10)
QUICK = Latency(seconds=0.1)
SMALL, LARGE = Resnet(depth=8, width=4), Resnet(depth=20, width=12)
"""0.8 and 23 million multiply-accumulates."""


def test_latency_matches_plain_loop() -> None:
    network = LARGE.build(TASK).eval()
    inputs = torch.rand(1, *TASK.input_shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            durations = []
            for _ in range(30):
                began = time.perf_counter()
                network(inputs)
                durations.append(1e3 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    timing = torch_latency(network, TASK, 1, QUICK)
    assert timing.median >= 0.5 * min(durations)
    assert timing.median <= 2 * sorted(durations)[15]


def test_more_work_takes_longer() -> None:
    small, large = SMALL.build(TASK), LARGE.build(TASK)
    small_latency = torch_latency(small, TASK, 1, QUICK).median
    assert torch_latency(large, TASK, 1, QUICK).median > 2 * small_latency
    assert torch_latency(small, TASK, 32, QUICK).median > 3 * small_latency


def test_threads_and_garbage_collection_are_restored() -> None:
    threads = torch.get_num_threads()
    settings: list[tuple[int, bool]] = []
    time_calls(
        lambda: settings.append((torch.get_num_threads(), gc.isenabled())), Latency(seconds=0.001)
    )
    assert {*settings} == {(1, False)}
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


class Machine:
    """Fake clocks, advanced by a run that works and may wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waits: Iterator[float]) -> None:
        self.wall = self.work = 0.0
        self.waits = waits
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(latency.time, "thread_time", lambda: self.work)

    def run(self) -> None:
        self.work += 0.010
        self.wall += 0.010 + next(self.waits)


def cycle(*waits: float) -> Iterator[float]:
    while True:
        yield from waits


def test_runs_that_waited_are_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, cycle(0, 0.02, 0.03))
    timing = time_calls(machine.run, Latency(seconds=1))
    assert timing.median == pytest.approx(10)
    assert timing.iqr == pytest.approx(0)
    assert MIN_RUNS <= timing.runs < timing.total_runs
    assert not timing.busy


def test_cpu_time_is_used_if_all_runs_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, cycle(0.02, 0.03))
    timing = time_calls(machine.run, Latency(seconds=1))
    assert timing.busy and timing.median == pytest.approx(10)
    assert str(timing).endswith("CPU time on a busy machine")


def test_several_threads_use_quietest_window(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([0.0] * 20 + [0.03] * 25 + [0.001] * 25 + [0.03] * 1000)
    machine = Machine(monkeypatch, waits)
    timing = time_calls(machine.run, Latency(seconds=1.6, threads=2))
    assert 10 <= timing.median <= 11.5
    assert timing.total_runs > timing.runs


def test_result_has_uncertainty() -> None:
    assert str(Timing(1.2345, 0.0567, 90, 100)) == "1.234 ms (IQR 0.057, 90 of 100 runs)"


def test_unavailable_device_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not list(unmet_conditions(Latency()))
    [(field, message, fix)] = unmet_conditions(Latency(device="cuda"))
    assert (
        field == "device" and "'cuda'" in message and "no CUDA device" in message and "cpu" in fix
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not list(unmet_conditions(Latency(device="cuda:1")))
    [(_, message, _)] = unmet_conditions(Latency(device="cuda:2"))
    assert "has cuda:0, cuda:1" in message
    [(field, message, _)] = unmet_conditions(Latency(threads=100_000))
    assert field == "threads" and message.startswith("100000 threads on a machine of ")


def test_device_name() -> None:
    assert device_name("cpu").strip()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_gpu_latency() -> None:
    network = SMALL.build(TASK)
    timing = torch_latency(network, TASK, 8, Latency(device="cuda", seconds=0.1))
    assert 0 < timing.median < 1000
    assert next(network.parameters()).device.type == "cpu"
    assert device_name("cuda")
