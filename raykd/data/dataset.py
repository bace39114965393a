"""The shape every data source has."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raykd.data.pixels import PLAIN, Rules
from raykd.registry import Registry, option

if TYPE_CHECKING:
    from raykd.data.augment import Augment
    from raykd.data.batch import Inputs

PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

Fraction = Annotated[
    float, Field(gt=0, lt=1, description="Fraction of the training samples used for validation")
]
TestFraction = Annotated[
    float, Field(gt=0, lt=1, description="Fraction of all samples used for testing")
]
SplitSeed = Annotated[int, Field(ge=0, lt=2**31, description="Random seed of the split")]
Limit = Annotated[int | None, Field(ge=1, description="Maximum number of training samples")]
ValLimit = Annotated[int | None, Field(ge=1, description="Maximum number of validation samples")]
Root = Annotated[
    str, Field(min_length=1, description="Folder of the data; downloads are stored there")
]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, resident in memory.

    Attributes:
        inputs: (N, C, H, W) uint8 for pictures, or a mapping of (N, ...) tensors.
        targets: (N,) int64 class indices.
        index: (N,) int64, each sample's number in the whole data set (unique over all splits).
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; no copy where it is there already."""
        return Split(
            inputs=_moved(self.inputs, device),
            targets=self.targets.to(device),
            index=self.index.to(device),
        )

    def take(self, rows: Tensor) -> Inputs:
        """The inputs of those rows, as they are stored."""
        if isinstance(self.inputs, Tensor):
            return self.inputs.index_select(0, rows)
        return {key: value.index_select(0, rows) for key, value in self.inputs.items()}


@dataclass(frozen=True, eq=False)
class FileSplit:
    """One part of a data set of pictures too large to be resident: files, decoded when asked for.

    Attributes:
        root: the folder `paths` are relative to; every worker must be able to read it.
        paths: (N,) one file a sample.
        targets, index: as in `Split`.
        shape: (C, H, W) of a decoded picture.
        workers: decoding processes a reader of this split starts; 0: decode in its own process.
        rules: how stored values become 8-bit pixels.
    """

    root: str
    paths: tuple[str, ...]
    targets: Tensor
    index: Tensor
    shape: tuple[int, int, int]
    workers: int
    rules: Rules = PLAIN

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> FileSplit:
        """The same split, its targets and index on `device`; pictures move batch by batch."""
        return dataclasses.replace(
            self, targets=self.targets.to(device), index=self.index.to(device)
        )

    def take(self, rows: Tensor) -> Tensor:
        """The decoded pictures of those rows, (B, C, H, W) uint8 on the CPU."""
        from raykd.data.decode import decode_files

        paths = [self.paths[row] for row in rows.tolist()]
        return decode_files(self.root, paths, self.shape, self.rules)


AnySplit = Split | FileSplit


