"""Metrics of the user on one worker and on two; a separate module to be pickled."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group

from raykd.data import Batch
from raykd.tasks import Classification, Segmentation, Task
from raykd.tasks.statistics import IGNORED
from raykd.training.metrics import evaluate
from raykd.user_code import UserCode

WORLD, SAMPLES, CLASSES, SIDE = 2, 11, 4, 6

CODE = """\
import torch
from torchmetrics import Metric

class Misses(Metric):
    higher_is_better = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("missed", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("largest", default=[], dist_reduce_fx="cat")

    def update(self, preds, target):
        missed = (preds.argmax(1) != target) & (target != 255)
        self.missed += missed.sum()
        self.largest.append(preds.flatten(1).amax(1))

    def compute(self):
        from torchmetrics.utilities import dim_zero_cat
        return self.missed + dim_zero_cat(self.largest).median()
"""
"""A metric that is a sum and a median: workers that share samples twice change it."""


def task_of(kind: str) -> Task:
    metrics = ("more.py:Misses",)
    return Segmentation(metrics=metrics) if kind == "dense" else Classification(metrics=metrics)


def samples(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return responses and targets."""
    generator = torch.Generator().manual_seed(6)
    shape = (SIDE, SIDE) if kind == "dense" else ()
    response = torch.randn(SAMPLES, CLASSES, *shape, generator=generator)
    targets = torch.randint(CLASSES, (SAMPLES, *shape), generator=generator)
    if kind == "dense":
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORED
    return response, targets


def measured(folder: Path, kind: str, rank: int = 0, world: int = 1) -> float:
    UserCode.read(folder, ["more.py:Misses"]).register()
    response, targets = samples(kind)
    rows = torch.arange(rank, SAMPLES, world).split(2)
    batches = [Batch(response[each], targets[each], each) for each in rows]
    return evaluate(nn.Identity(), batches, task=task_of(kind), world=world)["Misses"]


def run(rank: int, folder: Path) -> None:
    """Measure both kinds as one of two workers, and save the values."""
    torch.set_num_threads(1)
    meeting, timeout = f"file://{folder}/meeting", timedelta(seconds=120)
    init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timeout)
    try:
        values = {kind: measured(folder, kind, rank, WORLD) for kind in ("softmax", "dense")}
        torch.save(values, folder / f"values{rank}.pt")
    finally:
        destroy_process_group()
