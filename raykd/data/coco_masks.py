"""Masks of classes from the polygons and run lengths of COCO."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from raykd.compat.packages import is_installed
from raykd.tasks.statistics import IGNORED

PACKAGE = "faster_coco_eval"

BACKGROUND = "background"
"""Name of class 0: pixels of no object."""

MARGIN = 1.0
"""Pixels by which a polygon may leave its image, as rounding does."""


class Region(NamedTuple):
    """An object in an image.

    Attributes:
        outline: a list of polygons, [x1, y1, x2, y2, ...] each, or run lengths with their `size`.
        number: its class in the mask; `IGNORED` for a region of several objects (`iscrowd`).
    """

    outline: Any
    number: int


def check_package() -> None:
    """Check that polygons can be drawn.

    Raises:
        ValueError: the package is missing.
    """
    if not is_installed(PACKAGE):
        raise ValueError(
            f"coco: masks need the package {PACKAGE}, which is not installed; install "
            "raykd[detection]"
        )


def check_outline(outline: Any, size: tuple[int, int], label: str) -> None:
    """Check the outline of an object.

    Args:
        outline: value of `segmentation`.
        size: (width, height) of the image.
        label: begins the message.

    Raises:
        ValueError: it is neither polygons nor run lengths, or leaves the image.
    """
    if isinstance(outline, dict):
        _check_lengths(outline, size, label)
        return
    if not isinstance(outline, list) or not outline:
        raise ValueError(
            f"{label} has segmentation {_short(outline)}; it must be a list of polygons, "
            "[x1, y1, x2, y2, ...] in pixels, or run lengths with `size` and `counts`"
        )
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"{label} has the polygon {_short(polygon)}; it must list at least three points, "
                "x1, y1, x2, y2, x3, y3"
            )
        if not all(type(v) in (int, float) and math.isfinite(v) for v in polygon):
            raise ValueError(f"{label} has the polygon {_short(polygon)}, which is not of numbers")
        for axis, most in enumerate(size):
            values = polygon[axis::2]
            if min(values) < -MARGIN or max(values) > most + MARGIN:
                raise ValueError(
                    f"{label} has the polygon {_short(polygon)}, which leaves the image of "
                    f"{size[0]}x{size[1]} pixels"
                )


def mask_of(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Return the class of each pixel, (H, W) uint8.

    Pixels of no object have class 0.  Pixels of objects of different classes, and those of regions
    of several objects, are `IGNORED`.

    Args:
        regions: objects of the image, checked by `check_outline`.
        size: (width, height) of the image.
    """
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    for region in regions:
        inside = _pixels(region.outline, size)
        other = inside & (mask != 0) & (mask != region.number)
        mask[inside] = region.number
        mask[other] = IGNORED
    return mask


def _pixels(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels inside an outline, (H, W) bool."""
    width, height = size
    if isinstance(outline, dict):
        lengths = _lengths(outline["counts"])
        values = np.arange(len(lengths)) % 2 == 1  # the first run is outside
        return np.repeat(values, lengths).reshape(width, height).T
    from faster_coco_eval.core.mask import decode, frPyObjects, merge

    polygons = [[float(value) for value in polygon] for polygon in outline]
    drawn: Any = frPyObjects(polygons, height, width)  # a list for a list
    return decode(merge(drawn)).astype(bool)


def _check_lengths(outline: dict[str, Any], size: tuple[int, int], label: str) -> None:
    width, height = size
    if outline.get("size") != [height, width]:
        raise ValueError(
            f"{label} has run lengths of the size {_short(outline.get('size'))}; its image has "
            f"[{height}, {width}], height and width"
        )
    try:
        total = sum(_lengths(outline.get("counts")))
    except ValueError as error:
        raise ValueError(f"{label} has run lengths {error}") from None
    if total != width * height:
        raise ValueError(
            f"{label} has run lengths of {total:,} pixels in all; its image has {width * height:,}"
        )


def _lengths(counts: object) -> list[int]:
    """Return the run lengths of an outline, in columns, the first outside of the object.

    Raises:
        ValueError: they are neither a list nor a text of COCO; continues a sentence that begins
            with their name.
    """
    if isinstance(counts, str):
        return _lengths_of_text(counts)
    if not isinstance(counts, list):
        raise ValueError(f"{_short(counts)}; `counts` must be a list or a text")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("that are not whole numbers from 0 on")
    return counts


def _lengths_of_text(text: str) -> list[int]:
    """Return run lengths that are written as a text.

    A number has groups of five bits, the lowest first, as characters from 48 on.  Bit 5 says that
    another group follows, bit 4 of the last group is the sign.  From the fourth number on, it is
    the difference to the length before the last one.

    Raises:
        ValueError: see `_lengths`.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 50:
            raise ValueError(f"that cannot be read: {_short(text)}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        value -= (code >> 4 & 1) << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift or min(lengths, default=0) < 0:
        raise ValueError(f"that cannot be read: {_short(text)}")
    return lengths


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
