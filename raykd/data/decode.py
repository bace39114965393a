"""Decode image files to tensors of one size."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raykd.data.download import printable
from raykd.data.pixels import DEEP, PLAIN, NoScale, Rules, Traits, depth_of, flatten

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
    "QOI": (".qoi",),
    "TGA": (".tga",),
    "DIB": (),
    "MPO": (),
}
"""Formats that are decoded, and their suffixes.  The content of a file decides its format."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MOST_PIXELS = 2 * 89_478_485
"""Limit of Pillow, which imported code may have changed; larger images are rejected."""

_LARGE = 1 << 25
"""Number of pixels above which a process decodes one image at a time, to bound its memory."""

_one_at_a_time = threading.Lock()

_DARK = 1 << 14
"""16-bit images whose values are all below leave at least two bits unused."""

_BLACK = 255
"""Peak of a 16-bit color image that uses only the lower 8 bits."""


class DecodingLog:
    """Counts of special cases among decoded images."""

    def __init__(self) -> None:
        self.images = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.peak = -1
        self.color_peak = -1

    def add(self, path: str, cases: Sequence[str], traits: Traits) -> None:
        """Count one image."""
        self.images += 1
        self.peak = max(self.peak, traits.peak)
        self.color_peak = max(self.color_peak, traits.color_peak)
        for case in cases:
            self.counts[case] += 1
            self.first.setdefault(case, path)

    def notes(self, rules: Rules) -> tuple[str, ...]:
        """Return sentences on the rules that were applied."""
        background = "ignored" if rules.background == "none" else f"shown on {rules.background}"
        texts = {
            "turned": "were turned upright according to their EXIF orientation",
            "frames": "hold more than one frame; the first one is used",
            "transparent": f"have transparent pixels, {background}",
        }
        return tuple(self._sentences(texts))

    def warnings(self, rules: Rules) -> tuple[str, ...]:
        """Return sentences on possible faults of the images."""
        texts = {
            "lost": "have 16 bits per pixel but use only the lowest 8, and become black; set "
            "data.value_range to the values that are black and white",
            "black": "have 16 bits per channel and become black; if they use only the lowest "
            "8 bits, write them with 8 bits per channel",
            "invisible": "have only transparent pixels, and show just the background",
            "metadata": "have unreadable EXIF data; they are not turned",
        }
        if rules.background == "none":
            del texts["invisible"]
        sentences = self._sentences(texts)
        if 0 < self.peak < _DARK and rules.value_range is None and not self.counts["lost"]:
            sentences.append(
                f"no 16-bit image has a value above {self.peak}: all of them are dark; set "
                f"data.value_range: [0, {(1 << self.peak.bit_length()) - 1}] to use the full scale"
            )
        if _BLACK < self.color_peak < _DARK:
            sentences.append(
                f"no 16-bit color image has a value above {self.color_peak} of 65535: all of "
                "them are dark; scale their values to the full 16 bits, or write them with 8 bits "
                "per channel"
            )
        return tuple(sentences)

    def _sentences(self, texts: Mapping[str, str]) -> list[str]:
        """Return a sentence for each case that occurred."""
        sentences = []
        for case in (case for case in texts if self.counts[case]):
            count, first = self.counts[case], printable(self.first[case])
            example = first if count == 1 else f"such as {first}"
            sentences.append(f"{count} of {self.images} images {texts[case]} ({example})")
        return sentences


def decode_files(
    root: str, paths: Sequence[str], shape: tuple[int, int, int], rules: Rules = PLAIN
) -> Tensor:
    """Decode files one after another.

    Args:
        root: the folder `paths` are relative to.
        paths: (B,) files.
        shape: (C, H, W) of the result, C 1 or 3.
        rules: how stored values become 8-bit pixels.

    Returns:
        (B, C, H, W) uint8.

    Raises:
        ValueError: a file cannot be decoded; names it.
    """
    images = np.empty((len(paths), *shape), dtype=np.uint8)
    for row, path in enumerate(paths):
        _decode_into(images[row], Path(root) / path, rules)
    return torch.from_numpy(images)


def decode_all(
    root: str,
    paths: Sequence[str],
    shape: tuple[int, int, int],
    rules: Rules = PLAIN,
    log: DecodingLog | None = None,
) -> np.ndarray:
    """Decode the files of a data set like `decode_files`, on all cores.

    Args:
        log: counts special cases.
    """
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def decode(row: int) -> tuple[list[str], Traits]:
        return _decode_into(images[row], Path(root) / paths[row], rules)

    # Threads suffice: Pillow releases the interpreter lock while it decodes and scales.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, result in zip(paths, pool.map(decode, range(len(paths))), strict=True):
            if log is not None:
                log.add(path, *result)
    return images


