"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from raykd.data.augment import Augments, HorizontalFlip, RandomCrop
from raykd.data.dataset import Dataset, Fraction, Limit, Root, Source, SplitSeed, ValLimit
from raykd.data.download import missing_data, reachable
from raykd.data.splits import at_most, dataset_of_images, hold_out
from raykd.registry import option

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


@option
class _Cifar(Source):
    """Base class of CIFAR-10 and CIFAR-100."""

    root: Root = "data"
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = (RandomCrop(), HorizontalFlip())

    title: ClassVar[str]
    classes: ClassVar[int]
    folder: ClassVar[str]

    def declared_shape(self) -> tuple[tuple[int, ...], int]:
        return (3, 32, 32), self.classes

    def check(self) -> None:
        if not self._folder().is_dir() and not reachable(self._torchvision().url):
            raise self._missing("its mirror does not answer")

    def load(self) -> Dataset:
        train, test = self._part(train=True), self._part(train=False)
        images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
        targets = np.array(train.targets + test.targets)
        rest, val = hold_out(targets, np.arange(len(train.data)), self.val, self.split_seed, "val")
        rows = {
            "train": at_most(targets, rest, self.limit, self.split_seed, "limit"),
            "val": at_most(targets, val, self.val_limit, self.split_seed, "val_limit"),
            "test": np.arange(len(train.data), len(targets)),
        }
        origin = str(self._folder())
        return dataset_of_images(self.name, images, targets, rows, train.classes, origin)

    def _part(self, train: bool) -> CIFAR10:
        kind, root = self._torchvision(), Path(self.root).expanduser()
        try:
            return kind(str(root), train=train, download=False)
        except (OSError, RuntimeError):  # missing, or with other checksums
            pass
        try:
            return kind(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise self._missing(str(error)) from error

    def _torchvision(self) -> type[CIFAR10]:
        raise NotImplementedError

    def _folder(self) -> Path:
        return Path(self.root).expanduser() / self.folder

    def _missing(self, cause: str) -> ValueError:
        folder, kind = self._folder(), self._torchvision()
        state = " (incomplete or damaged)" if folder.is_dir() else ""
        remedies = (
            f"unpack {kind.filename} (the Python version of {self.title}) into {folder.parent}",
            f"set data.root to the folder that contains {folder.name}",
        )
        return missing_data(self.title, [f"{folder}{state}"], remedies, cause)


@option
class Cifar10(_Cifar):
    """60,000 color photos, 32x32 pixels, 10 classes.

    Krizhevsky 2009.  Searched in `root`, in the layout of torchvision, then downloaded there.
    Normalized with the mean and standard deviation of the training split.
    """

    paper = "Krizhevsky 2009, Learning multiple layers of features from tiny images"

    name: Literal["cifar10"] = "cifar10"

    title: ClassVar[str] = "CIFAR-10"
    classes: ClassVar[int] = 10
    folder: ClassVar[str] = "cifar-10-batches-py"

    def _torchvision(self) -> type[CIFAR10]:
        from torchvision import datasets

        return datasets.CIFAR10


@option
class Cifar100(_Cifar):
    """60,000 color photos, 32x32 pixels, 100 classes.

    Krizhevsky 2009.  Searched in `root`, in the layout of torchvision, then downloaded there.
    Normalized with the mean and standard deviation of the training split.
    """

    paper = "Krizhevsky 2009, Learning multiple layers of features from tiny images"

    name: Literal["cifar100"] = "cifar100"

    title: ClassVar[str] = "CIFAR-100"
    classes: ClassVar[int] = 100
    folder: ClassVar[str] = "cifar-100-python"

    def _torchvision(self) -> type[CIFAR10]:
        from torchvision import datasets

        return datasets.CIFAR100
