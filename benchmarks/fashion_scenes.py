"""Make a small data set for segmentation: items of Fashion-MNIST on textured backgrounds.

Writes `train`, `val` and `test`, each with `images` and `masks`, and `classes.txt`.  A picture has
40x40 gray pixels and two or three items, each scaled to 20 to 28 pixels, at random places; later
items hide earlier ones.  The background is a sum of three waves and noise.  In a mask 0 is the
background and k + 1 is class k of Fashion-MNIST; 255 marks the positions at the rim of an item,
where the item is nearly as dark as its own background.  Items of the test split come from the test
pictures of Fashion-MNIST, those of the others from its training pictures, each used in one split.

    uv run python benchmarks/fashion_scenes.py --to data/scenes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from raykd.data import FashionMnist, Split

SIZE = 40
ITEM, RIM = 60, 20
"""Levels from which a pixel belongs to an item, and from which it is its rim."""

IGNORED = 255
COUNTS = {"train": 2500, "val": 300, "test": 500}


def background(generator: np.random.Generator) -> np.ndarray:
    """Return (SIZE, SIZE) values from 0 to 255: three waves and noise."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    values = np.zeros((SIZE, SIZE))
    for _ in range(3):
        angle, period = generator.uniform(0, np.pi), generator.uniform(4, 24)
        phase = generator.uniform(0, 2 * np.pi)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        values += generator.uniform(10, 35) * np.sin(2 * np.pi * along / period + phase)
    values += generator.uniform(60, 140) + generator.normal(0, 12, values.shape)
    return values.clip(0, 255)


def scene(
    items: np.ndarray, classes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paste items on a background.

    Args:
        items: (N, 28, 28) uint8.
        classes: (N,) numbers of their classes.
        generator: of the background, sizes and places.

    Returns:
        The picture and its mask, (SIZE, SIZE) uint8.
    """
    picture, mask = background(generator), np.zeros((SIZE, SIZE), dtype=np.uint8)
    for item, number in zip(items, classes, strict=True):
        side = int(generator.integers(20, 29))
        scaled = np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR))
        top, left = generator.integers(0, SIZE - side + 1, 2)
        window = np.s_[top : top + side, left : left + side]
        inside, rim = scaled >= ITEM, (scaled >= RIM) & (scaled < ITEM)
        picture[window][inside] = scaled[inside]
        mask[window][rim] = IGNORED
        mask[window][inside] = number + 1
    return picture.round().astype(np.uint8), mask


def write_split(folder: Path, items: Split, count: int, seed: int) -> None:
    """Write the pictures and masks of a split."""
    generator = np.random.default_rng(seed)
    pictures, targets = np.asarray(items.inputs)[:, 0], items.targets.numpy()
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rows = generator.integers(0, len(targets), generator.integers(2, 4))
        picture, mask = scene(pictures[rows], targets[rows], generator)
        Image.fromarray(picture).save(folder / "images" / f"{number:05}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:05}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("data/scenes"))
    arguments = parser.parse_args()
    source = FashionMnist()
    data = source.load()
    for seed, (part, count) in enumerate(COUNTS.items()):
        split = {"train": data.train, "val": data.val, "test": data.test}[part]
        assert isinstance(split, Split)
        write_split(arguments.to / part, split, count, seed)
    names = ["background", *source.class_names]
    (arguments.to / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    print(f"{arguments.to}: {', '.join(f'{n:,} {part}' for part, n in COUNTS.items())}")


if __name__ == "__main__":
    main()
