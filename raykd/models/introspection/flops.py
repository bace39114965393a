"""Count multiply-accumulates in a forward that skips most arithmetic.

PyTorch's meta device and FlopCounterMode give the same numbers, but their first use imports the
compiler and a computer algebra system, which adds several seconds to every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raykd.models.introspection.axes import AxisTracker

_aten = torch.ops.aten


class SkipInit(TorchFunctionMode):
    """Skip the initialization of weights, for networks that are only measured.

    Allocated memory that is neither written nor read costs nothing.  Values drawn outside the
    dispatch of `torch.nn.init` are set to 0: `trunc_normal_` repeats until all values are within
    its bounds, which may never happen with unwritten memory.
    """

    _DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "bernoulli_", "erfinv_"})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if not isinstance(tensor, Tensor):
            return func(*args, **kwargs)
        if getattr(func, "__module__", "") == "torch.nn.init":
            return tensor
        if func.__name__ in self._DRAWS:
            with torch.no_grad():
                return tensor.zero_()
        return func(*args, **kwargs)


class FlopCounter(TorchDispatchMode):
    """Count the multiply-accumulates of products inside the context, without computing them.

    Uses the formulas of `torch.utils.flop_counter` (one multiply-accumulate is two of its
    operations).  Convolutions and dense matrix products return zeros of the right shape; all else
    is computed.

    Args:
        axes: tracker that records what each operation does to the axes of its tensors.
    """

    def __init__(self, axes: AxisTracker | None = None) -> None:
        super().__init__()
        self._operations = 0
        self._axes = axes

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far, of the whole batch."""
        return self._operations // 2

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler for this mode (private hook; torch 2.15)."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # `_overloadpacket` is private in torch 2.15; `torch.utils.flop_counter` uses it too.
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        call = None if self._axes is None else self._axes.call(func, args, kwargs)
        output = _blank_product(func, args)
        output = func(*args, **kwargs) if output is None else output
        if formula is not None:
            self._operations += formula(*args, **kwargs, out_val=output)
        if self._axes is not None and call is not None:
            self._axes.follow(call, output)
        return output


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Disable fused attention, whose kernel has no formula and skips modules."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _blank_product(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Return zeros of the shape of a product; None for operations to compute."""
    if func is _aten.convolution.default and not args[6]:
        return args[0].new_zeros(_conv_shape(*args[:6]))
    if func is _aten.mm.default or func is _aten.addmm.default:
        left, right = args[-2:]
        return left.new_zeros(left.shape[0], right.shape[1])
    if func is _aten.bmm.default:
        return args[0].new_zeros(*args[0].shape[:2], args[1].shape[2])
    return None


def _conv_shape(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[int, ...]:
    dims = len(weight.shape) - 2
    strides, paddings, dilations = (_expanded(v, dims) for v in (stride, padding, dilation))
    sizes = [
        (size + 2 * pad - spacing * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, spacing in zip(
            inputs.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True
        )
    ]
    return (inputs.shape[0], weight.shape[0], *sizes)


def _expanded(values: list[int], dims: int) -> list[int]:
    """Return one value per dimension; a single value stands for all."""
    return list(values) * dims if len(values) == 1 else list(values)
