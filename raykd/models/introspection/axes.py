"""Axes of the tensors of one forward: which hold samples, channels, rows, columns or tokens.

A shape does not tell a map (C, H, W) from one whose channels come last, (H, W, C), nor tokens from
their transpose.  The operations do: a convolution or a linear layer makes channels, `permute` and
`view` move axes.  `AxisTracker` follows them operation by operation, during the dry run that finds
the layers anyway, so it needs neither a second size of picture nor a list of known modules.
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
"""Roles that say where a value belongs."""


class Atom(NamedTuple):
    """A part of an axis, or all of it.

    Attributes:
        role: what it counts.
        size: how many.
        stride: the distance of neighbors, counted in the role's own units: of 14 rows cut into 2
            windows of 7 rows, the windows have stride 7 and the rows within one stride 1.
        grid: of tokens with further ones (a class token), the atoms of the tokens alone.
    """

    role: str
    size: int
    stride: int = 1
    grid: tuple[Any, ...] = ()


Axis = tuple[Atom, ...]
"""Atoms from the slowest to the fastest; () where an axis of size 1 counts nothing."""

Axes = tuple[Axis, ...]


class AxisTracker:
    """The axes of every tensor that operations made since it began.

    A tensor is recognized by the memory it views, so views of one tensor are told apart, and a
    tensor that reuses memory replaces what was known of it.
    """

    def __init__(self) -> None:
        self._axes: dict[tuple[Any, ...], Axes] = {}

    def begin(self, inputs: Tensor | Mapping[str, Tensor]) -> None:
        """Name the axes of the network's inputs: (B, C, H, W), (B, C, T), (B, C), tokens (B, T)."""
        if isinstance(inputs, Tensor):
            roles = {2: "BC", 4: "BCHW"}.get(inputs.dim(), "B" + "X" * (inputs.dim() - 1))
            self._set(inputs, _whole(roles, inputs.shape))
            return
        for tensor in inputs.values():
            self._set(tensor, _whole("BT" + "X" * (tensor.dim() - 2), tensor.shape))

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; of unknown role where no operation made it."""
        known = self._axes.get(_key(tensor))
        return known if known is not None else _whole(UNKNOWN * tensor.dim(), tensor.shape)

    def call(self, func: Any, args: Sequence[Any], more: Mapping[str, Any]) -> Call:
        """An operation that is about to be done (it may change the shape of its argument)."""
        given = _tensors(args, more)
        return Call(func, args, more, [*map(self.of, given)], [one.shape for one in given])

    def follow(self, call: Call, output: Any) -> None:
        """Take note of an operation that was done."""
        results = output if isinstance(output, tuple | list) else (output,)
        made = [one for one in results if isinstance(one, Tensor)]
        rule = _RULES.get(call.func._overloadpacket, _general)
        for one in made:
            axes = rule(call, one.shape)
            fits = axes is not None and len(axes) == one.dim()
            self._set(one, axes if fits and axes else _whole(UNKNOWN * one.dim(), one.shape))

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        self._axes[_key(tensor)] = axes


class Call(NamedTuple):
    """An operation: its arguments, the axes and sizes of the tensors among them."""

    func: Any
    args: Sequence[Any]
    more: Mapping[str, Any]
    axes: list[Axes]
    sizes: list[torch.Size]

    def option(self, name: str) -> Any:
        """The argument of that name, or its default; None where there is none."""
        place, default = _places(self.func).get(name, (None, None))
        if place is not None and place < len(self.args):
            return self.args[place]
        return self.more.get(name, default)

    @property
    def dims(self) -> list[int]:
        """The axes of the first tensor that the argument `dim` names, counted from 0."""
        dim = self.option("dim")
        named = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
        count = len(self.axes[0]) if self.axes else 0
        return [one % max(1, count) for one in named if isinstance(one, int)]


@cache
def _places(func: Any) -> dict[str, tuple[int, Any]]:
    """The place and the default of each argument."""
    arguments = enumerate(func._schema.arguments)
    return {argument.name: (i, argument.default_value) for i, argument in arguments}


def _tensors(args: Iterable[Any], more: Mapping[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *more.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def _key(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _whole(roles: str, shape: Sequence[int]) -> Axes:
    return tuple((Atom(role, size),) for role, size in zip(roles, shape, strict=True))


# Axes


def simplified(atoms: Iterable[Atom]) -> Axis:
    """The same with neighbors joined that are parts of one whole, without those of size 1."""
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
    """The roles of its atoms."""
    return frozenset(atom.role for atom in axis)


def _known(axis: Axis) -> bool:
    return bool(axis) and UNKNOWN not in roles(axis)


def resized(axis: Axis, size: int) -> Axis:
    """The axis after an operation that changed how much it holds, not what."""
    held = roles(axis)
    if not axis or BATCH in held:
        return (Atom(UNKNOWN, size),)
    for atom in axis:
        if len(axis) == 1 and atom.grid and size == prod(one.size for one in atom.grid):
            return atom.grid
    if UNKNOWN in held or CHANNEL in held:
        return (Atom(UNKNOWN if UNKNOWN in held else CHANNEL, size),)
    if len(held) == 1 and TOKEN not in held:
        return (Atom(next(iter(held)), size),)
    inside = prod(atom.size for atom in axis)
    return (Atom(TOKEN, size, 1, simplified(axis) if size > inside else ()),)


def _mixed(axis: Axis, size: int, beside: Iterable[Axis]) -> Axis:
    """The axis that a matrix product makes of the one it sums over.

    Channels become channels, and places that are mixed stay places, unless they are only the inside
    of patches whose places are in the axes `beside`.
    """
    held = roles(axis)
    if not held or not held <= PLACES or held <= frozenset().union(*map(roles, beside)):
        return (Atom(CHANNEL, size),)
    return axis if prod(atom.size for atom in axis) == size else resized(axis, size)


def _reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes of the same values, in the same order, in another shape."""
    left = [atom for axis in axes for atom in axis]
    left.reverse()
    made: list[Axis] = []
    for whole in shape:
        axis: list[Atom] = []
        size = whole
        while size > 1 or (left and left[-1].size == 1 and not axis):
            if not left:
                return None
            atom = left.pop()
            if size % atom.size == 0:
                axis.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                rest = atom.size // size
                axis.append(Atom(atom.role, size, atom.stride * rest))
                left.append(Atom(atom.role, rest, atom.stride))
                size = 1
            else:
                return _ends_alike(axes, shape)
            if size == 1:
                break
        made.append(simplified(axis) or tuple(axis))
    return tuple(made)


