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

JOB = TrainJob("trial-0001", "trial", {}, seed=0, epochs=2, folder="study")
WORLD = 3


def run(rank: int, folder: str, hung: int) -> None:
    """Add up a number over all ranks; one of them hangs until the others have noticed."""
    worker.HUNG_S = 5.0
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=15),
    )
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=30))
    context = SimpleNamespace(storage=Storage(folder), world=WORLD)
    present: Any = SimpleNamespace(context=context, job=JOB)
    dist.all_reduce(torch.ones(1))  # all have begun
    if rank == hung:
        end = time.monotonic() + 120
        while not Path(folder, JOB.failure_file).exists() and time.monotonic() < end:
            time.sleep(0.1)
        return
    try:
        with worker._name_hung_ranks(present, group):
            dist.all_reduce(torch.ones(1))
    except RuntimeError:
        return
    raise AssertionError("the sum came without one rank")
