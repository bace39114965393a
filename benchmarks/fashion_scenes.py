"""Make a small data set: items of Fashion-MNIST on textured backgrounds, with masks and boxes.

Writes `train`, `val` and `test`, each with `images`, `masks` and `annotations.json`, and
`classes.txt`: for segmentation (`mask_folder`) and for detection (`coco`).  A picture has 40x40
gray pixels, or as many as `--side` says, and two or three items, each scaled to 20 to 28 pixels, at
random places; later items hide earlier ones.  The background is a sum of three waves and noise.
In a mask 0 is the background and k + 1 is class k of Fashion-MNIST; 255 marks the positions at the
rim of an item, where the item is nearly as dark as its own background.  A box is around the visible
pixels of an item, if they are a quarter of its pixels or more.  Items of the test split come from
the test pictures of Fashion-MNIST, those of the others from its training pictures, each used in one
split.

    uv run python benchmarks/fashion_scenes.py --to data/scenes
    uv run python benchmarks/fashion_scenes.py --to data/boxes --side 64
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from raykd.data import FashionMnist, Split

SIDE = 40
VISIBLE = 0.25
"""Share of the pixels of an item from which on it has a box."""

ITEM, RIM = 60, 20
"""Levels from which a pixel belongs to an item, and from which it is its rim."""

IGNORED = 255
COUNTS = {"train": 2500, "val": 300, "test": 500}


def background(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return (size, size) values from 0 to 255: three waves and noise."""
    rows, columns = np.mgrid[:size, :size]
    values = np.zeros((size, size))
    for _ in range(3):
        angle, period = generator.uniform(0, np.pi), generator.uniform(4, 24)
        phase = generator.uniform(0, 2 * np.pi)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        values += generator.uniform(10, 35) * np.sin(2 * np.pi * along / period + phase)
    values += generator.uniform(60, 140) + generator.normal(0, 12, values.shape)
    return values.clip(0, 255)


def scene(
    items: np.ndarray, classes: np.ndarray, generator: np.random.Generator, size: int = SIDE
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """Paste items on a background.

    Args:
        items: (N, 28, 28) uint8.
        classes: (N,) numbers of their classes.
        generator: of the background, sizes and places.
        size: side of the picture.

    Returns:
        The picture and its mask, (size, size) uint8, and the class and box, [x, y, width, height],
        of each item.
    """
    picture, mask = background(generator, size), np.zeros((size, size), dtype=np.uint8)
    owner, pixels = np.full((size, size), -1), []
    for place, (item, number) in enumerate(zip(items, classes, strict=True)):
        side = int(generator.integers(20, 29))
        scaled = np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR))
        top, left = generator.integers(0, size - side + 1, 2)
        window = np.s_[top : top + side, left : left + side]
        inside, rim = scaled >= ITEM, (scaled >= RIM) & (scaled < ITEM)
        picture[window][inside] = scaled[inside]
        mask[window][rim] = IGNORED
        mask[window][inside] = number + 1
        owner[window][inside] = place
        pixels.append(int(inside.sum()))
    boxes = []
    for place, number in enumerate(classes):
        rows, columns = np.nonzero(owner == place)
        if len(rows) < max(1, VISIBLE * pixels[place]):
            continue
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        boxes.append((int(number), box))
    return picture.round().astype(np.uint8), mask, boxes


def write_split(
    folder: Path, items: Split, count: int, seed: int, names: Sequence[str], size: int
) -> None:
    """Write the pictures, masks and boxes of a split."""
    generator = np.random.default_rng(seed)
    pictures, targets = np.asarray(items.inputs)[:, 0], items.targets.numpy()
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, object]]] = {
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "images": [],
        "annotations": [],
    }
    for number in range(count):
        rows = generator.integers(0, len(targets), generator.integers(2, 4))
        picture, mask, boxes = scene(pictures[rows], targets[rows], generator, size)
        entry = {"id": number, "file_name": f"{number:05}.png", "width": size, "height": size}
        entries["images"].append(entry)
        for label, box in boxes:
            entry = {"image_id": number, "category_id": label + 1, "bbox": box}
            entries["annotations"].append({"id": len(entries["annotations"]), **entry})
        Image.fromarray(picture).save(folder / "images" / f"{number:05}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:05}.png")
    (folder / "annotations.json").write_text(json.dumps(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("data/scenes"))
    parser.add_argument("--side", type=int, default=SIDE, help="of a picture, in pixels")
    arguments = parser.parse_args()
    source = FashionMnist()
    data = source.load()
    for seed, (part, count) in enumerate(COUNTS.items()):
        split = {"train": data.train, "val": data.val, "test": data.test}[part]
        assert isinstance(split, Split)
        folder = arguments.to / part
        write_split(folder, split, count, seed, source.class_names, arguments.side)
    names = ["background", *source.class_names]
    (arguments.to / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    print(f"{arguments.to}: {', '.join(f'{n:,} {part}' for part, n in COUNTS.items())}")


if __name__ == "__main__":
    main()
