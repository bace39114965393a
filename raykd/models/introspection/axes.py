"""Track the axes of tensors in a forward: samples, channels, rows, columns or tokens.

A shape does not distinguish a map (C, H, W) from one with channels last, (H, W, C), or tokens from
their transpose.  The operations do: a convolution or a linear layer outputs channels; `permute` and
`view` move axes.  `AxisTracker` follows each operation of the forward that finds the layers, so it
needs neither a second image size nor a list of module types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten

BATCH, CHANNEL, ROW, COLUMN, TOKEN, UNKNOWN = "B", "C", "H", "W", "T", "X"
PLACES = frozenset({ROW, COLUMN, TOKEN})
"""Roles of positions in an image or a sequence."""


class Atom(NamedTuple):
    """An axis, or a part of one.

    Attributes:
        role: what it indexes.
        size: number of entries.
        stride: distance of neighbors in units of the role: of 14 rows split into 2 windows of 7
            rows, the windows have stride 7 and the rows inside one have stride 1.
        grid: for tokens with additional ones (a class token), the atoms without them.
    """

    role: str
    size: int
    stride: int = 1
    grid: tuple[Any, ...] = ()


Axis = tuple[Atom, ...]
"""Atoms from the slowest to the fastest; () if an axis of size 1 has no role."""

Axes = tuple[Axis, ...]


class AxisTracker:
    """Axes of every tensor that an operation has returned.

    A tensor is identified by its view of a storage: views of one tensor differ, and a tensor that
    reuses memory replaces the previous entry.
    """

    def __init__(self) -> None:
        self._axes: dict[tuple[Any, ...], Axes] = {}

    def begin(self, inputs: Tensor | Mapping[str, Tensor]) -> None:
        """Set the axes of the inputs: (B, C, H, W), (B, C), tokens (B, T)."""
        if isinstance(inputs, Tensor):
            roles = {2: "BC", 4: "BCHW"}.get(inputs.dim(), "B" + "X" * (inputs.dim() - 1))
            self._set(inputs, _whole(roles, inputs.shape))
            return
        for tensor in inputs.values():
            self._set(tensor, _whole("BT" + "X" * (tensor.dim() - 2), tensor.shape))

    def of(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; unknown roles if no operation returned it."""
        axes = self._axes.get(_key(tensor))
        return axes if axes is not None else _whole(UNKNOWN * tensor.dim(), tensor.shape)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Describe an operation before it runs, since it may change the shape of its argument."""
        tensors = _tensors(args, kwargs)
        shapes = [tensor.shape for tensor in tensors]
        return Call(func, args, kwargs, [*map(self.of, tensors)], shapes)

    def follow(self, call: Call, output: Any) -> None:
        """Set the axes of the tensors that an operation returned."""
        results = output if isinstance(output, tuple | list) else (output,)
        # `_overloadpacket` is private in torch 2.15; `torch.utils.flop_counter` uses it too.
        rule = _RULES.get(call.func._overloadpacket, _general)
        for tensor in results:
            if not isinstance(tensor, Tensor):
                continue
            axes = rule(call, tensor.shape)
            if not axes or len(axes) != tensor.dim():
                axes = _whole(UNKNOWN * tensor.dim(), tensor.shape)
            self._set(tensor, axes)

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        self._axes[_key(tensor)] = axes


class Call(NamedTuple):
    """An operation: its arguments, and the axes and sizes of the tensors among them."""

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    axes: list[Axes]
    sizes: list[torch.Size]

    def option(self, name: str) -> Any:
        """Return the argument of this name, or its default, or None."""
        position, default = _parameters(self.func).get(name, (None, None))
        if position is not None and position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def dims(self) -> list[int]:
        """Axes of the first tensor that the argument `dim` names, counted from 0."""
        dim = self.option("dim")
        values = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
        count = len(self.axes[0]) if self.axes else 0
        return [value % max(1, count) for value in values if isinstance(value, int)]


@cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """Return the position and the default of each parameter."""
    arguments = enumerate(func._schema.arguments)  # private in torch 2.15, without a replacement
    return {argument.name: (i, argument.default_value) for i, argument in arguments}


def _tensors(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        values = value if isinstance(value, list | tuple) else (value,)
        tensors += [item for item in values if isinstance(item, Tensor)]
    return tensors


def _key(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    storage = tensor.untyped_storage()._cdata  # private in torch 2.15
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _whole(roles: str, shape: Sequence[int]) -> Axes:
    return tuple((Atom(role, size),) for role, size in zip(roles, shape, strict=True))


# Axes


def simplified(atoms: Iterable[Atom]) -> Axis:
    """Join adjacent parts of one axis, and drop parts of size 1."""
    joined: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = joined[-1] if joined else None
        if last and last.role == atom.role and last.stride == atom.size * atom.stride:
            joined[-1] = Atom(atom.role, last.size * atom.size, atom.stride)
        else:
            joined.append(atom)
    return tuple(joined)


def roles(axis: Axis) -> frozenset[str]:
    """Return the roles of an axis's atoms."""
    return frozenset(atom.role for atom in axis)


