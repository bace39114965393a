"""Measure the latency of a forward."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from raykd.models.base import Signature
from raykd.models.introspection.layers import random_inputs
from raykd.registry import option

MIN_RUNS = 5
"""Minimum number of runs for a median."""

UNDISTURBED = 0.95
"""Minimum ratio of CPU time to wall time of an undisturbed run on one thread."""

WARM_UP = 3
"""Minimum number of warm-up runs."""

SEGMENTS = 4
"""Number of segments of which the fastest counts, if disturbed runs cannot be detected."""


@option
class Latency:
    """Settings for latency measurements on the machine that starts the search."""

    device: Annotated[str, Field(description="Device to measure on: cpu, cuda, cuda:1, ...")] = (
        "cpu"
    )
    batch: Annotated[int, Field(ge=2, description="Batch size for batch latencies")] = 32
    threads: Annotated[int, Field(ge=1, description="Number of CPU threads for a forward pass")] = 1
    seconds: Annotated[
        float, Field(gt=0, le=60, description="Measuring time per value, in seconds")
    ] = 0.5


@dataclass(frozen=True)
class Timing:
    """Result of a measurement.

    Attributes:
        median: milliseconds per forward.
        iqr: interquartile range in milliseconds.
        runs: number of runs that count.
        total_runs: number of all runs; the others were disturbed.
        busy: whether nearly all runs were disturbed; values are then CPU time of the thread.
    """

    median: float
    iqr: float
    runs: int
    total_runs: int
    busy: bool = False

    def __str__(self) -> str:
        text = f"{self.median:.4g} ms (IQR {self.iqr:.2g}, {self.runs} of {self.total_runs} runs)"
        return f"{text}, CPU time on a busy machine" if self.busy else text


def torch_latency(
    network: nn.Module, signature: Signature, batch: int, settings: Latency
) -> Timing:
    """Measure a forward in PyTorch: eval mode, inference mode, no compiler.

    Args:
        network: on the CPU, with initialized weights; returned there, in eval mode.
        signature: inputs of the network.
        batch: batch size.
        settings: device and measuring time.
    """
    device = torch.device(settings.device)
    network.eval().to(device)
    inputs = random_inputs(signature, batch, device)

    def run() -> None:
        network(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        with torch.inference_mode():
            return time_calls(run, settings)
    finally:
        network.to("cpu")


def time_calls(run: Callable[[], object], settings: Latency) -> Timing:
    """Measure the median duration of a call, after warming up.

    Other processes share the machine, such as trainings of the same search.  On one CPU thread,
    the CPU time of the thread shows which runs had to wait, and these do not count; if nearly all
    had to wait, CPU time is returned instead of wall time.  Otherwise (several threads, a GPU) the
    runs are split into `SEGMENTS` segments, and the one with the lowest median counts.
    """
    with _threads(settings.threads), _no_garbage_collection():
        list(_runs(run, settings.seconds / 5, WARM_UP))
        if settings.device != "cpu" or settings.threads > 1:
            runs = list(_runs(run, settings.seconds, SEGMENTS * MIN_RUNS))
            return _fastest_segment([run.wall for run in runs])
        runs = list(_runs(run, settings.seconds, MIN_RUNS))
        if len(_undisturbed(runs)) < MIN_RUNS:
            runs += _runs(run, settings.seconds, MIN_RUNS)
    undisturbed = _undisturbed(runs)
    if len(undisturbed) < MIN_RUNS:
        return _timing([run.cpu for run in runs], len(runs), busy=True)
    return _timing([run.wall for run in undisturbed], len(runs))


def unmet_conditions(settings: Latency) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that this machine does not support: field, problem, fix."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cpus and settings.threads > cpus:
        problem = f"{settings.threads} threads on a machine of {cpus} CPUs"
        yield "threads", problem, f"use at most {cpus}"
    device = torch.device(settings.device)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            devices = ", ".join(f"cuda:{i}" for i in range(count)) or "no CUDA device"
            problem = (
                f"latency is measured on '{settings.device}', but the machine that starts the "
                f"search has {devices}"
            )
            yield "device", problem, "use cpu or one of its devices, or start the search elsewhere"


def device_name(device: str) -> str:
    """Return the product name of a device."""
    if device != "cpu":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line.partition(":") for line in file)
            names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Run:
    """Wall time and CPU time of one call, in seconds."""

    wall: float
    cpu: float


def _runs(run: Callable[[], object], seconds: float, min_runs: int) -> Iterator[_Run]:
    end = time.perf_counter() + seconds
    count = 0
    while count < min_runs or time.perf_counter() < end:
        cpu, wall = time.thread_time(), time.perf_counter()
        run()
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        yield _Run(wall, cpu)
        count += 1


def _undisturbed(runs: list[_Run]) -> list[_Run]:
    return [run for run in runs if run.cpu >= UNDISTURBED * run.wall]


def _fastest_segment(times: list[float]) -> Timing:
    size = len(times) // SEGMENTS
    segments = [times[i * size : (i + 1) * size] for i in range(SEGMENTS)]
    return _timing(min(segments, key=statistics.median), len(times))


def _timing(times: list[float], total_runs: int, *, busy: bool = False) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(1e3 * middle, 1e3 * (high - low), len(times), total_runs, busy)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not inside the context."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