def _ends_alike(axes: Axes, shape: Sequence[int]) -> Axes:
    """Where sizes do not divide: what leading and trailing axes of one size hold is kept."""
    sizes = [prod(atom.size for atom in axis) for axis in axes]
    made = list(_whole(UNKNOWN * len(shape), shape))
    both = min(len(axes), len(shape))
    for ahead in (range(both), range(-1, -both - 1, -1)):
        for i in ahead:
            if sizes[i] != shape[i]:
                break
            made[i] = axes[i]
    return tuple(made)


def _joined(given: Sequence[Axis]) -> Axis:
    """The axis of an elementwise result: of several that disagree nothing is known."""
    known = [axis for axis in given if _known(axis)]
    if not known:
        return given[0] if given else ()
    channels = [axis for axis in known if CHANNEL in roles(axis)]
    if channels and len(channels) < len(known):
        return tuple(Atom(UNKNOWN, atom.size) for atom in known[0])
    grids = [axis for axis in known if TOKEN not in roles(axis)]
    return (grids or known)[0]


# Rules: (call, shape of the result) -> its axes, or None


def _general(call: Call, shape: torch.Size) -> Axes | None:
    """An operation on elements, on places or over axes that it names."""
    if not call.axes:
        return None
    first, dims = call.axes[0], call.dims
    if dims and len(shape) == len(first) - len(dims):
        return tuple(axis for i, axis in enumerate(first) if i not in dims)
    return _broadcast(call, shape) or _place_by_place(call, shape)


def _broadcast(call: Call, shape: torch.Size) -> Axes | None:
    rank = len(shape)
    columns: list[list[Axis]] = [[] for _ in shape]
    for axes, size in zip(call.axes, call.sizes, strict=True):
        if len(size) > rank:
            return None
        for i, axis in enumerate(axes, start=rank - len(size)):
            own = size[i - rank + len(size)]
            if own == shape[i]:
                columns[i].append(axis)
            elif own != 1:
                return None
    return tuple(map(_joined, columns))


def _place_by_place(call: Call, shape: torch.Size) -> Axes | None:
    """Axes that stay where they are, of other sizes: pooling, padding, slices, sums that keep."""
    for axes, sizes in zip(call.axes, call.sizes, strict=True):
        if len(axes) == len(shape):
            columns = zip(axes, sizes, shape, strict=True)
            return tuple(axis if old == new else _kept(axis, new) for axis, old, new in columns)
    return None


def _kept(axis: Axis, size: int) -> Axis:
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
    """Repeats what has size 1, and whole axes (`repeat`)."""
    axes, sizes = call.axes[0], call.sizes[0]
    new = len(shape) - len(axes)
    made: list[Axis] = [(Atom(UNKNOWN, size),) for size in shape[:new]]
    for axis, old, size in zip(axes, sizes, shape[new:], strict=True):
        made.append(axis if old == size else resized(axis, size))
    return tuple(made)


def _squeeze(call: Call, shape: torch.Size) -> Axes | None:
    axes, sizes = call.axes[0], call.sizes[0]
    dims = call.dims if call.option("dim") is not None else range(len(axes))
    return tuple(a for i, a in enumerate(axes) if not (i in dims and sizes[i] == 1))