def _has_known_roles(axis: Axis) -> bool:
    return bool(axis) and UNKNOWN not in roles(axis)


def resized(axis: Axis, size: int) -> Axis:
    """Return an axis after an operation that changed its size but not its role."""
    kinds = roles(axis)
    if not axis or BATCH in kinds:
        return (Atom(UNKNOWN, size),)
    for atom in axis:
        if len(axis) == 1 and atom.grid and size == prod(part.size for part in atom.grid):
            return atom.grid
    if UNKNOWN in kinds or CHANNEL in kinds:
        return (Atom(UNKNOWN if UNKNOWN in kinds else CHANNEL, size),)
    if len(kinds) == 1 and TOKEN not in kinds:
        return (Atom(next(iter(kinds)), size),)
    previous_size = prod(atom.size for atom in axis)
    return (Atom(TOKEN, size, 1, simplified(axis) if size > previous_size else ()),)


def _mixed(axis: Axis, size: int, other_axes: Iterable[Axis]) -> Axis:
    """Return the axis that replaces the one that a matrix product sums over.

    Channels become channels.  Positions remain positions, unless they are the inside of patches,
    whose positions are in `other_axes`.
    """
    kinds = roles(axis)
    if not kinds or not kinds <= PLACES or kinds <= frozenset().union(*map(roles, other_axes)):
        return (Atom(CHANNEL, size),)
    return axis if prod(atom.size for atom in axis) == size else resized(axis, size)


