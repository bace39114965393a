"""Handwritten digits of scikit-learn."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from raykd.data.augment import Augments
from raykd.data.dataset import (
    Dataset,
    Fraction,
    Limit,
    Raw,
    Source,
    SplitSeed,
    TestFraction,
    ValLimit,
)
from raykd.data.splits import at_most, dataset_of_images, hold_out
from raykd.registry import option

LEVELS = 16
"""Largest gray level of the digits in scikit-learn."""

RAW = Raw(
    maximum=LEVELS, dtype="float64", shape=(8, 8), preparation="sklearn's load_digits().images"
)
"""Samples as returned by `sklearn.datasets.load_digits`."""


@option
class Digits(Source):
    """1,797 handwritten digits, 8x8 pixels, included in scikit-learn.

    Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits (its test part).  The
    17 gray levels are scaled to 0 to 255.  The test split is cut off the samples.
    """

    paper = "Alpaydin 1998, UCI optical recognition of handwritten digits"

    name: Literal["digits"] = "digits"
    test: TestFraction = 0.2
    val: Fraction = 0.15
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    def declared_shape(self) -> tuple[tuple[int, ...], int]:
        return (1, 8, 8), 10

    def load(self) -> Dataset:
        levels, targets = _levels_and_targets()
        images = np.rint(levels * (255 / LEVELS)).astype(np.uint8).reshape(-1, 1, 8, 8)
        rest, test = hold_out(targets, np.arange(len(targets)), self.test, self.split_seed, "test")
        train, val = hold_out(targets, rest, self.val, self.split_seed, "val")
        rows = {
            "train": at_most(targets, train, self.limit, self.split_seed, "limit"),
            "val": at_most(targets, val, self.val_limit, self.split_seed, "val_limit"),
            "test": test,
        }
        names = [str(digit) for digit in range(10)]
        data = dataset_of_images(self.name, images, targets, rows, names, "scikit-learn")
        return dataclasses.replace(data, raw=RAW)


def _levels_and_targets() -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 64) levels 0 to 16 and (N,) digits.

    Reads the file in the package of scikit-learn, because importing scikit-learn takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a version with another layout

    levels, targets = load_digits(return_X_y=True)
    return np.asarray(levels), np.asarray(targets)
