"""Peak activation memory of a forward that skips most arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._pytree import tree_leaves

from raykd.models.base import Signature
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.layers import blank_inputs, evaluating


class MemoryTracker(FlopCounter):
    """Track the memory of tensors created inside the context; products are not computed.

    A storage counts once for all its views, from its creation until it is released.

    Args:
        ignored: tensors that do not count (the weights).
        existing: tensors that exist already and count (the inputs).
    """

    def __init__(self, ignored: Iterable[Tensor], existing: Iterable[Tensor]) -> None:
        super().__init__()
        storages = (_storage_of(tensor) for tensor in ignored)
        self._ignored = {_storage_key(storage) for storage in storages if storage is not None}
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        self._bytes = 0
        self.peak = 0
        for tensor in existing:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = _storage_of(tensor)
        if storage is None:
            return
        key, size = _storage_key(storage), storage.nbytes()
        if key in self._ignored or key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._release(key, size))
        self._bytes += size
        self.peak = max(self.peak, self._bytes)

    def _release(self, key: int, size: int) -> None:
        del self._alive[key]
        self._bytes -= size


def peak_memory(network: nn.Module, signature: Signature) -> int:
    """Return the peak memory, in bytes, of one sample's forward in eval mode without gradients.

    The input and the result of every operation count while they are referenced; tensors that share
    memory (views, in-place results) count once.  Weights, buffers, the workspace of kernels and the
    rounding of allocators do not count.  Operations run one by one, as in PyTorch without a
    compiler; attention (`nn.MultiheadAttention`) is not fused.

    Args:
        network: on the CPU; its weights and training modes do not change.
        signature: inputs of the network.
    """
    inputs = blank_inputs(signature, 1, torch.device("cpu"))
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    tracker = MemoryTracker([*network.parameters(), *network.buffers()], tensors)
    with evaluating(network), torch.no_grad(), without_fused_attention(), tracker:
        network(inputs)
    return tracker.peak


def _storage_key(storage: UntypedStorage) -> int:
    """Return a key that all Python objects of one storage share."""
    return storage._cdata  # private in torch 2.15; `torch.multiprocessing` uses it too


def _storage_of(tensor: Tensor) -> UntypedStorage | None:
    """Return the storage of a tensor; None if torch does not manage its memory."""
    try:
        return tensor.untyped_storage()
    except NotImplementedError:  # weights packed by a kernel library
        return None
