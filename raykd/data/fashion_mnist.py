"""Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from raykd.data.augment import Augments
from raykd.data.dataset import Dataset, Fraction, Limit, Root, Source, SplitSeed, ValLimit
from raykd.data.download import missing_data, reachable
from raykd.data.splits import at_most, dataset_of_images, hold_out
from raykd.registry import option

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the Debian package dataset-fashion-mnist."""

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_TRAIN_SIZE, _TEST_SIZE = 60_000, 10_000
_MAX_BYTES = 16 + _TRAIN_SIZE * 28 * 28


@option
class FashionMnist(Source):
    """70,000 grayscale images of clothing, 28x28 pixels, 10 classes.

    Xiao 2017, arXiv:1708.07747.  Searched in `root` (in the layout of torchvision, or the
    four idx files, compressed or not), then in the folder of the Debian package
    dataset-fashion-mnist, then downloaded into `root` by torchvision.
    """

    paper = "Xiao 2017, arXiv:1708.07747"

    name: Literal["fashion_mnist"] = "fashion_mnist"
    root: Root = "data"
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    class_names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def declared_shape(self) -> tuple[tuple[int, ...], int]:
        return (1, 28, 28), 10

    def check(self) -> None:
        if self._folder() is None and not reachable(_mirror() + _FILES[0] + ".gz"):
            raise self._missing("its mirror does not answer")

    def load(self) -> Dataset:
        folder = self._folder() or self._download()
        images, targets = _read_all(folder)
        train, val = hold_out(targets, np.arange(_TRAIN_SIZE), self.val, self.split_seed, "val")
        rows = {
            "train": at_most(targets, train, self.limit, self.split_seed, "limit"),
            "val": at_most(targets, val, self.val_limit, self.split_seed, "val_limit"),
            "test": np.arange(_TRAIN_SIZE, _TRAIN_SIZE + _TEST_SIZE),
        }
        return dataset_of_images(self.name, images, targets, rows, self.class_names, str(folder))

    def _places(self) -> tuple[Path, ...]:
        root = Path(self.root).expanduser()
        return root / "FashionMNIST" / "raw", root, DEBIAN_FOLDER

    def _folder(self) -> Path | None:
        for place in self._places():
            if all(_file_in(place, file) for file in _FILES):
                return place
        return None

    def _download(self) -> Path:
        from torchvision.datasets import FashionMNIST

        root = Path(self.root).expanduser()
        try:
            FashionMNIST(str(root), train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise self._missing(str(error)) from error
        return root / "FashionMNIST" / "raw"

    def _missing(self, cause: str) -> ValueError:
        remedies = (
            "install the package dataset-fashion-mnist (Debian, Ubuntu)",
            f"copy the four idx files (.gz or not) to {self._places()[0]}",
            "set data.root to the folder that contains them",
        )
        return missing_data("Fashion-MNIST", [str(p) for p in self._places()], remedies, cause)


def _mirror() -> str:
    from torchvision.datasets import FashionMNIST

    return FashionMNIST.mirrors[0]


def _file_in(folder: Path, file: str) -> Path | None:
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    return None


def _read_all(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all images (N, 1, 28, 28) uint8 and labels (N,), the training part first."""
    parts = [_read_idx(folder, file) for file in _FILES]
    expected = [
        (_TRAIN_SIZE, 28, 28),
        (_TRAIN_SIZE,),
        (_TEST_SIZE, 28, 28),
        (_TEST_SIZE,),
    ]
    for file, part, shape in zip(_FILES, parts, expected, strict=True):
        if part.shape != shape:
            raise ValueError(f"{folder / file} holds {part.shape}, not {shape}: copy it again")
    images = np.concatenate([parts[0], parts[2]])[:, None]
    targets = np.concatenate([parts[1], parts[3]])
    if targets.max() > 9:
        raise ValueError(
            f"{folder} holds the label {targets.max()}, but Fashion-MNIST has 0 to 9: copy it again"
        )
    return images, targets


def _read_idx(folder: Path, file: str) -> np.ndarray:
    """Read an idx file of unsigned bytes: 2 zero bytes, type, rank, sizes (big-endian), data."""
    path = _file_in(folder, file)
    assert path is not None
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as content:
            raw = content.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("not an idx file of unsigned bytes")
        rank = raw[3]
        shape = np.frombuffer(raw, ">i4", count=rank, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy or download it again") from error
