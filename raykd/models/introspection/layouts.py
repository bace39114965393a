"""Layouts: how a layer's tensor is brought to (B, C, H, W), (B, N, D) or (B, D)."""

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
"""The name of the layout of a tensor whose axes are not known."""

_LEAST_UNCLEAR = 4
"""Axes of an unclear layer, without the batch: more than a map has, so none takes it for one."""


@dataclass(frozen=True)
class Layout:
    """The way from the tensor that a module returns to the one that losses read.

    Attributes:
        name: for users, such as "channels last".
        raw: the shape as the module returns it, without the batch.
        shape: the shape that losses read, without the batch.
        batch: which axis of the module's tensor holds the samples.
        parts: the sizes into which the axes are cut first, -1 for the batch; () where none is cut.
        order: the order of the axes (or of the parts) with the batch, which becomes the first.
    """

    name: str
    raw: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int = 0
    parts: tuple[int, ...] = ()
    order: tuple[int, ...] = (0,)

    @property
    def is_clear(self) -> bool:
        """Return whether it is known which axis holds the channels."""
        return self.name != UNCLEAR

    def arrange(self, tensor: Tensor) -> Tensor:
        """The module's tensor as losses read it: a view wherever memory allows."""
        if self.parts:
            tensor = tensor.reshape(self.parts)
        tensor = tensor.permute(self.order)
        return tensor if self._only_moves else tensor.reshape(len(tensor), *self.shape)

    def restore(self, tensor: Tensor) -> Tensor:
        """The inverse of `arrange`."""
        samples = len(tensor)
        raw = (*self.raw[: self.batch], samples, *self.raw[self.batch :])
        cut = tuple(samples if size < 0 else size for size in self.parts) or raw
        if not self._only_moves:
            tensor = tensor.reshape([cut[i] for i in self.order])
        tensor = tensor.permute([self.order.index(i) for i in range(len(self.order))])
        return tensor.reshape(raw) if self.parts else tensor

    @property
    def _only_moves(self) -> bool:
        return not self.parts and len(self.raw) == len(self.shape)


def layout_of(axes: Axes, raw: Sequence[int], samples: int) -> tuple[bool, Layout | None]:
    """Whether a tensor holds samples along an axis, and its layout; None where losses read it as
    it is.

    Args:
        axes: of the tensor.
        raw: its shape, with the batch.
        samples: how many the batch holds.
    """
    batch = _batch_axis(axes, raw, samples)
    if batch is None or len(raw) < 2:
        return False, None
    rest = [(i, simplified(axis)) for i, axis in enumerate(axes) if i != batch]
    shape = tuple(size for i, size in enumerate(raw) if i != batch)
    if len(rest) == 1:
        moved = Layout("samples last", shape, shape, batch, (), (1, 0)) if batch else None
        return True, moved
    sides = _sides(axes, [i for i, _ in rest], shape)
    if sides is None:
        return True, _unclear(shape, batch)
    return True, _arrangement(axes, *sides, shape, batch)


def _batch_axis(axes: Axes, raw: Sequence[int], samples: int) -> int | None:
    held = [i for i, axis in enumerate(axes) if simplified(axis) == (Atom(BATCH, samples),)]
    if held:
        return held[0]
    first_may = bool(raw) and raw[0] == samples and not roles(axes[0]) - {UNKNOWN, BATCH}
    return 0 if first_may else None