def _unsqueeze(call: Call, shape: torch.Size) -> Axes | None:
    axes = list(call.axes[0])
    axes.insert(call.option("dim") % (len(axes) + 1), ())
    return tuple(axes)


def _concatenate(call: Call, shape: torch.Size) -> Axes | None:
    """Joins tensors along an axis; of another number of axes than theirs, along a new one."""
    rank = len(shape)
    dim = (call.option("dim") or 0) % rank
    parts = [axes for axes in call.axes if len(axes) >= rank - 1 and axes]
    if len(parts[0]) == rank - 1:
        parts = [(*axes[:dim], (), *axes[dim:]) for axes in parts]
    made = [_joined([axes[i] for axes in parts]) for i in range(rank)]
    along = [axes[dim] for axes in parts]
    if len(along) == 1:
        made[dim] = along[0]
    elif dim == 0 and not any(along) and not any(BATCH in roles(a) for axes in parts for a in axes):
        followed = any(_known(axis) for axes in parts for axis in axes)
        made[dim] = (Atom(BATCH if followed else UNKNOWN, shape[0]),)  # of samples done one by one
    else:
        made[dim] = _appended(along, shape[dim])
    return tuple(made)


def _appended(along: Sequence[Axis], size: int) -> Axis:
    held = frozenset().union(*map(roles, along)) - {UNKNOWN}
    if BATCH in held:
        return (Atom(UNKNOWN, size),)
    if CHANNEL in held or not held:
        stacked = not any(along)
        return (Atom(CHANNEL if CHANNEL in held or stacked else UNKNOWN, size),)
    grids = [axis for axis in map(simplified, along) if roles(axis) == {ROW, COLUMN}]
    if len(grids) == 1:
        return (Atom(TOKEN, size, 1, grids[0]),)
    return (Atom(next(iter(held)) if len(held) == 1 else TOKEN, size),)


def _convolve(call: Call, shape: torch.Size) -> Axes | None:
    batch, channels, *places = call.axes[0]
    columns = zip(places, call.sizes[0][2:], shape[2:], strict=True)
    made = [axis if old == new else _kept(axis, new) for axis, old, new in columns]
    made = [
        axis if _known(axis) else (Atom(TOKEN, n),) for axis, n in zip(made, shape[2:], strict=True)
    ]
    return (batch, _mixed(channels, shape[1], (batch, *places)), *made)


def _product(call: Call, shape: torch.Size) -> Axes | None:
    """Matrix products, of batches too, with what is added first or without."""
    left, right = call.axes[-2:]
    if len(left) < 2 or not right:
        return None
    batch = [_joined([left[0], right[0]])] if len(left) == 3 else []
    taught = [any(map(_known, side)) for side in (left, right)]
    *_, row, inner = left
    if len(right) == 1:
        return (row if taught[0] else _mixed(right[0], shape[-1], ()),)
    outer, column = right[-2:]
    if not roles(row) - {UNKNOWN}:
        row = _free(taught, 0, outer, [*right[:-2], column], shape[-2])
    if not roles(column) - {UNKNOWN}:
        column = _free(taught[::-1], 1, inner, left[:-1], shape[-1])
    return (*batch, row, column)


def _free(taught: list[bool], side: int, inner: Axis, beside: Sequence[Axis], size: int) -> Axis:
    """An axis of a product that is not summed over and counts nothing known.

    It is one of learned tokens where its tensor has other known axes, and else one of weights.
    """
    if taught[0]:
        return (Atom(TOKEN, size),)
    if not taught[1] and side == 0:
        return (Atom(UNKNOWN, size),)
    return _mixed(inner, size, beside)


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
    """`Tensor.unfold`: windows along an axis, their insides last."""
    axes, sizes = call.axes[0], call.sizes[0]
    dim = call.option("dimension") % len(axes)
    made = [axis if sizes[i] == shape[i] else _kept(axis, shape[i]) for i, axis in enumerate(axes)]
    inside = Atom(UNKNOWN if CHANNEL not in roles(axes[dim]) else CHANNEL, shape[-1])
    return (*made, (inside,))


def _index(call: Call, shape: torch.Size) -> Axes | None:
    """Elements picked along one axis; anything more involved is not followed."""
    indices = call.option("indices") or call.option("index")
    axes, sizes = call.axes[0], call.sizes[0]
    if isinstance(indices, list | tuple):
        picked = [i for i, one in enumerate(indices) if one is not None]
        flat = len(picked) == 1 and indices[picked[0]].dim() == 1
        if not flat or len(shape) != len(axes):
            return _ends_alike(axes, shape)
    return tuple(a if o == n else _kept(a, n) for a, o, n in zip(axes, sizes, shape, strict=True))


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
