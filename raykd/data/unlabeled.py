"""Training samples without labels, mixed with those of the data (`data.unlabeled`)."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raykd.data.batch import Inputs
from raykd.data.dataset import Dataset, Source, Split, Unlabeled
from raykd.data.decode import SUFFIXES, decode_all
from raykd.data.directory_tree import Root
from raykd.tasks.base import UNLABELED

_CHOICE = 0x756E6C6162656C
"""Key of the choice of `limit` samples."""


def ratio_of(source: Source) -> float:
    """Return the unlabeled samples for each sample of a batch; 0 if there are none."""
    return 0.0 if source.unlabeled is None else source.unlabeled.ratio


def check_unlabeled(settings: Unlabeled) -> None:
    """Check quickly that the samples are available.

    Raises:
        ValueError: they are not.
    """
    if settings.data is not None:
        settings.data.check()
    if settings.folder is not None:
        _files(settings.folder)


def add_unlabeled(data: Dataset, settings: Unlabeled) -> Dataset:
    """Return the data set with samples without labels at the end of its training split.

    They are numbered after those of the data, and normalized like them.

    Raises:
        ValueError: the samples are missing, or of another shape than those of the data.
    """
    train = data.train
    if not isinstance(train, Split) or not isinstance(train.inputs, Tensor):
        raise ValueError(
            "unlabeled: these images are read from disk batch by batch; raise "
            "data.resident_limit_mb, so that unlabeled ones can be mixed with them"
        )
    inputs, place = _inputs(data, settings)
    if settings.limit is not None and settings.limit < len(inputs):
        generator = np.random.default_rng(_CHOICE)
        chosen = np.sort(generator.permutation(len(inputs))[: settings.limit])
        inputs = inputs[torch.from_numpy(chosen)]
    count, device = len(inputs), train.targets.device
    targets = _missing(train.targets, count)
    index = data.data_size + torch.arange(count, device=device)
    digest = hashlib.sha256(data.fingerprint.encode())
    digest.update(np.ascontiguousarray(inputs.numpy()).data)
    return dataclasses.replace(
        data,
        train=Split(
            torch.cat([train.inputs, inputs.to(device)]),
            torch.cat([train.targets, targets]),
            torch.cat([train.index, index]),
        ),
        fingerprint=digest.hexdigest(),
        unlabeled=count,
        notes=(*data.notes, f"{count:,} training samples without labels from {place}"),
        warnings=(*data.warnings, *_overlaps(data, inputs)),
    )


def remove_unlabeled(data: Dataset) -> Dataset:
    """Return the data set without the samples that `add_unlabeled` has added."""
    if not data.unlabeled:
        return data
    assert isinstance(data.train, Split), "checked when they were added"
    rows = torch.arange(len(data.train) - data.unlabeled, device=data.train.targets.device)
    train = Split(data.train.take(rows), data.train.targets[rows], data.train.index[rows])
    return dataclasses.replace(data, train=train, unlabeled=0)


def epoch_targets(data: Dataset, ratio: float) -> Tensor:
    """Return the targets of the training samples of an epoch.

    Args:
        data: with unlabeled samples or without.
        ratio: unlabeled samples for each other sample.
    """
    targets = data.train.targets
    if not data.unlabeled:
        return targets
    labeled = targets[: len(targets) - data.unlabeled]
    return torch.cat([labeled, _missing(targets, round(len(labeled) * ratio))])


def _missing(targets: Tensor, count: int) -> Tensor:
    value = float("nan") if targets.is_floating_point() else UNLABELED
    return targets.new_full((count, *targets.shape[1:]), value)


def _inputs(data: Dataset, settings: Unlabeled) -> tuple[Tensor, str]:
    """Return the samples on the CPU, and their origin."""
    if settings.data is not None:
        source = settings.data.load()
        inputs = source.train.take(torch.arange(len(source.train)))
        place = f"'{source.name}' ({source.origin})"
    else:
        assert settings.folder is not None, "checked with the study"
        inputs, place = _decoded(data, settings.folder), settings.folder
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, Tensor)
    ours, theirs = _form(data.train.inputs), _form(inputs)
    if not isinstance(inputs, Tensor) or ours != theirs:
        raise ValueError(
            f"unlabeled: the samples of {place} are {theirs}, those of the data {ours}; use "
            "samples of the same shape and type"
        )
    return inputs, place


def _form(inputs: Inputs) -> str:
    if not isinstance(inputs, Tensor):
        return "texts"
    return f"{tuple(inputs.shape[1:])} {str(inputs.dtype).removeprefix('torch.')}"


def _decoded(data: Dataset, folder: str) -> Tensor:
    shape = data.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(
            f"unlabeled: samples of the data have shape {shape}; a `folder` gives square images of "
            "1 or 3 channels; name a data source: `unlabeled: {data: {...}}`"
        )
    paths = sorted(_files(folder))
    root = str(Path(folder).expanduser())
    return torch.from_numpy(decode_all(root, paths, (shape[0], shape[1], shape[2])))


def _files(folder: str) -> list[str]:
    """Return the images below a folder, without hidden ones.

    Raises:
        ValueError: there are none, or a link leads outside the folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"unlabeled: there is no folder {root.absolute()}")
    tree = Root.of("unlabeled", str(root.absolute()), option=None)
    folders = tree.folder().walk(set())
    paths = [image.path for folder in folders for image in folder.entries.images]
    if not paths:
        raise ValueError(
            f"unlabeled: {root.absolute()} has no image ({', '.join(sorted(SUFFIXES))})"
        )
    return paths


def _overlaps(data: Dataset, inputs: Tensor) -> list[str]:
    """Return a warning for each evaluated split with samples that are among the unlabeled ones."""
    texts = []
    digests = {_digest(sample) for sample in inputs}
    for part in ("val", "test"):
        split = data.split(part)
        assert isinstance(split, Split) and isinstance(split.inputs, Tensor)
        equal = sum(_digest(sample) in digests for sample in split.inputs.cpu())
        if equal:
            texts.append(
                f"{equal:,} of {len(split):,} {part} samples are also among the unlabeled samples: "
                "the student learns from them before it is measured on them"
            )
    return texts


def _digest(sample: Tensor) -> bytes:
    return hashlib.blake2b(sample.numpy().tobytes(), digest_size=16).digest()