@dataclass(frozen=True)
class Survey:
    """A cheap look at the files of a data source: nothing is decoded.

    Attributes:
        sizes: samples of each split.
        class_names: one name per class, in the order of the class indices.
        notes: sentences on how the data were read: recognized split folders, skipped entries.
        warnings: sentences on what may make results wrong.
        origin: path or package the data come from.
    """

    sizes: Mapping[str, int]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class Raw:
    """Samples as users of the data have them, where that is not what `Split` stores.

    Attributes:
        maximum: largest value of a pixel; stored is round(value * 255 / maximum).
        dtype: NumPy's name of their type; empty: the stored one.
        shape: of one sample; empty: `Dataset.input_shape`.
        preparation: one sentence on the way from files to samples.
    """

    maximum: float = 255.0
    dtype: str = ""
    shape: tuple[int, ...] = ()
    preparation: str = ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split.

    Attributes:
        name: the source's name.
        train, val, test: its splits.
        classes: number of classes.
        class_names: one name a class.
        input_shape: one sample's shape without the batch.
        mean, std: per channel, of the training split scaled to [0, 1]; empty where there is
            nothing to normalize.
        fingerprint: hex digest of the bytes of all splits (for files that stay on disk, of their
            paths and sizes); another digest, other data.
        origin: where it was found (a path, a package).
        vocabulary: how many tokens the texts are made of; 0: they are no texts.
        padding: the token that short texts are filled up with.
        notes: sentences on how the data were read: recognized split folders, skipped entries.
        warnings: sentences on what may make results wrong.
        raw: samples as users have them.
    """

    name: str
    train: AnySplit
    val: AnySplit
    test: AnySplit
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    origin: str
    vocabulary: int = 0
    padding: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    raw: Raw = Raw()

    @property
    def data_size(self) -> int:
        """One more than the largest sample number."""
        return 1 + max(int(split.index.max()) for split in (self.train, self.val, self.test))

    @property
    def sizes(self) -> Mapping[str, int]:
        """Samples in each split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}

    def split(self, part: Literal["train", "val", "test"]) -> AnySplit:
        """The split called `part`."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on `device`: moved once, shared by every `BatchLoader` made of it."""
        train, val, test = (self.split(part).to(device) for part in PARTS)
        return dataclasses.replace(self, train=train, val=val, test=test)

    def arrays(self) -> dict[str, Any]:
        """The data set as NumPy arrays and plain values, for a store that shares arrays.

        A split's parts stand under `train/targets` and the like; an input that is a mapping under
        `train/inputs/KEY`.  Nothing is copied when the data are on the CPU.
        """
        flat: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in PARTS
        }
        for part in PARTS:
            for key, value in _split_arrays(self.split(part)).items():
                flat[f"{part}/{key}"] = value
        return flat

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Dataset:
        """Undo `arrays`.  Read-only arrays are used where they lie, and never written to."""
        plain = {key: value for key, value in arrays.items() if "/" not in key}
        train, val, test = (_split_from(_under(arrays, f"{part}/")) for part in PARTS)
        return cls(**plain, train=train, val=val, test=test)


@option
class Source:
    """Base of every data source option.

    Attributes:
        paper: who made the data: author, year, arXiv number; empty where nobody is named.
        augment: what is done to the training pictures, in this order.
    """

    name: str
    paper: ClassVar[str] = ""
    augment: tuple[Augment, ...] = ()

    def task_shape(self) -> tuple[tuple[int, ...], int] | None:
        """(input shape, classes) where both are known without reading the data, else None."""
        return None

    def check(self) -> None:
        """See cheaply whether the data can be had (no download, no decoding).

        Raises:
            ValueError: it cannot; says where it was looked for and the remedies.
        """

    def survey(self) -> Survey | None:
        """Count classes and samples by a cheap look at the files: no download, no decoding.

        Returns:
            None where only reading the data would tell.

        Raises:
            ValueError: as `check`.
        """
        return None

    def load(self) -> Dataset:
        """Read (download where allowed) and split the data.

        Raises:
            ValueError: the data cannot be had; says where it was looked for and the remedies.
        """
        raise NotImplementedError


SOURCES = Registry("data source", base=Source, entry_points="raykd.data")
"""Data sources that a study may name; `raykd.data` adds them."""

AnySource = Annotated[Source, SOURCES]
"""Type of a field that holds a data source."""


_OF_FILES = ("root", "paths", "shape", "workers", "rules")
"""Fields of a `FileSplit` that are no arrays."""


def _moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {key: value.to(device) for key, value in inputs.items()}


def _split_arrays(split: AnySplit) -> dict[str, Any]:
    found: dict[str, Any] = {
        "targets": split.targets.cpu().numpy(),
        "index": split.index.cpu().numpy(),
    }
    if isinstance(split, FileSplit):
        return found | {key: getattr(split, key) for key in _OF_FILES}
    if isinstance(split.inputs, Tensor):
        return found | {"inputs": split.inputs.cpu().numpy()}
    return found | {f"inputs/{key}": value.cpu().numpy() for key, value in split.inputs.items()}


def _split_from(flat: Mapping[str, Any]) -> AnySplit:
    targets, index = _tensor(flat["targets"]), _tensor(flat["index"])
    if "paths" in flat:
        plain = {key: flat[key] for key in _OF_FILES}
        return FileSplit(targets=targets, index=index, **plain)
    if "inputs" in flat:
        return Split(inputs=_tensor(flat["inputs"]), targets=targets, index=index)
    inputs = {key: _tensor(value) for key, value in _under(flat, "inputs/").items()}
    return Split(inputs=inputs, targets=targets, index=index)


def _under(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): flat[key] for key in flat if key.startswith(prefix)}


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Arrays of a shared store are read-only, of which torch warns; splits are never written.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
