"""How long a network's forward takes, measured."""

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

from raykd.architecture.layers import random_inputs
from raykd.architecture.model import Task
from raykd.option import option

FEWEST = 5
"""Runs that a median is taken of, at least."""

CALM = 0.95
"""Of an undisturbed run's time on a single thread, the part that the thread was at work."""

WARM_UP = 3
"""Runs that do not count, at least."""

ROUNDS = 4
"""Where disturbed runs cannot be told, the quietest of so many stretches of runs counts."""


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
    """What a measurement gave.

    Attributes:
        median: milliseconds a forward.
        iqr: milliseconds between the quartiles.
        runs: how many forwards these are taken of.
        made: how many there were; the others were disturbed.
        busy: whether all were disturbed; the figures are then the thread's own time at work.
    """

    median: float
    iqr: float
    runs: int
    made: int
    busy: bool = False

    def __str__(self) -> str:
        said = f"{self.median:.4g} ms (IQR {self.iqr:.2g}, {self.runs} of {self.made} runs)"
        return f"{said}, at work on a busy machine" if self.busy else said


def torch_latency(network: nn.Module, task: Task, batch: int, how: Latency) -> Timing:
    """The latency of a network's forward in PyTorch: eval mode, inference mode, no compiler.

    Args:
        network: on the CPU, filled with weights; comes back there, in eval mode.
        task: what it takes.
        batch: samples at once.
        how: where and for how long.
    """
    device = torch.device(how.device)
    network.eval().to(device)
    inputs = random_inputs(task, batch, device)

    def run() -> None:
        network(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        with torch.inference_mode():
            return timed(run, how)
    finally:
        network.to("cpu")


def timed(run: Callable[[], object], how: Latency) -> Timing:
    """The median of a call's duration, after warming up, and how sure it is.

    Other processes share the machine, a search's own trainings first of all.  On one thread of
    the CPU a run that had to wait for them is known by the thread's own clock, and left out;
    where nearly all had to wait, that clock is taken for the wall's.  Else (several threads, a
    GPU) the runs are parted into `ROUNDS` stretches, of which the one with the lowest median
    counts.
    """
    with _threads(how.threads), _uncollected():
        list(_runs(run, how.seconds / 5, WARM_UP))
        if how.device != "cpu" or how.threads > 1:
            runs = list(_runs(run, how.seconds, ROUNDS * FEWEST))
            return _of_quietest([one.wall for one in runs])
        runs = list(_runs(run, how.seconds, FEWEST))
        if len(_calm(runs)) < FEWEST:
            runs += _runs(run, how.seconds, FEWEST)
    calm = _calm(runs)
    if len(calm) < FEWEST:
        return _timing([one.work for one in runs], len(runs), busy=True)
    return _timing([one.wall for one in calm], len(runs))


def lacking(how: Latency) -> Iterator[tuple[str, str, str]]:
    """What of the conditions this machine cannot give: the field, what is wrong, how to mend it."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cpus and how.threads > cpus:
        yield "threads", f"{how.threads} threads on a machine of {cpus} CPUs", f"at most {cpus}"
    device = torch.device(how.device)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            devices = ", ".join(f"cuda:{i}" for i in range(found)) or "no CUDA device"
            what = (
                f"latency is to be measured on '{how.device}', and the machine the search is "
                f"started on has {devices}"
            )
            yield "device", what, "take one it has (cpu is always there), or start it where one is"


def device_name(device: str) -> str:
    """What a device is called by who made it."""
    if device != "cpu":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as told:
            lines = (line.partition(":") for line in told)
            names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Run:
    """One call: seconds by the wall, and seconds that this thread was at work."""

    wall: float
    work: float


def _runs(run: Callable[[], object], seconds: float, fewest: int) -> Iterator[_Run]:
    end = time.perf_counter() + seconds
    made = 0
    while made < fewest or time.perf_counter() < end:
        work, wall = time.thread_time(), time.perf_counter()
        run()
        wall, work = time.perf_counter() - wall, time.thread_time() - work
        yield _Run(wall, work)
        made += 1


def _calm(runs: list[_Run]) -> list[_Run]:
    return [one for one in runs if one.work >= CALM * one.wall]


def _of_quietest(walls: list[float]) -> Timing:
    size = len(walls) // ROUNDS
    stretches = [walls[i * size : (i + 1) * size] for i in range(ROUNDS)]
    return _timing(min(stretches, key=statistics.median), len(walls))


def _timing(walls: list[float], made: int, *, busy: bool = False) -> Timing:
    low, middle, high = statistics.quantiles(walls, n=4, method="inclusive")
    return Timing(1e3 * middle, 1e3 * (high - low), len(walls), made, busy)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Garbage is collected before, not while one measures."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
