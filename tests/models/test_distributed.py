"""Every family: training in two processes equals training in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from helpers.model_cases import FASHION, NAMES, small

RANKS = 2
BATCH = 4


@pytest.mark.slow
def test_two_processes_get_mean_gradient(tmp_path: Path) -> None:
    spawn(_work, args=(f"file://{tmp_path}/store", str(tmp_path)), nprocs=RANKS)
    gradients = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    assert list(gradients[0]) == list(NAMES)
    for name in NAMES:
        alone = [_gradients(_network(name), rank) for rank in range(RANKS)]
        for place, first in alone[0].items():
            expected = (first + alone[1][place]) / 2
            torch.testing.assert_close(gradients[0][name][place], expected, rtol=1e-4, atol=1e-6)
            assert torch.equal(gradients[0][name][place], gradients[1][name][place]), (name, place)


def _work(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    gradients = {
        name: _gradients(DistributedDataParallel(_network(name)), rank, prefix="module.")
        for name in NAMES
    }
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return small(name).build(FASHION)


def _gradients(network: nn.Module, rank: int, prefix: str = "") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rank)
    inputs = torch.rand(BATCH, *FASHION.input_shape, generator=draw)
    F.cross_entropy(network(inputs), torch.arange(BATCH)).backward()
    gradients = {}
    for place, parameter in network.named_parameters():
        assert parameter.grad is not None, place
        gradients[place.removeprefix(prefix)] = parameter.grad
    return gradients
