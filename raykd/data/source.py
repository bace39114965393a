"""The shape every data source has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from raykd.data.batch import Inputs


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: the source's name.
        train, val, test: its splits.
        classes: number of classes.
        class_names: one name a class.
        input_shape: one sample's shape without the batch.
        mean, std: per channel, of the training split scaled to [0, 1]; empty where there is
            nothing to normalise.
        fingerprint: hex digest of the bytes of all splits; another digest, other data.
        origin: where it was found (a path, a package).
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    origin: str

    @property
    def data_size(self) -> int:
        """One more than the largest sample number."""
        return 1 + max(int(split.index.max()) for split in (self.train, self.val, self.test))

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}


class Source:
    """Base of every data source option."""

    name: str

    def task_shape(self) -> tuple[tuple[int, ...], int] | None:
        """(input shape, classes) where both are known without reading the data, else None."""
        return None

    def check(self) -> None:
        """See cheaply whether the data can be had (no download, no decoding).

        Raises:
            ValueError: it cannot; says where it was looked for and the remedies.
        """

    def load(self) -> Dataset:
        """Read (download where allowed) and split the data.

        Raises:
            ValueError: the data cannot be had; says where it was looked for and the remedies.
        """
        raise NotImplementedError
