"""What several workers must share: the memory of contrastive losses, past predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from raykd.data.batch import Batch
from raykd.knowledge import Pair, Progress, Term
from raykd.knowledge.crd import Crd
from raykd.knowledge.gather import from_all_workers
from raykd.schemes import Offline, PsKd
from scheme_cases import SIZE, TASK, batch, ready

WORLD = 2
CRD = (Term(loss=Crd(width=8, negatives=16), pairs=(Pair(hint="stage2", guided="stage2"),)),)


def test_without_workers_nothing_is_gathered() -> None:
    rows = torch.arange(3.0, requires_grad=True)
    found = from_all_workers(rows)
    assert torch.equal(found, rows) and not found.requires_grad


def test_two_workers(tmp_path: Path) -> None:
    spawn(_worker, args=(str(tmp_path),), nprocs=WORLD, join=True)
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for name in seen[0]:
        torch.testing.assert_close(seen[0][name], seen[1][name], rtol=0, atol=0)
    assert seen[0]["rows"].tolist() == [0, 0, 1, 1, 1]
    whole = ready(PsKd())
    whole.distiller.train()
    whole.step(0)
    assert torch.equal(seen[0]["ps_kd.seen"], whole.distiller.get_buffer("seen"))
    memory = "terms.losses.crd.judges.0."
    assert seen[0][f"crd.{memory}taken"] == len(batch(0))


def _worker(rank: int, folder: str) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    try:
        found = {"rows": from_all_workers(torch.full((2 + rank,), rank))}
        found |= _buffers("ps_kd", lambda: ready(PsKd()), rank)
        found |= _buffers("crd", lambda: ready(Offline(), terms=CRD), rank)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def _buffers(name: str, make: Callable[[], Any], rank: int) -> dict[str, Tensor]:
    """The scheme's own buffers after one step on this worker's share of a batch."""
    case = make()
    case.distiller.train()
    whole = batch(0)
    share = slice(0, 20) if rank == 0 else slice(20, None)
    part = Batch(whole.inputs[share], whole.targets[share], whole.index[share])  # type: ignore[index]
    case.distiller(part, Progress(0, 2))
    return {
        f"{name}.{path}": buffer
        for path, buffer in case.distiller.named_buffers()
        if not path.startswith("student")
    }


def test_sizes_are_those_of_the_case() -> None:
    assert len(batch(0)) <= SIZE and TASK.classes == 10
