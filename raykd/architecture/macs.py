"""A forward rehearsed: its shapes and multiply-accumulates without most of its arithmetic.

PyTorch's meta device and its FlopCounterMode would tell the same, but import the compiler and a
computer algebra system at their first use, which takes several seconds of every start.
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

from raykd.architecture.axes import AxisTracker

_aten = torch.ops.aten


class Unfilled(TorchFunctionMode):
    """Skips the drawing of initial weights, for networks that are built to be measured.

    Memory that is allocated and neither written nor read costs nothing.  What is drawn outside
    `torch.nn.init`'s own dispatch is set to 0: `trunc_normal_` draws until all values lie within
    its bounds, which those of unwritten memory may never do.
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


class Rehearsal(TorchDispatchMode):
    """Counts the multiply-accumulates of the products made inside, and does not compute them.

    The formulas are those of `torch.utils.flop_counter` (a multiply-accumulate is two of its
    operations).  Convolutions and dense matrix products give zeros of the right shape; all else
    is computed.

    Args:
        axes: takes note of what every operation does to the axes of its tensors.
    """

    def __init__(self, axes: AxisTracker | None = None) -> None:
        super().__init__()
        self._operations = 0
        self._axes = axes

    @property
    def macs(self) -> int:
        """Counted so far, over the whole batch."""
        return self._operations // 2

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would otherwise import the compiler, to keep it away from this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
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
    """Attention goes through its parts: the fused kernel has no formula and skips modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _blank_product(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Zeros of the shape of the product's result; None for what is to be computed."""
    if func is _aten.convolution.default and not args[6]:
        return args[0].new_zeros(_convolved(*args[:6]))
    if func is _aten.mm.default or func is _aten.addmm.default:
        left, right = args[-2:]
        return left.new_zeros(left.shape[0], right.shape[1])
    if func is _aten.bmm.default:
        return args[0].new_zeros(*args[0].shape[:2], args[1].shape[2])
    return None


def _convolved(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[int, ...]:
    axes = len(weight.shape) - 2
    strides, paddings, dilations = (_each(v, axes) for v in (stride, padding, dilation))
    sizes = [
        (size + 2 * pad - apart * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, apart in zip(
            inputs.shape[2:], weight.shape[2:], strides, paddings, dilations, strict=True
        )
    ]
    return (inputs.shape[0], weight.shape[0], *sizes)


def _each(values: list[int], axes: int) -> list[int]:
    """One value an axis, where one may stand for all."""
    return list(values) * axes if len(values) == 1 else list(values)
