"""Decode picture files to tensors of one size."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raykd.data.download import printable
from raykd.data.pixels import DEEP, PLAIN, NoScale, Rules, Traits, depth_of, flattened

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
"""Formats that are decoded, and the suffixes of their files.  The content of a file decides."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MOST_PIXELS = 2 * 89_478_485
"""Larger pictures are refused; Pillow's own limit, which imported code may have lifted."""

_LARGE = 1 << 25
"""Pixels from which on a process decodes one picture at a time, to bound its memory."""

_one_at_a_time = threading.Lock()

_DARK = 1 << 14
"""16-bit pictures that all stay below use two bits less than they have, or fewer."""

_BLACK = 255
"""Peak of a 16-bit color picture of which no upper 8 bits are set."""


class Seen:
    """Counts of what was noticed while pictures were decoded."""

    def __init__(self) -> None:
        self.pictures = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.peak = -1
        self.color_peak = -1

    def add(self, path: str, noticed: Sequence[str], traits: Traits) -> None:
        """Count one picture."""
        self.pictures += 1
        self.peak = max(self.peak, traits.peak)
        self.color_peak = max(self.color_peak, traits.color_peak)
        for what in noticed:
            self.counts[what] += 1
            self.first.setdefault(what, path)

    def notes(self, rules: Rules) -> tuple[str, ...]:
        """Sentences on rules that were applied."""
        background = "ignored" if rules.background == "none" else f"laid on {rules.background}"
        said = {
            "turned": "were turned upright by their EXIF orientation",
            "frames": "hold more than one frame; the first one is used",
            "transparent": f"have transparent pixels, {background}",
        }
        return tuple(self._sentence(what, text) for what, text in said.items() if self.counts[what])

    def warnings(self, rules: Rules) -> tuple[str, ...]:
        """Sentences on what may be wrong with the pictures."""
        said = {
            "lost": "have 16 bits per pixel but use the lowest 8 alone and become black; set "
            "data.value_range to the values that are black and white",
            "black": "have 16 bits per channel and become black; if they use the lowest 8 bits "
            "alone, write them with 8 bits per channel",
            "invisible": "have no pixel that is not transparent, and show the background alone",
            "metadata": "have EXIF data that cannot be read; they are not turned",
        }
        if rules.background == "none":
            del said["invisible"]
        found = [self._sentence(what, text) for what, text in said.items() if self.counts[what]]
        if 0 < self.peak < _DARK and rules.value_range is None and not self.counts["lost"]:
            found.append(
                f"no 16-bit picture has a value above {self.peak}: all of them are dark; set "
                f"data.value_range: [0, {(1 << self.peak.bit_length()) - 1}] to use the full scale"
            )
        if _BLACK < self.color_peak < _DARK:
            found.append(
                f"no 16-bit color picture has a value above {self.color_peak} of 65535: all of "
                "them are dark; scale their values to the full 16 bits, or write them with 8 bits "
                "per channel"
            )
        return tuple(found)

    def _sentence(self, what: str, text: str) -> str:
        count, first = self.counts[what], printable(self.first[what])
        which = first if count == 1 else f"such as {first}"
        return f"{count} of {self.pictures} pictures {text} ({which})"


def decode_files(
    root: str, paths: Sequence[str], shape: tuple[int, int, int], rules: Rules = PLAIN
) -> Tensor:
    """Decode files one after another.

    Args:
        root: the folder `paths` are relative to.
        paths: (B,) files.
        shape: (C, H, W) wanted, C 1 or 3, H = W.
        rules: how stored values become 8-bit pixels.

    Returns:
        (B, C, H, W) uint8.

    Raises:
        ValueError: a file cannot be decoded; names it.
    """
    pictures = np.empty((len(paths), *shape), dtype=np.uint8)
    for row, path in enumerate(paths):
        _decode_into(pictures[row], Path(root) / path, rules)
    return torch.from_numpy(pictures)


