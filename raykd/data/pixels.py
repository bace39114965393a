"""Conversion of images of any Pillow mode to 8-bit gray or RGB, by one rule per mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Background = Literal["white", "gray", "black", "none"]

BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}

DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
"""Modes with one channel of more than 8 bits."""

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339
"""TIFF tags."""

_FIX = (
    "set data.value_range: [LOW, HIGH], the values that become black and white in every image, "
    "or write 8- or 16-bit images"
)


class NoScale(ValueError):
    """Raised if the values of an image have no fixed scale; names the remedies."""


@dataclass(frozen=True)
class Rules:
    """Options of the conversion of stored values to 8-bit pixels.

    Attributes:
        background: color under transparent pixels; "none": transparency is ignored.
        value_range: values that become 0 and 255 in images with more than 8 bits per pixel;
            None: depends on the depth of the file.
    """

    background: Background = "white"
    value_range: tuple[float, float] | None = None


PLAIN = Rules()


@dataclass(frozen=True)
class Depth:
    """Scale of the values of an image, from its header.

    Attributes:
        bits: bits of an unsigned integer; 0: floats, or integers without a fixed scale.
        inverted: 0 is white (WhiteIsZero in TIFF), and Pillow does not invert it.
        key: transparent value or color in the scale of the pixels; None: no transparency.
        unsigned: unsigned 32-bit integers, which Pillow returns as signed.
        deep_color: several channels of 16 bits, of which Pillow returns the upper 8.
    """

    bits: int
    inverted: bool = False
    key: Any = None
    unsigned: bool = False
    deep_color: bool = False


@dataclass
class Traits:
    """Properties of an image that are reported to the user.

    Attributes:
        transparent: it has transparent pixels.
        invisible: it has only transparent pixels.
        peak: largest value of a 16-bit image with one channel; -1 for others.
        color_peak: largest value of a 16-bit image with several channels, its lower 8 bits set;
            -1 for others.
        lost: it has 16 bits, and its values differ but all become 0.
    """

    transparent: bool = False
    invisible: bool = False
    peak: int = -1
    color_peak: int = -1
    lost: bool = False


def depth_of(image: Image) -> Depth:
    """Return the scale and transparent color of an image whose pixels are not loaded yet.

    Raises:
        NoScale: Pillow would misread the values.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode == "L" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 2:
        raise NoScale("signed 8-bit values have no fixed scale; write unsigned 8-bit images")
    inverted = image.mode in DEEP and tags.get(_PHOTOMETRIC) == 0
    unsigned = image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    return Depth(
        _bits(image, tags),
        inverted,
        _key(image),
        unsigned=unsigned and tags.get(_BITS, (0,))[0] == 32,
        deep_color=_is_deep_color(image, tags),
    )


def flatten(image: Image, channels: int, depth: Depth, rules: Rules, traits: Traits) -> Image:
    """Convert a loaded image to mode L or RGB.

    Args:
        image: image of any mode.
        channels: 1 or 3.
        depth: result of `depth_of`.
        rules: options of the study.
        traits: filled in.

    Returns:
        An image of mode L or RGB.

    Raises:
        NoScale: the values have no fixed scale.
        ValueError: some values are not finite.
    """
    target = "RGB" if channels == 3 else "L"
    if depth.deep_color:
        bands = image.getextrema()[: 1 if image.mode == "LA" else 3]
        traits.color_peak = max(int(high) for _, high in bands) << 8 | 255  # type: ignore[misc]
    if image.mode in DEEP:
        image = _scale(image, depth, rules, traits)
    elif depth.key is not None:
        image.info["transparency"] = depth.key
    if _has_alpha(image):
        image = _without_alpha(image, rules, traits)
    if image.mode == "LAB":
        image = image.convert("RGB")  # there is no direct conversion to gray
    return image.convert(target)


def _bits(image: Image, tags: Any) -> int:
    if image.mode.startswith("I;16"):
        return tags.get(_BITS, (16,))[0]
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16  # Pillow scales the maximum of a PGM to 65535
    return 0 if image.mode in ("I", "F") else 8


def _is_deep_color(image: Image, tags: Any) -> bool:
    if image.mode not in ("LA", "RGB", "RGBA", "RGBX"):
        return False
    tile = getattr(image, "tile", ())
    stored = str(tile[0][3]) if image.format == "PNG" and tile else ""
    return ";16" in stored or tags.get(_BITS, (0,))[0] == 16


def _key(image: Image) -> Any:
    """Return the transparent value of a PNG in the scale of the pixels that Pillow returns."""
    key = image.info.get("transparency")
    tile = getattr(image, "tile", ())
    if key is None or image.format != "PNG" or not tile:
        return key
    raw = str(tile[0][3])
    if raw == "L;2":
        return key * 85
    if raw == "L;4":
        return key * 17
    if raw.startswith("RGB;16"):
        return tuple(value >> 8 for value in key)
    return key


def _has_alpha(image: Image) -> bool:
    return image.mode in ("1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa") and (
        image.has_transparency_data
    )


def _without_alpha(image: Image, rules: Rules, traits: Traits) -> Image:
    """Return the image without transparency."""
    from PIL import Image as Pillow

    if image.mode == "La":
        image = image.convert("LA")  # there is no direct conversion to RGBA
    colored = image.convert("RGBA")
    alpha = colored.getchannel("A")
    least, most = alpha.getextrema()
    traits.transparent, traits.invisible = least != 255, most == 0
    colors = colored.convert("RGB")
    if rules.background == "none" or not traits.transparent:
        return colors
    level = BACKGROUNDS[rules.background]
    composed = Pillow.new("RGB", image.size, (level, level, level))
    composed.paste(colors, mask=alpha)
    return composed


def _scale(image: Image, depth: Depth, rules: Rules, traits: Traits) -> Image:
    """Convert more than 8 bits per pixel to mode L, or LA if a value is transparent."""
    from PIL import Image as Pillow

    values = np.asarray(image)
    if depth.unsigned:
        values = values.view(np.uint32)
    if depth.bits:
        most = int(values.max())
        traits.peak = most << (16 - depth.bits)
        traits.lost = rules.value_range is None and 0 < most < 1 << (depth.bits - 8)
    levels = _levels(values, depth.bits, rules.value_range)
    if depth.inverted:
        levels = 255 - levels
    if depth.key is None:
        return Pillow.fromarray(levels)
    alpha = np.where(values == depth.key, 0, 255).astype(np.uint8)
    return Pillow.merge("LA", [Pillow.fromarray(levels), Pillow.fromarray(alpha)])


def _levels(values: np.ndarray, bits: int, span: tuple[float, float] | None) -> np.ndarray:
    """Return the values as (H, W) uint8."""
    if span is not None:
        _refuse_nan(values)
        low, high = span
        shares = (values.astype(np.float64) - low) / (high - low)
        return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    if bits:
        return (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if values.dtype.kind != "f":
        raise NoScale(f"integers of 32 bits ({_extent(values)}) have no fixed scale: {_FIX}")
    _refuse_nan(values)
    if values.min() < 0 or values.max() > 1:
        raise NoScale(f"floats beyond 0 to 1 ({_extent(values)}) have no fixed scale: {_FIX}")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _refuse_nan(values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("some values are not finite: replace them")


def _extent(values: np.ndarray) -> str:
    return f"here {values.min():.6g} to {values.max():.6g}"
