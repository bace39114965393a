"""Cut a data set into training, validation and test splits, and measure it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raykd.data.dataset import PARTS, AnySplit, Dataset, FileSplit, Split

DECODER = 2
"""Version of the conversion from files to pixels; part of the fingerprint of data on disk."""


def stratified(
    targets: np.ndarray, count: int, seed: int, name: str, *, leave: int = 1
) -> np.ndarray:
    """Choose `count` samples so that classes keep their proportions.

    Args:
        targets: (N,) class indices.
        count: number of samples to choose.
        seed: the choice is a pure function of it.
        name: purpose of the choice in messages ("val").
        leave: number of samples of each class to leave.

    Returns:
        (N,) bool, True for the chosen samples; at least one of each class.

    Raises:
        ValueError: too few samples to choose one and leave `leave` of each class.
    """
    classes, sizes = np.unique(targets, return_counts=True)
    _check_enough(classes, sizes, count, name, leave)
    shares = _shares(sizes, count, leave)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), dtype=bool)
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(targets == label)
        chosen[generator.permutation(members)[:share]] = True
    return chosen


def _check_enough(
    classes: np.ndarray, sizes: np.ndarray, count: int, name: str, leave: int
) -> None:
    if sizes.min() < 1 + leave:
        raise ValueError(
            f"{name}: class {classes[sizes.argmin()]} has {sizes.min()} sample(s), too few to "
            f"choose one and leave {leave}; add samples or remove the class"
        )
    most = int(sizes.sum()) - leave * len(classes)
    if not len(classes) <= count <= most:
        raise ValueError(
            f"{name} would take {count} of {sizes.sum()} samples; with {len(classes)} classes it "
            f"must take {len(classes)} to {most}; change `{name}`"
        )


def _shares(sizes: np.ndarray, count: int, leave: int) -> np.ndarray:
    """Return sample counts of the classes, `count` in total, by the largest remainder method."""
    ideal = count * sizes / sizes.sum()
    shares = np.clip(np.floor(ideal).astype(int), 1, sizes - leave)
    while shares.sum() < count:
        shares[np.where(shares < sizes - leave, ideal - shares, -np.inf).argmax()] += 1
    while shares.sum() > count:
        shares[np.where(shares > 1, shares - ideal, -np.inf).argmax()] -= 1
    return shares


class SplitOptions(Protocol):
    """Fields of a source that decide its splits."""

    @property
    def val(self) -> float: ...
    @property
    def test(self) -> float: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def val_limit(self) -> int | None: ...


def split_rows(
    rows: Mapping[str, np.ndarray],
    targets: np.ndarray,
    options: SplitOptions,
    class_names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Return the rows of `train`, `val` and `test`.

    Missing splits are split off `train`; then splits are reduced to their limits.

    Args:
        rows: rows of the splits that the data have, including `train`.
        targets: (N,) class indices of all samples.
        options: the source.
        class_names: names in messages; default: the indices.

    Raises:
        ValueError: too few samples in total or of a class.
    """
    splits, seed = dict(rows), options.split_seed
    cut = [split for split in ("test", "val") if split not in rows]
    _check_class_sizes(targets[rows["train"]], 1 + len(cut), class_names)
    for number, part in enumerate(cut, start=1):
        fraction = {"test": options.test, "val": options.val}[part]
        leave = 1 + len(cut) - number  # for train, and for the splits that follow
        splits["train"], splits[part] = hold_out(
            targets, splits["train"], fraction, seed, part, leave=leave
        )
    splits["train"] = at_most(targets, splits["train"], options.limit, seed, "limit")
    splits["val"] = at_most(targets, splits["val"], options.val_limit, seed, "val_limit")
    return splits


def random_rows(
    rows: Mapping[str, np.ndarray], options: SplitOptions, *, place: str, source: str
) -> dict[str, np.ndarray]:
    """Return the rows of `train`, `val` and `test` of samples that have no single class.

    Missing splits are drawn at random from `train`; then splits are reduced to their limits.

    Args:
        rows: rows of the splits that the data have, including `train`.
        options: of the source.
        place: of a split, for messages, with `{part}` for its name.
        source: name of the source, for messages.

    Raises:
        ValueError: there are too few samples.
    """
    splits, generator = dict(rows), np.random.default_rng(options.split_seed)
    for part, share in (("test", options.test), ("val", options.val)):
        if part in splits:
            continue
        count = max(1, round(share * len(splits["train"])))
        if count >= len(splits["train"]):
            raise ValueError(
                f"{source}: {len(rows['train'])} training images are too few to leave some for "
                f"{part}; add images, or {place.format(part=part)}"
            )
        order = generator.permutation(splits["train"])
        splits[part], splits["train"] = np.sort(order[:count]), np.sort(order[count:])
    for part, most in (("train", options.limit), ("val", options.val_limit)):
        if most is not None and most < len(splits[part]):
            splits[part] = np.sort(generator.permutation(splits[part])[:most])
    return splits


