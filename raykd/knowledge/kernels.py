"""Kernels and the maximum mean discrepancy between two sets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["polynomial", "gaussian", "linear"]


def discrepancy(guided: Tensor, hint: Tensor, kernel: Kernel) -> Tensor:
    """(B, N, D), (B, M, D) -> (B,): squared maximum mean discrepancy of two sets of vectors.

    mean k(g, g') + mean k(h, h') - 2 mean k(g, h); Gretton 2012, Eq. 5.  The Gaussian kernel's
    sigma^2 is the mean squared distance between vectors of `hint`, a constant for the student.
    """
    width = squared_distances(hint, hint).mean(dim=(1, 2), keepdim=True)
    width = width.clamp_min(torch.finfo(width.dtype).eps)

    def mean(left: Tensor, right: Tensor) -> Tensor:
        if kernel == "gaussian":
            near = torch.exp(-squared_distances(left, right) / (2 * width))
        else:
            near = (left @ right.transpose(1, 2)).pow(2 if kernel == "polynomial" else 1)
        return near.mean(dim=(1, 2))

    return mean(guided, guided) + mean(hint, hint) - 2 * mean(guided, hint)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(..., N, D), (..., M, D) -> (..., N, M): ||l - r||^2."""
    products = left @ right.transpose(-1, -2)
    lengths = left.square().sum(-1).unsqueeze(-1) + right.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * products).clamp_min(0)
