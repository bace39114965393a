"""Folders of images with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "cat", "dog")


def write_pairs(folder: Path, count: int, size: tuple[int, int] = (12, 10), seed: int = 0) -> None:
    """Write `count` images with masks to FOLDER/images and FOLDER/masks; the mask shows in red.

    Args:
        folder: of the split.
        count: number of images.
        size: (width, height).
        seed: of the content.
    """
    generator = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mask = generator.integers(0, len(CLASSES), size[::-1], dtype=np.uint8)
        mask[0, 0] = 255
        pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        pixels[..., 0] = mask
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def write_mask_folder(root: Path, count: int = 30) -> Path:
    """Write a training split and the names of the classes; return the root."""
    write_pairs(root / "train", count)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root
