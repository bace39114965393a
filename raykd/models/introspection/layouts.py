"""Layouts: conversion of a layer's tensor to (B, C, H, W), (B, N, D) or (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor

from raykd.models.introspection.axes import (
    BATCH,
    CHANNEL,
    COLUMN,
    PLACES,
    ROW,
    TOKEN,
    UNKNOWN,
    Atom,
    Axes,
    Axis,
    roles,
    simplified,
)

UNCLEAR = "unclear layout"
"""Name of the layout of a tensor with unknown axes."""

_UNCLEAR_AXES = 4
"""Minimum number of axes of an unclear layer, without the batch: more than a feature map has."""


@dataclass(frozen=True)
class Layout:
    """Conversion of a module's tensor to the tensor that losses read.

    Attributes:
        name: name for users, such as "channels last".
        raw: shape of the module's tensor, without the batch.
        shape: shape for losses, without the batch.
        batch: batch axis of the module's tensor.
        parts: sizes into which the axes are split first, -1 for the batch; () if none is split.
        order: permutation of the axes (or parts), with the batch first.
    """

    name: str
    raw: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int = 0
    parts: tuple[int, ...] = ()
    order: tuple[int, ...] = (0,)

    @property
    def is_clear(self) -> bool:
        """Return whether the channel axis is known."""
        return self.name != UNCLEAR

    def arrange(self, tensor: Tensor) -> Tensor:
        """Convert the module's tensor for losses; a view if possible."""
        if self.parts:
            tensor = tensor.reshape(self.parts)
        tensor = tensor.permute(self.order)
        return tensor if self._only_moves else tensor.reshape(len(tensor), *self.shape)

    def restore(self, tensor: Tensor) -> Tensor:
        """Undo `arrange`."""
        samples = len(tensor)
        raw = (*self.raw[: self.batch], samples, *self.raw[self.batch :])
        sizes = tuple(samples if size < 0 else size for size in self.parts) or raw
        if not self._only_moves:
            tensor = tensor.reshape([sizes[i] for i in self.order])
        tensor = tensor.permute([self.order.index(i) for i in range(len(self.order))])
        return tensor.reshape(raw) if self.parts else tensor

    @property
    def _only_moves(self) -> bool:
        return not self.parts and len(self.raw) == len(self.shape)


def layout_of(axes: Axes, raw: Sequence[int], samples: int) -> tuple[bool, Layout | None]:
    """Return whether a tensor has a batch axis, and its layout; None if losses can read it as is.

    Args:
        axes: axes of the tensor.
        raw: shape of the tensor, with the batch.
        samples: batch size.
    """
    batch = _batch_axis(axes, raw, samples)
    if batch is None or len(raw) < 2:
        return False, None
    rest = [(i, simplified(axis)) for i, axis in enumerate(axes) if i != batch]
    shape = tuple(size for i, size in enumerate(raw) if i != batch)
    if len(rest) == 1:
        layout = Layout("samples last", shape, shape, batch, (), (1, 0)) if batch else None
        return True, layout
    sides = _sides(axes, [i for i, _ in rest], shape)
    if sides is None:
        return True, _unclear(shape, batch)
    return True, _arrangement(axes, *sides, shape, batch)


def _batch_axis(axes: Axes, raw: Sequence[int], samples: int) -> int | None:
    batches = [i for i, axis in enumerate(axes) if simplified(axis) == (Atom(BATCH, samples),)]
    if batches:
        return batches[0]
    may_be_first = bool(raw) and raw[0] == samples and not roles(axes[0]) - {UNKNOWN, BATCH}
    return 0 if may_be_first else None


