"""NumPy float64 arrays for reference formulas."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def unit(vectors: Array) -> Array:
    """Each row of norm 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def kl(p: Array, q: Array) -> Array:
    """Of each row."""
    return np.sum(p * np.log(p / q), axis=-1)
