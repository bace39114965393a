"""Decode picture files to tensors of one size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def decode_files(root: str, paths: Sequence[str], shape: tuple[int, int, int]) -> Tensor:
    """Decode files one after another.

    Args:
        root: the folder `paths` are relative to.
        paths: (B,) files.
        shape: (C, H, W) wanted, C 1 or 3, H = W.

    Returns:
        (B, C, H, W) uint8.

    Raises:
        ValueError: a file cannot be decoded; names it.
    """
    pictures = np.empty((len(paths), *shape), dtype=np.uint8)
    for row, path in enumerate(paths):
        _decode_into(pictures[row], Path(root) / path)
    return torch.from_numpy(pictures)


def decode_all(root: str, paths: Sequence[str], shape: tuple[int, int, int]) -> np.ndarray:
    """As `decode_files`, by all cores; for a whole data set."""
    pictures = np.empty((len(paths), *shape), dtype=np.uint8)
    # Threads: Pillow lets go of the interpreter lock while it decodes and scales.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(_decode_into, pictures, (Path(root) / path for path in paths)):
            pass
    return pictures


def _decode_into(picture: np.ndarray, path: Path) -> None:
    """Decode `path` into (C, size, size): the short side to `size`, the middle of the long one."""
    from PIL import Image

    channels, size = picture.shape[:2]
    try:
        with Image.open(path) as image:
            image.draft("RGB" if channels == 3 else "L", (size, size))  # JPEG: decode it small
            squared = _squared(image.convert("RGB" if channels == 3 else "L"), size)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}): mend or remove it") from error
    picture[:] = np.asarray(squared).reshape(size, size, channels).transpose(2, 0, 1)


def _squared(image: Image, size: int) -> Image:
    from PIL.Image import Resampling

    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((size, size), Resampling.BILINEAR, box=box)
