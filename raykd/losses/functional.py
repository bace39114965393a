"""Functions shared by losses: kernels, maximum mean discrepancy, normalization."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed
from torch.linalg import vector_norm

Kernel = Literal["polynomial", "gaussian", "linear"]


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Normalize vectors along `dim` to norm 1; a zero vector stays zero."""
    lengths = vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / or_one(lengths)


def or_one(divisor: Tensor) -> Tensor:
    """Return the divisor, with 1 in place of 0 (where the dividend is 0 as well)."""
    return divisor.masked_fill(divisor == 0, 1.0)


def centred(values: Tensor, dim: int) -> Tensor:
    """Subtract the mean over `dim`; exactly 0, without gradient, where all values are equal.

    Otherwise the rounding error of a constant would count as variation.
    """
    left = values - values.mean(dim=dim, keepdim=True)
    rounding = 4 * torch.finfo(values.dtype).eps * values.abs().amax(dim=dim, keepdim=True)
    return left.masked_fill(left.abs().amax(dim=dim, keepdim=True) <= rounding, 0.0)


def discrepancy(guided: Tensor, hint: Tensor, kernel: Kernel) -> Tensor:
    """(B, N, D), (B, M, D) -> (B,): squared maximum mean discrepancy of two sets of vectors.

    mean k(g, g') + mean k(h, h') - 2 mean k(g, h), the biased estimate of Gretton 2012.  sigma^2 of
    the Gaussian kernel is the mean squared distance between vectors of `hint`, without gradient; 1
    if they are all equal.
    """
    width = _mean_squared_distance(hint)

    def mean(left: Tensor, right: Tensor) -> Tensor:
        if kernel == "gaussian":
            near = torch.exp(-squared_distances(left, right) / (2 * width))
        else:
            near = (left @ right.transpose(1, 2)).pow(2 if kernel == "polynomial" else 1)
        return near.mean(dim=(1, 2))

    return mean(guided, guided) + mean(hint, hint) - 2 * mean(guided, hint)


def _mean_squared_distance(vectors: Tensor) -> Tensor:
    """(B, N, D) -> (B, 1, 1): mean over all N^2 pairs; 1 if it is rounding error only."""
    mean = squared_distances(vectors, vectors).mean(dim=(1, 2), keepdim=True)
    size = vectors.square().sum(-1).mean(dim=1)[:, None, None]
    return mean.masked_fill(mean <= 4 * torch.finfo(mean.dtype).eps * size, 1.0)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(..., N, D), (..., M, D) -> (..., N, M): ||l - r||^2."""
    products = left @ right.transpose(-1, -2)
    lengths = left.square().sum(-1).unsqueeze(-1) + right.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * products).clamp_min(0)


def from_all_workers(tensor: Tensor) -> Tensor:
    """(B, ...) -> (sum of B, ...): rows of all workers in rank order, without gradient.

    Workers may have different numbers of rows.  Without a process group, return the tensor.
    """
    tensor = tensor.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    if distributed.get_world_size() == 1:
        return tensor
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    rows = [int(count) for count in counts]
    padded = torch.cat([tensor, tensor.new_zeros(max(rows) - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in rows]
    distributed.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])
