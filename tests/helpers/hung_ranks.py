"""Ranks of which one does not come to a collective operation; a module that can be pickled."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from raykd.runtime import worker
from raykd.runtime.jobs import TrainJob
from raykd.storage import Storage

WORLD = 3
HANGING = (0, 1)
"""Ranks that hang, one after the other."""


def job_of(hung: int) -> TrainJob:
    """Return the job in which a rank hangs."""
    return TrainJob(f"trial-000{hung}", "trial", {}, seed=0, epochs=2, folder="study")


def run(rank: int, folder: str) -> None:
    """Add up a number over all ranks; one of them hangs until the others have noticed."""
    worker.HUNG_S = 4.0
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )
    groups = [
        [dist.new_group(backend="gloo", timeout=timedelta(seconds=limit)) for limit in (5, 10)]
        for _ in HANGING
    ]
    for hung, (gradients, requests) in zip(HANGING, groups, strict=True):
        dist.all_reduce(torch.ones(1))  # all have begun
        if rank == hung:
            _wait_for(Path(folder, job_of(hung).failure_file))
        else:
            _add_up(folder, job_of(hung), gradients, requests)


def _wait_for(file: Path) -> None:
    end = time.monotonic() + 120
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.1)


def _add_up(folder: str, job: TrainJob, gradients: Any, requests: Any) -> None:
    context = SimpleNamespace(storage=Storage(folder), world=WORLD)
    present: Any = SimpleNamespace(context=context, job=job)
    try:
        with worker._name_hung_ranks(present, requests):
            dist.all_reduce(torch.ones(1), group=gradients)
    except RuntimeError:
        return
    raise AssertionError("the sum came without one rank")
