"""Data sets of samples that are already in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykd.data.dataset import Dataset, Split
from raykd.data.splits import dataset_of_splits, fingerprint

Sample = tuple[Tensor | np.ndarray, int]
"""(inputs, class)."""


class Samples(Protocol):
    """Sequence of samples, such as a `torch.utils.data.Dataset` with a length."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


def dataset_of_samples(
    name: str, train: Samples, val: Samples, test: Samples, *, class_names: Sequence[str]
) -> Dataset:
    """Return a data set in memory of samples with a class each.

    Args:
        name: name of the source.
        train, val, test: samples of each split, all of one shape and type: (C, H, W) uint8 images,
            which are normalized, or float tensors, which are used as they are.
        class_names: names of the classes, in the order of their indices.

    Raises:
        ValueError: a split is empty, its samples differ in shape, or a class does not exist.
    """
    splits: dict[str, Split] = {}
    first = 0
    for part, samples in (("train", train), ("val", val), ("test", test)):
        splits[part] = _split(part, samples, first, len(class_names))
        first += len(samples)
    inputs = splits["train"].inputs
    assert isinstance(inputs, Tensor), "_split stacks tensors"
    if inputs.dtype == torch.uint8:
        return dataset_of_splits(name, splits, inputs, class_names, name)
    return Dataset(
        name=name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=len(class_names),
        class_names=tuple(class_names),
        input_shape=tuple(inputs.shape[1:]),
        mean=(),
        std=(),
        fingerprint=fingerprint(splits, {}),
        origin=name,
    )


def _split(part: str, samples: Samples, first: int, classes: int) -> Split:
    pairs = [samples[row] for row in range(len(samples))]
    if not pairs:
        raise ValueError(f"{part}: there are no samples")
    inputs = [torch.as_tensor(sample) for sample, _ in pairs]
    shapes = {(tuple(each.shape), each.dtype) for each in inputs}
    if len(shapes) > 1:
        listed = ", ".join(f"{shape} {dtype}" for shape, dtype in sorted(shapes, key=str)[:3])
        raise ValueError(f"{part}: samples differ in shape or type: {listed}")
    targets = torch.tensor([int(label) for _, label in pairs])
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(
            f"{part}: classes are {int(targets.min())} to {int(targets.max())}; {classes} class "
            f"names allow 0 to {classes - 1}"
        )
    stacked = torch.stack(inputs)
    if stacked.is_floating_point():
        stacked = stacked.float()
    return Split(inputs=stacked, targets=targets, index=first + torch.arange(len(pairs)))
