"""Peak activation memory of a forward, without most of its arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._pytree import tree_leaves

from raykd.architecture.layers import blank_inputs, evaluating
from raykd.architecture.macs import Rehearsal, without_fused_attention
from raykd.architecture.model import Task


class Footprint(Rehearsal):
    """Follows the memory that the tensors made inside hold; products are not computed.

    A block of memory counts once, whatever views look at it, from the operation that makes it
    until nothing holds it any more.

    Args:
        known: tensors that do not count (the weights).
        held: tensors that are there already and count (the inputs).
    """

    def __init__(self, known: Iterable[Tensor], held: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {
            storage._cdata for tensor in known if (storage := _memory_of(tensor)) is not None
        }
        self._held: dict[int, weakref.ref[UntypedStorage]] = {}
        self._live = 0
        self.peak = 0
        for tensor in held:
            self._meet(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._meet(leaf)
        return output

    def _meet(self, tensor: Tensor) -> None:
        storage = _memory_of(tensor)
        if storage is None or storage._cdata in self._known or storage._cdata in self._held:
            return
        key, size = storage._cdata, storage.nbytes()
        self._held[key] = weakref.ref(storage, lambda _: self._part(key, size))
        self._live += size
        self.peak = max(self.peak, self._live)

    def _part(self, key: int, size: int) -> None:
        del self._held[key]
        self._live -= size


def peak_memory(network: nn.Module, task: Task) -> int:
    """Bytes that one sample's forward holds at its fullest moment, in eval mode, without gradients.

    Counted are the input and every tensor that an operation gives, as long as something holds it,
    at the size and type it has; tensors that share memory (views, what is changed in place) count
    once.  Not counted are weights and buffers, what a kernel needs for itself while it runs, and
    what an allocator rounds up.  Operations run one by one, as PyTorch runs them without a
    compiler, attention (`nn.MultiheadAttention`) in its parts.

    Args:
        network: on the CPU; neither its weights nor its training modes are changed.
        task: what it takes.
    """
    inputs = blank_inputs(task, 1, torch.device("cpu"))
    held = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    footprint = Footprint([*network.parameters(), *network.buffers()], held)
    with evaluating(network), torch.no_grad(), without_fused_attention(), footprint:
        network(inputs)
    return footprint.peak


def _memory_of(tensor: Tensor) -> UntypedStorage | None:
    """The block of memory behind a tensor; None for those that have none of PyTorch's."""
    try:
        return tensor.untyped_storage()
    except NotImplementedError:  # weights packed by a kernel's library
        return None