def _check_class_sizes(targets: np.ndarray, least: int, class_names: Sequence[str]) -> None:
    """Check that each class has a sample for each split."""
    classes, sizes = np.unique(targets, return_counts=True)
    few = np.flatnonzero(sizes < least)
    if not len(few):
        return
    label, size = int(classes[few[0]]), int(sizes[few[0]])
    name = repr(class_names[label]) if class_names else str(label)
    more = f" (and {len(few) - 1} more classes have too few)" if len(few) > 1 else ""
    samples = "sample" if size == 1 else "samples"
    raise ValueError(
        f"class {name} has {size} {samples}{more}; the splits need at least {least}: add samples "
        "or remove the class"
    )


def hold_out(
    targets: np.ndarray,
    rows: np.ndarray,
    fraction: float,
    seed: int,
    name: str,
    *,
    leave: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Split a stratified `fraction` off `rows`; return (the rest, the fraction), both in order."""
    chosen = stratified(targets[rows], round(fraction * len(rows)), seed, name, leave=leave)
    return rows[~chosen], rows[chosen]


def at_most(
    targets: np.ndarray, rows: np.ndarray, limit: int | None, seed: int, name: str
) -> np.ndarray:
    """Return `rows`, reduced to a stratified choice of `limit` rows if there are more."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[stratified(targets[rows], limit, seed, name, leave=0)]


def dataset_of_images(
    name: str,
    images: np.ndarray,
    targets: np.ndarray,
    rows: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    origin: str,
) -> Dataset:
    """Return a data set of images in memory.

    Args:
        name: name of the source.
        images: (N, C, H, W) uint8, all images.
        targets: (N,) class indices.
        rows: rows of each split; the row of a sample is its number.
        class_names: names of the classes.
        origin: path or package of the data.
    """
    splits = {part: resident(images[rows[part]], targets, rows[part]) for part in PARTS}
    sample = torch.from_numpy(images[rows["train"]])
    return dataset_of_splits(name, splits, sample, class_names, origin)


def resident(images: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> Split:
    """Return the split of the rows, with the images of these rows and the targets of all."""
    return Split(
        inputs=torch.from_numpy(images),
        targets=torch.from_numpy(targets[rows].astype(np.int64)),
        index=torch.from_numpy(rows.astype(np.int64)),
    )


def dataset_of_splits(
    name: str,
    splits: Mapping[str, AnySplit],
    sample: Tensor,
    class_names: Sequence[str],
    origin: str,
    file_sizes: Mapping[str, int] | None = None,
) -> Dataset:
    """Return a data set of images that are cut into splits already.

    Args:
        name: the source's name.
        splits: by part.
        sample: (N, C, H, W) uint8, the training images to measure mean and deviation by.
        class_names: one a class.
        origin: where they were found.
        file_sizes: in bytes by path, for images that stay on disk.
    """
    mean, std = channel_statistics(sample)
    return Dataset(
        name=name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=len(class_names),
        class_names=tuple(class_names),
        input_shape=tuple(sample.shape[1:]),
        mean=mean,
        std=std,
        fingerprint=fingerprint(splits, file_sizes or {}),
        origin=origin,
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, of values scaled to [0, 1].

    Exact: worked out in float64 from the counts of the 256 levels.  A constant channel gets the
    deviation 1.

    Args:
        images: (N, C, H, W) uint8.
    """
    levels = np.arange(256) / 255.0
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = np.bincount(channel.numpy().ravel(), minlength=256)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5 or 1.0)
    return tuple(means), tuple(deviations)


def fingerprint(splits: Mapping[str, AnySplit], file_sizes: Mapping[str, int]) -> str:
    """Hex digest of the splits: of all bytes, or for files of their paths and sizes in bytes."""
    digest = hashlib.sha256()
    for part, split in splits.items():
        _feed(digest, f"{part}/targets", split.targets)
        _feed(digest, f"{part}/index", split.index)
        if isinstance(split, FileSplit):
            listing = [(path, file_sizes.get(path)) for path in split.paths]
            rules = (DECODER, split.rules.background, split.rules.value_range)
            digest.update(repr((part, split.shape, rules, listing)).encode())
        elif isinstance(split.inputs, Tensor):
            _feed(digest, f"{part}/inputs", split.inputs)
        else:
            for key, value in sorted(split.inputs.items()):
                _feed(digest, f"{part}/inputs/{key}", value)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, label: str, value: Tensor) -> None:
    array = np.ascontiguousarray(value.cpu().numpy())
    digest.update(f"{label} {array.dtype} {array.shape}".encode())
    digest.update(array.data)
