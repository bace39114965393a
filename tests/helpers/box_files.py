"""Folders of images with boxes in the format of COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "owl")
"""Classes; their categories have the numbers 3, 5 and 7."""


def entries_of(count: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> dict[str, Any]:
    """Return the content of a file of annotations: up to two boxes an image.

    Args:
        count: number of images.
        size: (width, height).
        seed: of the boxes.
    """
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(count):
        entry = {"file_name": f"{number:03}.png", "width": size[0], "height": size[1]}
        images.append({"id": 10 + number, **entry})
        for place in range(number % 3):
            x, y = (int(v) for v in generator.integers(4, 20, 2))
            category = 3 + 2 * ((number + place) % 3)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 10 + number,
                    "category_id": category,
                    "bbox": [x, y, 12 + place, 15.5],
                }
            )
    categories = [{"id": 3 + 2 * n, "name": name} for n, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_split(root: Path, content: dict[str, Any], file: str, folder: str) -> None:
    """Write a file of annotations and its images, which show their boxes.

    Args:
        root: of the data.
        content: of the file.
        file: of annotations, relative to the root.
        folder: of the images, relative to the root.
    """
    for entry in content["images"]:
        pixels = np.full((entry["height"], entry["width"], 3), 20, dtype=np.uint8)
        for box in content["annotations"]:
            if box["image_id"] == entry["id"]:
                x, y, wide, high = (int(value) for value in box["bbox"])
                pixels[y : y + high, x : x + wide] = 40 * box["category_id"] - 60
        path = root / folder / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))


def write_coco(root: Path, count: int = 30, size: tuple[int, int] = (48, 40)) -> Path:
    """Write a training split; return the root."""
    write_split(root, entries_of(count, size), "train/annotations.json", "train/images")
    return root
