"""Duplicate samples: in several splits, or with several labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np


def duplicate_warnings(
    samples: Sequence[Hashable],
    targets: np.ndarray,
    rows: Mapping[str, np.ndarray],
    noun: str,
) -> Iterator[str]:
    """Warn about equal samples in several splits or with several labels.

    Args:
        samples: (N,) content of each sample.
        targets: (N,) class indices.
        rows: samples of each split.
        noun: name of a sample in messages, such as "text".
    """
    train = {samples[row] for row in rows["train"]}
    for split in ("val", "test"):
        equal = sum(samples[row] in train for row in rows[split])
        if equal:
            yield (
                f"{equal:,} of {len(rows[split]):,} {split} {noun}s are also in the training "
                f"split: {split} accuracy is too high; remove duplicates"
            )
    labels: dict[Hashable, set[int]] = {}
    used = np.concatenate([rows[split] for split in ("train", "val", "test")])
    for row in used.tolist():
        labels.setdefault(samples[row], set()).add(int(targets[row]))
    several = {sample for sample, classes in labels.items() if len(classes) > 1}
    if several:
        count = sum(samples[row] in several for row in used.tolist())
        yield (
            f"{count:,} samples have the same {noun} as samples with another label; correct their "
            "labels"
        )