def _sides(
    axes: Axes, rest: Sequence[int], shape: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Return the channel axes and the position axes; None if they are unknown.

    An axis of size 1 may be either.
    """
    channels, places, either = [], [], []
    for i, size in zip(rest, shape, strict=True):
        kinds = roles(axes[i])
        is_only_other = i == rest[0] and len(rest) == 2
        if size == 1:
            either.append(i)
        elif CHANNEL in kinds:
            channels.append(i)
        elif kinds and (kinds <= PLACES or (kinds == {UNKNOWN} and is_only_other)):
            places.append(i)  # the only other axis, before the channels, holds positions
        else:
            return None
    if not channels and either:
        tracked = [i for i in either if CHANNEL in roles(axes[i])]
        default = either[0] if len(rest) >= 3 else either[-1]
        channels.append(tracked[0] if tracked else default)
        either.remove(channels[0])
    if not channels or (len(channels) > 1 and not places):  # a matrix of channels by channels
        return None
    return channels, sorted([*places, *either])


def _arrangement(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    sizes = {i: prod(atom.size for atom in axes[i]) for i in places}
    filled = [i for i in places if sizes[i] > 1]
    if len(places) > 2:  # axes of size 1 are not those of a map
        places = filled
    pair = [simplified(axes[i]) for i in places]
    if len(places) <= 2 and all(map(_is_whole, pair)) and _is_grid(pair):
        if len(places) == 2 and (_of(pair[0]), _of(pair[1])) == (COLUMN, ROW):
            places = places[::-1]
        return _by_axes(axes, channels, places, shape, batch)
    return _by_parts(axes, channels, places, shape, batch)


def _of(axis: Axis) -> str:
    kinds = roles(axis)
    return next(iter(kinds)) if len(kinds) == 1 else ""


def _is_whole(axis: Axis) -> bool:
    """Return whether positions are in order: rows, columns, rows of columns, or tokens."""
    kinds = tuple(atom.role for atom in axis)
    return {*kinds} == {UNKNOWN} or kinds in ((), (ROW,), (COLUMN,), (TOKEN,), (ROW, COLUMN))


def _is_grid(pair: Sequence[Axis]) -> bool:
    """Return whether two axes are rows and columns, or twice the same positions (attention)."""
    if len(pair) < 2 or not all(pair):
        return True
    (first, second) = pair
    if {_of(first), _of(second)} == {ROW, COLUMN}:
        return True
    if len(first) == len(second) == 1 and _of(first) == _of(second) == TOKEN:
        return True
    are_whole = _is_contiguous(first) and _is_contiguous(second)
    return first == second or (are_whole and len(first) == len(second) == 2)


def _is_contiguous(axis: Axis) -> bool:
    return all(atom.stride == 1 for atom in axis)


def _by_axes(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    """Build a layout that only moves and joins whole axes."""
    raw = dict(zip(_without(axes, batch), shape, strict=True))
    ones = [i for i in raw if i not in (*channels, *places)]
    width = prod(raw[i] for i in channels)
    order = (*channels, *places) if len(places) == 2 else (*places, *channels)
    sizes = tuple(raw[i] for i in places)
    target = (width, *sizes) if len(places) == 2 else (*sizes, width)
    full = (batch, *ones, *order)
    if full == tuple(range(len(axes))) and target == shape:
        return None
    name = "channels last" if channels[-1] == len(axes) - 1 else "channels first"
    if len(channels) > 1:
        name = "separate heads"
    elif full == tuple(range(len(axes))):
        name = "without size-1 axes"
    elif batch:
        name = "samples not first"
    return Layout(name, shape, target, batch, (), full)


def _by_parts(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    """Build a layout that merges windows; an unclear one if parts are missing."""
    parts: list[tuple[int, Atom]] = []
    for i, axis in enumerate(axes):
        whole = (Atom(UNKNOWN, prod(atom.size for atom in axis)),)
        parts += [(i, atom) for atom in (axis if i in places and axis else whole)]
    order, sides = [], []
    for role in (ROW, COLUMN, TOKEN):
        atoms = [
            (n, atom) for n, (i, atom) in enumerate(parts) if i in places and atom.role == role
        ]
        atoms.sort(key=lambda item: -item[1].stride)
        if not atoms:
            continue
        if any(a.stride < b.size * b.stride for (_, a), (_, b) in pairwise(atoms)):
            return _unclear(shape, batch)
        order += [n for n, _ in atoms]
        sides.append(prod(atom.size for _, atom in atoms))
    batch_parts = [n for n, (i, _) in enumerate(parts) if i == batch]
    rest = [n for n, (i, _) in enumerate(parts) if i in channels]
    ones = [n for n in range(len(parts)) if n not in (*order, *batch_parts, *rest)]
    width = prod(parts[n][1].size for n in rest)
    if len(sides) == 2 and len(places) > 1:
        target, full = (width, *sides), (*batch_parts, *ones, *rest, *order)
    elif len(sides) in (1, 2):
        target, full = (prod(sides), width), (*batch_parts, *ones, *order, *rest)
    else:
        return _unclear(shape, batch)
    if full == tuple(range(len(parts))) and target == shape:
        return None
    sizes = tuple(-1 if i == batch else atom.size for i, atom in parts)
    return Layout("windows", shape, target, batch, sizes, full)


def _without(axes: Axes, batch: int) -> list[int]:
    return [i for i in range(len(axes)) if i != batch]


def _unclear(shape: tuple[int, ...], batch: int) -> Layout:
    padded = (1,) * (_UNCLEAR_AXES - len(shape)) + shape
    order = (batch, *(i for i in range(len(shape) + 1) if i != batch))
    return Layout(UNCLEAR, shape, padded, batch, (), order)