def _reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return the axes of the same values, in the same order, in another shape."""
    remaining = [atom for axis in axes for atom in axis]
    remaining.reverse()
    result: list[Axis] = []
    for whole in shape:
        axis: list[Atom] = []
        size = whole
        while size > 1 or (remaining and remaining[-1].size == 1 and not axis):
            if not remaining:
                return None
            atom = remaining.pop()
            if size % atom.size == 0:
                axis.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                rest = atom.size // size
                axis.append(Atom(atom.role, size, atom.stride * rest))
                remaining.append(Atom(atom.role, rest, atom.stride))
                size = 1
            else:
                return _equal_ends(axes, shape)
            if size == 1:
                break
        result.append(simplified(axis) or tuple(axis))
    return tuple(result)


def _equal_ends(axes: Axes, shape: Sequence[int]) -> Axes:
    """Keep leading and trailing axes of unchanged size, where other sizes do not divide."""
    sizes = [prod(atom.size for atom in axis) for axis in axes]
    result = list(_whole(UNKNOWN * len(shape), shape))
    count = min(len(axes), len(shape))
    for indices in (range(count), range(-1, -count - 1, -1)):
        for i in indices:
            if sizes[i] != shape[i]:
                break
            result[i] = axes[i]
    return tuple(result)


def _joined(candidates: Sequence[Axis]) -> Axis:
    """Return the axis of an elementwise result; its role is unknown if the inputs disagree."""
    clear = [axis for axis in candidates if _has_known_roles(axis)]
    if not clear:
        return candidates[0] if candidates else ()
    channels = [axis for axis in clear if CHANNEL in roles(axis)]
    if channels and len(channels) < len(clear):
        return tuple(Atom(UNKNOWN, atom.size) for atom in clear[0])
    grids = [axis for axis in clear if TOKEN not in roles(axis)]
    return (grids or clear)[0]


# Rules: (call, shape of the result) -> axes of the result, or None if unknown


def _general(call: Call, shape: torch.Size) -> Axes | None:
    """Operations on elements, on positions or over the axes of `dim`."""
    if not call.axes:
        return None
    first, dims = call.axes[0], call.dims
    if dims and len(shape) == len(first) - len(dims):
        return tuple(axis for i, axis in enumerate(first) if i not in dims)
    return _broadcast(call, shape) or _axis_by_axis(call, shape)


def _broadcast(call: Call, shape: torch.Size) -> Axes | None:
    rank = len(shape)
    columns: list[list[Axis]] = [[] for _ in shape]
    for axes, size in zip(call.axes, call.sizes, strict=True):
        if len(size) > rank:
            return None
        for i, axis in enumerate(axes, start=rank - len(size)):
            length = size[i - rank + len(size)]
            if length == shape[i]:
                columns[i].append(axis)
            elif length != 1:
                return None
    return tuple(map(_joined, columns))


def _axis_by_axis(call: Call, shape: torch.Size) -> Axes | None:
    """Operations that only change sizes: pooling, padding, slices, sums with `keepdim`."""
    for axes, sizes in zip(call.axes, call.sizes, strict=True):
        if len(axes) == len(shape):
            return _with_sizes(axes, sizes, shape)
    return None


def _with_sizes(axes: Sequence[Axis], sizes: Sequence[int], shape: Sequence[int]) -> Axes:
    """Return the axes after a change of sizes; axes of unchanged size stay the same."""
    columns = zip(axes, sizes, shape, strict=True)
    return tuple(axis if old == new else _with_size(axis, new) for axis, old, new in columns)


def _with_size(axis: Axis, size: int) -> Axis:
    if size == 1 and BATCH not in roles(axis):
        kinds = roles(axis)
        role = CHANNEL if CHANNEL in kinds else next(iter(kinds)) if len(kinds) == 1 else TOKEN
        return (Atom(role, 1),) if axis else ()
    return resized(axis, size)


def _reshape(call: Call, shape: torch.Size) -> Axes | None:
    return _reshaped(call.axes[0], shape)


def _permute(call: Call, shape: torch.Size) -> Axes | None:
    axes = call.axes[0]
    order = call.option("dims")
    return tuple(axes[i] for i in order) if order else axes


def _transpose(call: Call, shape: torch.Size) -> Axes | None:
    axes = list(call.axes[0])
    first, second = call.option("dim0"), call.option("dim1")
    first, second = (0, len(axes) - 1) if first is None or second is None else (first, second)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _expand(call: Call, shape: torch.Size) -> Axes | None:
    """Repetition of axes of size 1 (`expand`) and of whole axes (`repeat`)."""
    axes, sizes = call.axes[0], call.sizes[0]
    new = len(shape) - len(axes)
    result: list[Axis] = [(Atom(UNKNOWN, size),) for size in shape[:new]]
    for axis, old, size in zip(axes, sizes, shape[new:], strict=True):
        result.append(axis if old == size else resized(axis, size))
    return tuple(result)


def _squeeze(call: Call, shape: torch.Size) -> Axes | None:
    axes, sizes = call.axes[0], call.sizes[0]
    dims = call.dims if call.option("dim") is not None else range(len(axes))
    return tuple(a for i, a in enumerate(axes) if not (i in dims and sizes[i] == 1))


def _unsqueeze(call: Call, shape: torch.Size) -> Axes | None:
    axes = list(call.axes[0])
    axes.insert(call.option("dim") % (len(axes) + 1), ())
    return tuple(axes)


def _concatenate(call: Call, shape: torch.Size) -> Axes | None:
    """Join tensors along an axis (`cat`), or along a new one (`stack`)."""
    rank = len(shape)
    dim = (call.option("dim") or 0) % rank
    parts = [axes for axes in call.axes if len(axes) >= rank - 1 and axes]
    if len(parts[0]) == rank - 1:
        parts = [(*axes[:dim], (), *axes[dim:]) for axes in parts]
    result = [_joined([axes[i] for axes in parts]) for i in range(rank)]
    along = [axes[dim] for axes in parts]
    if len(along) == 1:
        result[dim] = along[0]
    elif dim == 0 and not any(along) and not any(BATCH in roles(a) for axes in parts for a in axes):
        is_tracked = any(_has_known_roles(axis) for axes in parts for axis in axes)
        result[dim] = (Atom(BATCH if is_tracked else UNKNOWN, shape[0]),)  # samples one by one
    else:
        result[dim] = _appended(along, shape[dim])
    return tuple(result)


def _appended(along: Sequence[Axis], size: int) -> Axis:
    kinds = frozenset().union(*map(roles, along)) - {UNKNOWN}
    if BATCH in kinds:
        return (Atom(UNKNOWN, size),)
    if CHANNEL in kinds or not kinds:
        is_stacked = not any(along)
        return (Atom(CHANNEL if CHANNEL in kinds or is_stacked else UNKNOWN, size),)
    grids = [axis for axis in map(simplified, along) if roles(axis) == {ROW, COLUMN}]
    if len(grids) == 1:
        return (Atom(TOKEN, size, 1, grids[0]),)
    return (Atom(next(iter(kinds)) if len(kinds) == 1 else TOKEN, size),)


def _convolve(call: Call, shape: torch.Size) -> Axes | None:
    batch, channels, *places = call.axes[0]
    resized_places = _with_sizes(places, call.sizes[0][2:], shape[2:])
    spatial = [
        axis if _has_known_roles(axis) else (Atom(TOKEN, size),)
        for axis, size in zip(resized_places, shape[2:], strict=True)
    ]
    return (batch, _mixed(channels, shape[1], (batch, *places)), *spatial)


def _product(call: Call, shape: torch.Size) -> Axes | None:
    """Matrix products, also batched, with or without an added tensor (which comes first)."""
    left, right = call.axes[-2:]
    if len(left) < 2 or not right:
        return None
    batch = [_joined([left[0], right[0]])] if len(left) == 3 else []
    is_data = [any(map(_has_known_roles, side)) for side in (left, right)]
    *_, row, inner = left
    if len(right) == 1:
        return (row if is_data[0] else _mixed(right[0], shape[-1], ()),)
    outer, column = right[-2:]
    if not roles(row) - {UNKNOWN}:
        row = _free(is_data, 0, outer, [*right[:-2], column], shape[-2])
    if not roles(column) - {UNKNOWN}:
        column = _free(is_data[::-1], 1, inner, left[:-1], shape[-1])
    return (*batch, row, column)


def _free(
    is_data: list[bool], side: int, inner: Axis, other_axes: Sequence[Axis], size: int
) -> Axis:
    """Return an axis of unknown role that a product does not sum over.

    It holds learned tokens if its tensor has other known axes, and weights otherwise.

    Args:
        is_data: whether its tensor, and the other one, have known axes.
        side: 0 for a row, 1 for a column.
    """
    if is_data[0]:
        return (Atom(TOKEN, size),)
    if not is_data[1] and side == 0:
        return (Atom(UNKNOWN, size),)
    return _mixed(inner, size, other_axes)


def _embedding(call: Call, shape: torch.Size) -> Axes | None:
    return (*call.axes[1], (Atom(CHANNEL, shape[-1]),))


def _patches(call: Call, shape: torch.Size) -> Axes | None:
    """`F.unfold`: (B, C, H, W) -> (B, C x patch, patches)."""
    if len(shape) != 3:
        return None
    return (call.axes[0][0], (Atom(CHANNEL, shape[1]),), (Atom(TOKEN, shape[2]),))


def _folded(call: Call, shape: torch.Size) -> Axes | None:
    """`F.fold`: (B, C x patch, patches) -> (B, C, H, W)."""
    if len(shape) != 4:
        return None
    return (call.axes[0][0], *_whole("CHW", shape[1:]))


def _windows(call: Call, shape: torch.Size) -> Axes | None:
    """`Tensor.unfold`: windows along an axis, their inside as the last axis."""
    axes, sizes = call.axes[0], call.sizes[0]
    dim = call.option("dimension") % len(axes)
    inside = Atom(UNKNOWN if CHANNEL not in roles(axes[dim]) else CHANNEL, shape[-1])
    return (*_with_sizes(axes, sizes, shape[:-1]), (inside,))


def _index(call: Call, shape: torch.Size) -> Axes | None:
    """Elements selected along one axis; other indexing is not tracked."""
    indices = call.option("indices") or call.option("index")
    axes, sizes = call.axes[0], call.sizes[0]
    if isinstance(indices, list | tuple):
        picked = [i for i, index in enumerate(indices) if index is not None]
        is_flat = len(picked) == 1 and indices[picked[0]].dim() == 1
        if not is_flat or len(shape) != len(axes):
            return _equal_ends(axes, shape)
    return _with_sizes(axes, sizes, shape)


_Rule = Callable[[Call, torch.Size], Axes | None]

_RULES: dict[Any, _Rule] = {
    **dict.fromkeys(
        (_aten.view, _aten._unsafe_view, _aten.reshape, _aten._reshape_alias), _reshape
    ),
    **dict.fromkeys((_aten.transpose, _aten.t, _aten.transpose_), _transpose),
    **dict.fromkeys((_aten.expand, _aten.repeat), _expand),
    **dict.fromkeys((_aten.squeeze, _aten.squeeze_), _squeeze),
    **dict.fromkeys((_aten.unsqueeze, _aten.unsqueeze_), _unsqueeze),
    **dict.fromkeys((_aten.cat, _aten.stack), _concatenate),
    **dict.fromkeys((_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv), _product),
    **dict.fromkeys((_aten.index, _aten.index_select), _index),
    _aten.permute: _permute,
    _aten.convolution: _convolve,
    _aten.embedding: _embedding,
    _aten.im2col: _patches,
    _aten.col2im: _folded,
    _aten.unfold: _windows,
}
