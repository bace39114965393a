"""Tensors of all workers of a trial."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def from_all_workers(tensor: Tensor) -> Tensor:
    """(B, ...) -> (sum of B, ...): every worker's rows, in rank order; no gradient.

    Workers may hold different numbers of rows.  Without a process group the tensor itself.
    """
    tensor = tensor.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    if distributed.get_world_size() == 1:
        return tensor
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    rows = [int(count) for count in counts]
    padded = torch.cat([tensor, tensor.new_zeros(max(rows) - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in rows]
    distributed.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])
