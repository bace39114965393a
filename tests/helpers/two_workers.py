"""Work of each of two workers in `test_workers`; a separate module to be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.scheme_cases import batch, ready
from helpers.study_cases import STUDIES, training_of, untimed
from raykd.data.batch import Batch
from raykd.losses import Pair, Progress, Term
from raykd.losses.crd import Crd
from raykd.losses.functional import from_all_workers
from raykd.schemes import Kdcl, Offline, PsKd
from raykd.training.trainer import Training

WORLD = 2
CRD = (Term(loss=Crd(width=8, negatives=16), pairs=(Pair(hint="stage2", guided="stage2"),)),)

TensorsByName = dict[str, Tensor]


def run(rank: int, folder: str, names: Iterable[str]) -> None:
    """Do all as one of two workers, and put what comes of it into `folder`: what is remembered
    after a step, then the trainings of those names."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # ranks whose processes differ must yet agree
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=180),
    )
    try:
        remembered = _all_buffers(rank)
        trainings = {name: trained(name, rank, WORLD) for name in names}
        torch.save((remembered, trainings), Path(folder) / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()


def trained(name: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """History and weights of one of `STUDIES`, trained to the end.

    Batch norm takes the statistics it has from the start: a worker's share of a batch has others
    than the batch.
    """
    forward = _BatchNorm.forward
    _BatchNorm.forward = _with_kept_statistics  # type: ignore[method-assign]
    try:
        training = training_of(STUDIES[name](), rank=rank, world=world)
        while training.epoch < training.epochs:
            training.run_epoch()
        return _result(training)
    finally:
        _BatchNorm.forward = forward


def _result(training: Training) -> dict[str, Any]:
    return {
        "history": [untimed(metrics) for metrics in training.history],
        "weights": training.state()["student"],
    }


def _with_kept_statistics(self: _BatchNorm, input: Tensor) -> Tensor:
    mean, var = self.running_mean, self.running_var
    return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)


def _all_buffers(rank: int) -> TensorsByName:
    """Buffers of schemes and losses after one step on this worker's share of a batch."""
    buffers = {"rows": from_all_workers(torch.full((2 + rank,), rank))}
    buffers |= _buffers("ps_kd", lambda: ready(PsKd()), rank)
    buffers |= _buffers("kdcl", lambda: ready(Kdcl(ensemble="general", own_views=False)), rank)
    buffers |= _buffers("crd", lambda: ready(Offline(), terms=CRD), rank)
    return buffers


def _buffers(name: str, make: Callable[[], Any], rank: int) -> TensorsByName:
    case = make()
    case.distiller.train()
    whole = batch(0)
    share = slice(0, 20) if rank == 0 else slice(20, None)
    part = Batch(whole.inputs[share], whole.targets[share], whole.index[share])  # type: ignore[index]
    case.distiller(part, Progress(0, 2))
    return {
        f"{name}.{path}": buffer
        for path, buffer in case.distiller.named_buffers()
        if not path.startswith(("student", "others"))
    }
