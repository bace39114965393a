"""Training splits of which few samples have labels, or none."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch

from raykd.data.dataset import AnySplit, Dataset, FileSplit, Split
from raykd.tasks.base import UNLABELED, is_labeled

_LABELS = 0x6C6162656C
"""Key of the choice of labels, so that it is independent of the choice of splits."""


def keep_labels(data: Dataset, count: int, seed: int) -> Dataset:
    """Return the data set with `count` labels of each class in the training split.

    The target of every other training sample is `UNLABELED`.  Validation and test splits keep
    their labels.

    Args:
        data: with class numbers as targets.
        count: labels of each class.
        seed: the choice is a pure function of it.

    Raises:
        ValueError: a class has fewer training samples, or targets are not class numbers.
    """
    targets = data.train.targets.cpu().numpy()
    if targets.dtype.kind == "f":
        raise ValueError("labels_per_class counts labels of classes, and the data have values")
    generator = np.random.default_rng((seed, _LABELS))
    chosen = np.full_like(targets, UNLABELED)
    for number, name in enumerate(data.class_names):
        members = np.flatnonzero(targets == number)
        if len(members) < count:
            raise ValueError(
                f"class '{name}' has {len(members)} training samples, and labels_per_class is "
                f"{count}; set it to at most {len(members)}"
            )
        chosen[generator.permutation(members)[:count]] = number
    train = _with_targets(data.train, torch.from_numpy(chosen).to(data.train.targets.device))
    digest = hashlib.sha256(data.fingerprint.encode() + chosen.tobytes())
    note = _note(count, count * data.classes, len(targets))
    return dataclasses.replace(
        data, train=train, fingerprint=digest.hexdigest(), notes=(*data.notes, note)
    )


def labeled_samples(data: Dataset) -> Dataset:
    """Return the data set with a training split of its labeled samples alone.

    They are repeated to the size of the whole split, so that an epoch has equally many steps; each
    repetition has other sample numbers, and so another augmentation.

    Raises:
        ValueError: no training sample has a label.
    """
    targets, total = data.train.targets, len(data.train)
    rows = torch.nonzero(is_labeled(targets))[:, 0]
    if not len(rows):
        raise ValueError("no training sample has a label; raise data.labels_per_class")
    if len(rows) == total:
        return data
    places = torch.arange(total, device=rows.device)
    rows, repetition = rows[places % len(rows)], places // len(rows)
    index = data.train.index[rows] + repetition * data.data_size
    if isinstance(data.train, FileSplit):
        paths = tuple(data.train.paths[row] for row in rows.tolist())
        train: AnySplit = dataclasses.replace(
            data.train, paths=paths, targets=targets[rows], index=index
        )
    else:
        train = Split(data.train.take(rows), targets[rows], index)
    return dataclasses.replace(data, train=train)


def _with_targets(split: AnySplit, targets: torch.Tensor) -> AnySplit:
    return dataclasses.replace(split, targets=targets)


def _note(count: int, labeled: int, total: int) -> str:
    if not count:
        return (
            "no labels of training samples are used (labels_per_class: 0): there is no student "
            "without a teacher to compare with"
        )
    return (
        f"{labeled:,} of {total:,} training samples have a label (labels_per_class: {count}); a "
        "student without a teacher sees these alone"
    )
