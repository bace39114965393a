"""Make a small multi-label data set: two overlaid items of Fashion-MNIST a sample.

Writes `train.parquet`, `val.parquet` and `test.parquet`.  A sample is two items drawn at random,
each of 28x28 gray pixels reduced to 14x14; a pixel is the larger value of both, so that the items
hide parts of each other.  Columns are the 196 pixels and a 0 or 1 for each of the ten classes; a
sample has one label if both items are of one class, else two.  Items of the test split come from
the test pictures of Fashion-MNIST, those of the others from its training pictures, each used in one
split.

    uv run python benchmarks/fashion_pairs.py --to data/pairs
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.data import FashionMnist, Split

COUNTS = {"train": 3000, "val": 1000, "test": 4000}


def write_split(file: Path, items: Split, names: list[str], count: int, seed: int) -> None:
    """Write the pixels and labels of a split."""
    generator = np.random.default_rng(seed)
    pictures, classes = np.asarray(items.inputs)[:, 0], items.targets.numpy()
    rows = generator.integers(0, len(classes), (count, 2))
    small = pictures[rows].reshape(count, 2, 14, 2, 14, 2).mean((3, 5))
    pixels = small.max(1).reshape(count, -1).astype(np.float32)
    labels = np.zeros((count, len(names)), dtype=np.int8)
    for column in range(2):
        labels[np.arange(count), classes[rows[:, column]]] = 1
    columns = {f"pixel{n:03}": pixels[:, n] for n in range(pixels.shape[1])}
    columns |= {name: labels[:, n] for n, name in enumerate(names)}
    pq.write_table(pa.table(columns), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("data/pairs"))
    arguments = parser.parse_args()
    source = FashionMnist()
    data = source.load()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate(COUNTS.items()):
        split = {"train": data.train, "val": data.val, "test": data.test}[part]
        assert isinstance(split, Split)
        file = arguments.to / f"{part}.parquet"
        write_split(file, split, [*source.class_names], count, seed)
    print(f"{arguments.to}: {', '.join(f'{n:,} {part}' for part, n in COUNTS.items())}")


if __name__ == "__main__":
    main()