def decode_all(
    root: str,
    paths: Sequence[str],
    shape: tuple[int, int, int],
    rules: Rules = PLAIN,
    seen: Seen | None = None,
) -> np.ndarray:
    """Decode files as `decode_files` does, on all cores; for a whole data set.

    Args:
        seen: counts what was noticed.
    """
    pictures = np.empty((len(paths), *shape), dtype=np.uint8)

    def decoded(row: int) -> tuple[list[str], Traits]:
        return _decode_into(pictures[row], Path(root) / paths[row], rules)

    # Threads: Pillow lets go of the interpreter lock while it decodes and scales.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, noticed in zip(paths, pool.map(decoded, range(len(paths))), strict=True):
            if seen is not None:
                seen.add(path, *noticed)
    return pictures


def check_header(path: Path, rules: Rules = PLAIN) -> None:
    """Check that a file is a picture of a kind that can be decoded, by its header.

    Only a picture of 32-bit integers or floats is decoded, as its values decide.

    Raises:
        ValueError: it is not; names the file.
    """
    with _named(path), _opened(path) as image:
        depth = depth_of(image)
        if image.mode in DEEP and not depth.bits:
            image.load()
            flattened(image, 1, depth, rules, Traits())


def _decode_into(picture: np.ndarray, path: Path, rules: Rules) -> tuple[list[str], Traits]:
    """Decode `path` into (C, size, size): the short side to `size`, the middle of the long one.

    Returns:
        Names of what was noticed, and the traits of the picture.
    """
    channels, size = picture.shape[:2]
    traits = Traits()
    with _named(path), _opened(path) as image:
        frames = getattr(image, "is_animated", False)
        depth = depth_of(image)
        image.draft("RGB" if channels == 3 else "L", (size, size))  # JPEG: decode it small
        with _bounded(image):
            turned, readable = _upright(image)
            flat = flattened(image, channels, depth, rules, traits)
            squared = _squared(flat, size)
    picture[:] = np.asarray(squared).reshape(size, size, channels).transpose(2, 0, 1)
    noticed = {
        "frames": frames,
        "turned": turned,
        "metadata": not readable,
        "transparent": traits.transparent,
        "invisible": traits.invisible,
        "lost": traits.lost,
        "black": traits.color_peak == _BLACK,
    }
    return [what for what, is_so in noticed.items() if is_so], traits


def _bounded(image: Image) -> AbstractContextManager[object]:
    """The context to decode a picture in."""
    return _one_at_a_time if image.width * image.height > _LARGE else nullcontext()


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An open picture file, its pixels not loaded.

    Raises:
        ValueError: it is no picture, or too large a one.
    """
    from PIL import Image

    # Not by its path: Pillow then maps some files, and reads a turned TIFF by wrong rows.
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        try:
            # Only these: some of Pillow's other formats start programs.
            image = Image.open(file, formats=list(FORMATS))
        except (Image.UnidentifiedImageError, KeyError):  # KeyError: a Pillow without a format
            file.seek(0)
            raise ValueError(f"it is {_content(file.read(512))}") from None
        except Image.DecompressionBombError:
            raise ValueError(_TOO_LARGE) from None
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(_TOO_LARGE)
            yield image


_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Entries of a picture's information that may hold its orientation."""

_TOO_LARGE = f"it has more than {MOST_PIXELS:,} pixels; write it smaller"


@contextmanager
def _named(path: Path) -> Iterator[None]:
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


def _upright(image: Image) -> tuple[bool, bool]:
    """Load a picture's pixels and turn them as its EXIF orientation says.

    Returns:
        Whether it was turned, and whether its EXIF data could be read.
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


def _squared(image: Image, size: int) -> Image:
    from PIL.Image import Resampling

    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((size, size), Resampling.BILINEAR, box=box)


def _content(head: bytes) -> str:
    """Kind of a file that is no readable picture, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "a HEIC picture, which Pillow does not read; convert it to JPEG"
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
    return "no picture of a known format"
