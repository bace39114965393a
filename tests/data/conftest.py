"""Small real and synthetic data sets for the data tests."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.box_files import write_coco
from helpers.docstrings import write_corpus
from helpers.mask_files import write_mask_folder
from helpers.pictures_at_hand import write_fashion_mnist
from raykd.data import Dataset, Source
from raykd.data.digits import Digits


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make network access fail."""

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refused)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return Digits().load()


@pytest.fixture
def write_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Writer of a tiny CIFAR-10 or -100 in torchvision's layout, with matching checksums."""
    from torchvision import datasets

    # The real files' checksums cannot hold for made-up ones; all else is torchvision's own.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)

    def write(root: Path, classes: int) -> None:
        kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
        folder = root / kind.base_folder
        folder.mkdir(parents=True)
        key = "labels" if classes == 10 else "fine_labels"
        generator = np.random.default_rng(0)
        for file, _ in kind.train_list + kind.test_list:
            data = generator.integers(0, 256, (10 * classes, 3072), dtype=np.uint8)
            labels = list(range(classes)) * 10
            (folder / file).write_bytes(pickle.dumps({"data": data, key: labels}))
        names = [f"class {label}" for label in range(classes)]
        (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))

    return write


@pytest.fixture
def write_pictures() -> Callable[[Path, int], None]:
    """Writer of `count` PNG images of random pixels, 12 wide and 10 high, to a new folder."""

    def write(folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        generator = np.random.default_rng(len(str(folder)))
        for number in range(count):
            pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")

    return write


@pytest.fixture
def pictures(tmp_path: Path, write_pictures: Callable[[Path, int], None]) -> Path:
    """A folder of two classes, 20 images each."""
    for name in ("cat", "dog"):
        write_pictures(tmp_path / name, 20)
    return tmp_path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a table of docstrings, labeled with their modules, and a tokenizer."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def fashion_mnist_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with synthetic files in the layout of Fashion-MNIST."""
    root = tmp_path_factory.mktemp("fashion_mnist")
    write_fashion_mnist(root / "FashionMNIST" / "raw")
    return root


@pytest.fixture
def make_source(
    tmp_path: Path,
    write_cifar: Callable[[Path, int], None],
    request: pytest.FixtureRequest,
) -> Callable[[type], Source]:
    """Function that builds a source of a class with data made here or from a package."""

    def make(cls: type) -> Source:
        options: dict[str, object] = {}
        if cls.__name__ == "FashionMnist":
            root = request.getfixturevalue("fashion_mnist_files")
            options = {"root": str(root), "limit": 1000, "val_limit": 200}
        elif cls.__name__ in ("Cifar10", "Cifar100"):
            write_cifar(tmp_path, 10 if cls.__name__ == "Cifar10" else 100)
            options = {"root": str(tmp_path), "val": 0.2}
        elif cls.__name__ == "ImageFolder":
            options = {"root": str(request.getfixturevalue("pictures")), "size": 8}
        elif cls.__name__ == "MaskFolder":
            options = {"root": str(write_mask_folder(tmp_path, 45))}
        elif cls.__name__ == "Coco":
            options = {"root": str(write_coco(tmp_path, 45))}
        elif cls.__name__ == "Texts":
            corpus = request.getfixturevalue("corpus")
            options = {"file": str(corpus / "table.csv"), "tokenizer": str(corpus / "tokenizer")}
        elif cls.__name__ == "TabularSource":
            lines = [f"{row / 7},{'abc'[row % 3]},{row % 5}" for row in range(300)]
            (tmp_path / "table.csv").write_text("\n".join(["size,color,price", *lines]))
            options = {"file": str(tmp_path / "table.csv"), "target": "color", "kind": "class"}
        return cls(**options)

    return make