def _sides(
    axes: Axes, rest: Sequence[int], shape: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """The axes that hold channels, and those that hold places; None where it is not known.

    An axis of size 1 may be either.
    """
    channels, places, either = [], [], []
    for i, size in zip(rest, shape, strict=True):
        held = roles(axes[i])
        if size == 1:
            either.append(i)
        elif CHANNEL in held:
            channels.append(i)
        elif held and (held <= PLACES or (held == {UNKNOWN} and i == rest[0] and len(rest) == 2)):
            places.append(i)  # before the channels, the only other axis holds places
        else:
            return None
    if not channels and either:
        named = [i for i in either if CHANNEL in roles(axes[i])]
        usual = either[0] if len(rest) >= 3 else either[-1]
        channels.append(named[0] if named else usual)
        either.remove(channels[0])
    if not channels or (len(channels) > 1 and not places):  # a matrix of channels by channels
        return None
    return channels, sorted([*places, *either])


def _arrangement(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    sizes = {i: prod(atom.size for atom in axes[i]) for i in places}
    filled = [i for i in places if sizes[i] > 1]
    if len(places) > 2:  # what holds one value only is no axis of a map
        places = filled
    pair = [simplified(axes[i]) for i in places]
    if len(places) <= 2 and all(map(_is_whole, pair)) and _is_grid(pair):
        if len(places) == 2 and (_of(pair[0]), _of(pair[1])) == (COLUMN, ROW):
            places = places[::-1]
        return _by_axes(axes, channels, places, shape, batch)
    return _by_parts(axes, channels, places, shape, batch)


def _of(axis: Axis) -> str:
    held = roles(axis)
    return next(iter(held)) if len(held) == 1 else ""


def _is_whole(axis: Axis) -> bool:
    """Return whether places stand in their order: rows, columns, rows of columns, or tokens."""
    kinds = tuple(atom.role for atom in axis)
    return {*kinds} == {UNKNOWN} or kinds in ((), (ROW,), (COLUMN,), (TOKEN,), (ROW, COLUMN))


def _is_grid(pair: Sequence[Axis]) -> bool:
    """Return whether two axes are rows and columns, or both the same places (attention)."""
    if len(pair) < 2 or not all(pair):
        return True
    (first, second) = pair
    if {_of(first), _of(second)} == {ROW, COLUMN}:
        return True
    if len(first) == len(second) == 1 and _of(first) == _of(second) == TOKEN:
        return True
    whole = _ends_whole(first) and _ends_whole(second) and len(first) == len(second) == 2
    return first == second or whole


def _ends_whole(axis: Axis) -> bool:
    return all(atom.stride == 1 for atom in axis)


def _by_axes(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    """The layout that only moves and joins whole axes."""
    raw = dict(zip(_without(axes, batch), shape, strict=True))
    ones = [i for i in raw if i not in (*channels, *places)]
    width = prod(raw[i] for i in channels)
    order = (*channels, *places) if len(places) == 2 else (*places, *channels)
    wanted = (width, *(raw[i] for i in places))
    wanted = wanted if len(places) == 2 else (*wanted[1:], width)
    full = (batch, *ones, *order)
    if full == tuple(range(len(axes))) and wanted == shape:
        return None
    name = "channels last" if channels[-1] == len(axes) - 1 else "channels first"
    if len(channels) > 1:
        name = "heads apart"
    elif full == tuple(range(len(axes))):
        name = "ones left out"
    elif batch:
        name = "samples not first"
    return Layout(name, shape, wanted, batch, (), full)


def _by_parts(
    axes: Axes, channels: list[int], places: list[int], shape: tuple[int, ...], batch: int
) -> Layout | None:
    """The layout that puts windows together again; an unclear one where parts are missing."""
    parts: list[tuple[int, Atom]] = []
    for i, axis in enumerate(axes):
        whole = (Atom(UNKNOWN, prod(atom.size for atom in axis)),)
        parts += [(i, atom) for atom in (axis if i in places and axis else whole)]
    order, sides = [], []
    for role in (ROW, COLUMN, TOKEN):
        own = [(n, atom) for n, (i, atom) in enumerate(parts) if i in places and atom.role == role]
        own.sort(key=lambda one: -one[1].stride)
        if not own:
            continue
        if any(a.stride < b.size * b.stride for (_, a), (_, b) in pairwise(own)):
            return _unclear(shape, batch)
        order += [n for n, _ in own]
        sides.append(prod(atom.size for _, atom in own))
    at = [n for n, (i, _) in enumerate(parts) if i == batch]
    rest = [n for n, (i, _) in enumerate(parts) if i in channels]
    ones = [n for n in range(len(parts)) if n not in (*order, *at, *rest)]
    width = prod(parts[n][1].size for n in rest)
    if len(sides) == 2 and len(places) > 1:
        wanted, full = (width, *sides), (*at, *ones, *rest, *order)
    elif len(sides) in (1, 2):
        wanted, full = (prod(sides), width), (*at, *ones, *order, *rest)
    else:
        return _unclear(shape, batch)
    if full == tuple(range(len(parts))) and wanted == shape:
        return None
    sizes = tuple(-1 if i == batch else atom.size for i, atom in parts)
    return Layout("windows", shape, wanted, batch, sizes, full)


def _without(axes: Axes, batch: int) -> list[int]:
    return [i for i in range(len(axes)) if i != batch]


def _unclear(shape: tuple[int, ...], batch: int) -> Layout:
    wanted = (1,) * (_LEAST_UNCLEAR - len(shape)) + shape
    order = (batch, *(i for i in range(len(shape) + 1) if i != batch))
    return Layout(UNCLEAR, shape, wanted, batch, (), order)