def check_header(path: Path, rules: Rules = PLAIN) -> None:
    """Check by its header that a file is an image that can be decoded.

    Images of 32-bit integers or floats are decoded, because their values decide.

    Raises:
        ValueError: it cannot be decoded; names the file.
    """
    with naming(path), open_image(path) as image:
        depth = depth_of(image)
        if image.mode in DEEP and not depth.bits:
            image.load()
            flatten(image, 1, depth, rules, Traits())


def _decode_into(out: np.ndarray, path: Path, rules: Rules) -> tuple[list[str], Traits]:
    """Decode `path` into `out`, (C, H, W): the largest centered part of that ratio, resized.

    Returns:
        Names of special cases, and the traits of the image.
    """
    channels, height, width = out.shape
    traits = Traits()
    with naming(path), open_image(path) as image:
        frames = getattr(image, "is_animated", False)
        depth = depth_of(image)
        image.draft("RGB" if channels == 3 else "L", (width, height))  # JPEG: decode it small
        with _memory_bound(image):
            turned, readable = _turn_upright(image)
            flat = flatten(image, channels, depth, rules, traits)
            part = center_part(flat, height, width)
    out[:] = np.asarray(part).reshape(height, width, channels).transpose(2, 0, 1)
    cases = {
        "frames": frames,
        "turned": turned,
        "metadata": not readable,
        "transparent": traits.transparent,
        "invisible": traits.invisible,
        "lost": traits.lost,
        "black": traits.color_peak == _BLACK,
    }
    return [case for case, applies in cases.items() if applies], traits


def _memory_bound(image: Image) -> AbstractContextManager[object]:
    """Return a context that decodes large images one at a time."""
    return _one_at_a_time if image.width * image.height > _LARGE else nullcontext()


def by(size: tuple[int, int]) -> str:
    """Return a size as messages write it: 32x24."""
    return f"{size[0]}x{size[1]}"


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """Open an image file without loading its pixels.

    Raises:
        ValueError: it is not an image, or too large.
    """
    from PIL import Image

    # Not by path: Pillow then maps some files into memory, and reads rotated TIFFs wrong.
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        try:
            # Only these formats: some others of Pillow start programs.
            image = Image.open(file, formats=list(FORMATS))
        except (Image.UnidentifiedImageError, KeyError):  # KeyError: this Pillow lacks a format
            file.seek(0)
            raise ValueError(f"it is {_content(file.read(512))}") from None
        except Image.DecompressionBombError:
            raise ValueError(_TOO_LARGE) from None
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(_TOO_LARGE)
            yield image


_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Entries of an image's information that may hold its orientation."""

_TOO_LARGE = f"it has more than {MOST_PIXELS:,} pixels; write it smaller"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise every error as a ValueError that names the file."""
    try:
        yield
    except NoScale as error:
        raise ValueError(f"{printable(path)} cannot be decoded: {error}") from error
    except Exception as error:  # damaged files make decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{printable(path)} cannot be decoded ({reason}): replace or remove it"
        ) from error


def _turn_upright(image: Image) -> tuple[bool, bool]:
    """Load the pixels of an image and turn them according to its EXIF orientation.

    Returns:
        (it was turned, its EXIF data could be read).
    """
    from PIL import ExifTags, ImageOps

    stored = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    orientation = stored.get(ExifTags.Base.Orientation, 1)
    image.load()  # turns a TIFF
    if not stored and not any(key in image.info for key in _METADATA):
        return False, True
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, orientation)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # noqa: BLE001 - damaged metadata; the pixels are whole
        return False, False
    return orientation in range(2, 9), True


def center_part(image: Image, height: int, width: int, *, nearest: bool = False) -> Image:
    """Return the largest centered part with the ratio of `height` and `width`, resized to them.

    Args:
        image: any image.
        height, width: of the result.
        nearest: take the nearest pixels instead of means, for class numbers.
    """
    from PIL.Image import Resampling

    wide = min(image.width, image.height * width / height)
    high = min(image.height, image.width * height / width)
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    method = Resampling.NEAREST if nearest else Resampling.BILINEAR
    return image.resize((width, height), method, box=(left, top, left + wide, top + high))


def _content(head: bytes) -> str:
    """Describe a file that is not a readable image, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "a HEIC image, which Pillow does not read; convert it to JPEG"
    if head[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps from a failed download"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with git lfs pull"
    if head.startswith(b"%PDF"):
        return "a PDF document"
    if not head.strip(b"\0"):
        return "a file of zeros, perhaps from a download that was cut off"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return (
            "a TIFF of a kind that Pillow does not read, such as 16-bit or 64-bit floats, color "
            "floats or signed colors; write 8- or 16-bit integers or, with one channel, 32-bit "
            "floats"
        )
    if head.startswith((b"PF", b"P7")):
        return "a color PFM or PAM file, which Pillow does not read; write PNG or PPM"
    return "not an image of a known format"
