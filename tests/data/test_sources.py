"""Every source: splits, sizes, fingerprints, transfer as arrays, missing data."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from helpers.pictures_at_hand import write_fashion_mnist
from raykd.data import (
    SOURCES,
    AnySource,
    BatchLoader,
    Dataset,
    FileSplit,
    Inputs,
    Source,
    Split,
    ViewOptions,
)
from raykd.data.augment import Augments
from raykd.data.cifar import Cifar10, Cifar100
from raykd.data.dataset import PARTS
from raykd.data.digits import Digits
from raykd.data.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from raykd.data.image_folder import ImageFolder
from raykd.data.splits import channel_statistics, stratified
from raykd.registry import option
from raykd.tasks.detection import NO_BOX
from raykd.tasks.statistics import IGNORED

MakeSource = Callable[[type], Source]
WritePictures = Callable[[Path, int], None]


def resident(dataset: Dataset, part: str) -> Split:
    split = dataset.split(part)  # type: ignore[arg-type]
    assert isinstance(split, Split)
    return split


def tensors(inputs: Inputs) -> list[torch.Tensor]:
    return [inputs] if isinstance(inputs, torch.Tensor) else list(inputs.values())


@pytest.mark.parametrize("cls", list(SOURCES), ids=lambda cls: cls.__name__)
class TestEverySource:
    def test_splits_are_complete_and_disjoint(self, cls: type, make_source: MakeSource) -> None:
        dataset = make_source(cls).load()
        numbers = torch.cat([dataset.split(part).index for part in PARTS])
        assert len(numbers.unique()) == len(numbers)
        assert dataset.data_size == int(numbers.max()) + 1
        assert dataset.sizes == {part: len(dataset.split(part)) for part in PARTS}
        for part in PARTS:
            split = dataset.split(part)
            assert split.index.dtype == torch.int64
            classes = split.targets[..., 4] if dataset.has_boxes else split.targets
            kind = torch.uint8 if dataset.is_dense else torch.int64
            assert classes.dtype == (torch.float32 if dataset.has_boxes else kind)
            numbers = set(classes.unique().tolist()) - {IGNORED, NO_BOX}
            assert numbers == set(range(dataset.classes))
            for inputs in tensors(split.take(torch.arange(2))):
                assert inputs.shape == (2, *dataset.input_shape)

    def test_declared_facts_match_data(self, cls: type, make_source: MakeSource) -> None:
        source = make_source(cls)
        dataset = source.load()
        assert source.declared_shape() in (None, (dataset.input_shape, dataset.classes))
        assert dataset.name == source.name
        assert len(dataset.class_names) == dataset.classes
        assert dataset.origin

    def test_training_images_are_standardized(self, cls: type, make_source: MakeSource) -> None:
        dataset = make_source(cls).load()
        if not dataset.mean:
            pytest.skip("no images")
        batches = BatchLoader(dataset.train, dataset, batch_size=4096, shuffle_seed=None)
        inputs = torch.cat([torch.as_tensor(batch.inputs) for batch in batches.epoch(0)])
        assert inputs.dtype == torch.float32
        assert inputs.mean((0, 2, 3)).abs().max() < 1e-4
        assert inputs.std((0, 2, 3)).sub(1).abs().max() < 1e-3

    def test_loading_is_reproducible(self, cls: type, make_source: MakeSource) -> None:
        source = make_source(cls)
        first, second = source.load(), source.load()
        other = dataclasses.replace(source, split_seed=1).load()  # type: ignore[call-arg]
        assert first.fingerprint == second.fingerprint
        assert torch.equal(first.train.index, second.train.index)
        assert first.fingerprint != other.fingerprint
        assert not torch.equal(first.train.index, other.train.index)

    def test_read_only_arrays_round_trip(self, cls: type, make_source: MakeSource) -> None:
        dataset = make_source(cls).load()
        arrays = dataset.arrays()
        for value in arrays.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        back = Dataset.from_arrays(arrays)
        assert back.arrays().keys() == arrays.keys()
        assert (back.fingerprint, back.mean, back.sizes) == (
            dataset.fingerprint,
            dataset.mean,
            dataset.sizes,
        )
        for part in PARTS:
            rows = torch.arange(3)
            copies = tensors(back.split(part).take(rows)), tensors(dataset.split(part).take(rows))
            assert all(map(torch.equal, *copies))
            shared = back.split(part).targets.data_ptr()
            assert shared == arrays[f"{part}/targets"].ctypes.data

    def test_limits_are_stratified(self, cls: type, make_source: MakeSource) -> None:
        source = make_source(cls)
        classes = source.load().classes
        if source.load().train.targets.dim() == 3:
            pytest.skip("images hold several classes; tests of their sources look at limits")
        few = dataclasses.replace(source, limit=2 * classes, val_limit=classes).load()  # type: ignore[call-arg]
        assert few.sizes["train"] == 2 * classes
        assert few.sizes["val"] == classes
        counts = few.train.targets.bincount()
        assert counts.min() >= 1
        assert counts.max() <= 4

    def test_unknown_keys_raise(self, cls: type, make_source: MakeSource) -> None:
        fields = {"name": cls.name, "splitseed": 1}  # type: ignore[attr-defined]
        with pytest.raises(ValidationError, match="splitseed"):
            TypeAdapter(AnySource).validate_python(fields)


def test_digits_equal_scikit_learns(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    levels, targets = load_digits(return_X_y=True)
    assert digits.sizes == {"train": 1222, "val": 216, "test": 359}
    for part in PARTS:
        split = resident(digits, part)
        assert isinstance(split.inputs, torch.Tensor)
        back = (split.inputs.double() * 16 / 255).round().reshape(-1, 64)
        assert np.array_equal(back.numpy(), levels[split.index.numpy()])
        assert np.array_equal(split.targets.numpy(), targets[split.index.numpy()])


def test_changed_pixel_changes_fingerprint(pictures: Path) -> None:
    before = ImageFolder(root=str(pictures), size=10).load()
    from PIL import Image

    file = pictures / "cat" / "000.png"
    with Image.open(file) as image:
        pixels = np.asarray(image).copy()
    pixels[5, 5] ^= 255
    Image.fromarray(pixels).save(file)
    assert ImageFolder(root=str(pictures), size=10).load().fingerprint != before.fingerprint


class TestFashionMnist:
    @pytest.mark.parametrize(("below", "packed"), [("FashionMNIST/raw", False), (".", True)])
    def test_files_under_root_take_precedence(
        self, tmp_path: Path, below: str, packed: bool
    ) -> None:
        folder = tmp_path / "root" / below
        write_fashion_mnist(folder, packed)
        dataset = FashionMnist(root=str(tmp_path / "root"), limit=100).load()
        assert Path(dataset.origin) == folder
        inputs = resident(dataset, "train").inputs
        assert isinstance(inputs, torch.Tensor)
        assert torch.equal(inputs[:, 0, 3, 4].long(), dataset.train.targets * 20)
        assert int(dataset.test.index.min()) == 60_000

    def test_damaged_files_are_named(self, tmp_path: Path) -> None:
        write_fashion_mnist(tmp_path / "root", packed=True)
        damaged = tmp_path / "root" / "train-images-idx3-ubyte.gz"
        damaged.write_bytes(damaged.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
            FashionMnist(root=str(tmp_path / "root")).load()

    def test_labels_of_other_data_raise(self, tmp_path: Path) -> None:
        write_fashion_mnist(tmp_path / "root", packed=False)
        labels = tmp_path / "root" / "t10k-labels-idx1-ubyte"
        labels.write_bytes(labels.read_bytes()[:-1] + b"\x19")
        with pytest.raises(ValueError, match="holds the label 25"):
            FashionMnist(root=str(tmp_path / "root")).load()

    def test_files_that_unpack_to_any_size(self, tmp_path: Path) -> None:
        write_fashion_mnist(tmp_path / "root", packed=True)
        (file,) = (tmp_path / "root").rglob("train-labels*.gz")
        file.write_bytes(gzip.compress(bytes(60_000_000), 1))
        with pytest.raises(ValueError, match=r"train-labels.*more than 47,040,016 bytes"):
            FashionMnist(root=str(tmp_path / "root")).load()

    def test_too_few_images_raise(self, tmp_path: Path) -> None:
        write_fashion_mnist(tmp_path / "root", packed=False, train=100)
        with pytest.raises(ValueError, match=r"holds \(100, 28, 28\), not \(60000, 28, 28\)"):
            FashionMnist(root=str(tmp_path / "root")).load()

    @pytest.mark.parametrize("verb", ["check", "load"])
    def test_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
        monkeypatch.setattr("raykd.data.fashion_mnist.DEBIAN_FOLDER", tmp_path / "debian")
        source = FashionMnist(root=str(tmp_path / "root"))
        with pytest.raises(ValueError, match="dataset-fashion-mnist") as caught:
            getattr(source, verb)()
        message = str(caught.value)
        for part in (tmp_path / "root", tmp_path / "debian", "dataset-fashion-mnist", "data.root"):
            assert str(part) in message

    @pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package is not installed")
    def test_debian_package(self) -> None:
        dataset = FashionMnist(root="/nonexistent").load()
        assert dataset.origin == str(DEBIAN_FOLDER)
        assert dataset.sizes == {"train": 54_000, "val": 6_000, "test": 10_000}
        # The published figures of the 60,000: mean 0.2860, deviation 0.3530.
        assert dataset.mean[0] == pytest.approx(0.2860, abs=1e-3)
        assert dataset.std[0] == pytest.approx(0.3530, abs=1e-3)
        assert dataset.train.targets.bincount().tolist() == [5400] * 10


class TestCifar:
    @pytest.mark.parametrize(("cls", "classes"), [(Cifar10, 10), (Cifar100, 100)])
    def test_stored_images(
        self,
        tmp_path: Path,
        write_cifar: Callable[[Path, int], None],
        cls: type[Cifar10] | type[Cifar100],
        classes: int,
    ) -> None:
        write_cifar(tmp_path, classes)
        dataset = cls(root=str(tmp_path), val=0.2).load()
        stored = pickle.loads(
            (tmp_path / cls.folder / ("test_batch" if classes == 10 else "test")).read_bytes()
        )
        test = resident(dataset, "test")
        assert np.array_equal(
            torch.as_tensor(test.inputs).numpy().reshape(-1, 3072), stored["data"]
        )
        assert dataset.class_names[1] == "class 1"
        assert int(test.index.min()) == dataset.sizes["train"] + dataset.sizes["val"]

    @pytest.mark.parametrize("verb", ["check", "load"])
    @pytest.mark.parametrize("cls", [Cifar10, Cifar100])
    def test_missing(self, tmp_path: Path, cls: type[Source], verb: str) -> None:
        source = cls(root=str(tmp_path))  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="could not be downloaded") as caught:
            getattr(source, verb)()
        assert str(tmp_path) in str(caught.value)
        assert "-python.tar.gz" in str(caught.value)

    def test_damaged(self, tmp_path: Path) -> None:
        folder = tmp_path / Cifar10.folder
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(b"half a file")
        with pytest.raises(ValueError, match="incomplete or damaged"):
            Cifar10(root=str(tmp_path)).load()


class TestImageFolder:
    def test_separate_split_folders(self, tmp_path: Path, write_pictures: WritePictures) -> None:
        for part, count in (("train", 10), ("val", 3), ("test", 4)):
            for name in ("cat", "dog"):
                write_pictures(tmp_path / part / name, count)
        dataset = ImageFolder(root=str(tmp_path), size=8).load()
        assert dataset.sizes == {"train": 20, "val": 6, "test": 8}
        assert dataset.class_names == ("cat", "dog")

    def test_only_train_folder(self, tmp_path: Path, write_pictures: WritePictures) -> None:
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "train" / name, 10)
        dataset = ImageFolder(root=str(tmp_path), size=8).load()
        assert dataset.sizes == {"train": 14, "val": 2, "test": 4}

    def test_center_crop(self, tmp_path: Path, write_pictures: WritePictures) -> None:
        from PIL import Image

        for name in ("cat", "dog"):
            write_pictures(tmp_path / name, 20)
        wide = np.zeros((8, 16, 3), dtype=np.uint8)
        wide[:, 4:12] = (10, 200, 30)
        Image.fromarray(wide).save(tmp_path / "cat" / "000.png")
        dataset = ImageFolder(root=str(tmp_path), size=8).load()
        (split,) = [s for s in (dataset.train, dataset.val, dataset.test) if 0 in s.index]
        picture = torch.as_tensor(split.take((split.index == 0).nonzero()[0]))[0]
        assert torch.equal(
            picture, torch.tensor([10, 200, 30], dtype=torch.uint8).expand(8, 8, 3).permute(2, 0, 1)
        )

    def test_grayscale(self, pictures: Path) -> None:
        assert ImageFolder(root=str(pictures), size=8, channels=1).load().input_shape == (1, 8, 8)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_disk_loading_equals_resident_loading(self, pictures: Path, workers: int) -> None:
        source = ImageFolder(root=str(pictures), size=8, workers=workers)
        in_memory = source.load()
        on_disk = dataclasses.replace(source, resident_limit_mb=0).load()
        assert isinstance(on_disk.train, FileSplit)
        for augment in ((), "batched", "per sample"):
            for left, right in zip(
                epochs(in_memory, augment), epochs(on_disk, augment), strict=True
            ):
                assert torch.equal(left.index, right.index)
                assert torch.equal(left.targets, right.targets)
                assert torch.allclose(left.inputs, right.inputs, atol=1e-6)

    def test_epoch_after_interrupted_epoch(self, pictures: Path) -> None:
        source = ImageFolder(root=str(pictures), size=8, workers=1, resident_limit_mb=0)
        dataset = source.load()
        batches = BatchLoader(dataset.train, dataset, batch_size=4, shuffle_seed=0)
        next(batches.epoch(0))
        numbers = torch.cat([batch.index for batch in batches.epoch(1)])
        assert sorted(numbers.tolist()) == sorted(dataset.train.index.tolist())

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"is not a folder; set data\.root"):
            ImageFolder(root=str(tmp_path / "none")).check()
        assert ImageFolder(root=str(tmp_path / "none")).declared_shape() is None

    def test_one_class(self, tmp_path: Path, write_pictures: WritePictures) -> None:
        write_pictures(tmp_path / "cat", 2)
        with pytest.raises(ValueError, match=r"at least two"):
            ImageFolder(root=str(tmp_path)).load()

    def test_empty_class(self, pictures: Path) -> None:
        (pictures / "emu").mkdir()
        with pytest.raises(ValueError, match="emu/ holds no image"):
            ImageFolder(root=str(pictures)).load()

    def test_class_unknown_to_training(self, tmp_path: Path, write_pictures: WritePictures) -> None:
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "train" / name, 5)
        write_pictures(tmp_path / "test" / "dgo", 5)
        with pytest.raises(ValueError, match="'dgo', which is not a class"):
            ImageFolder(root=str(tmp_path)).load()

    def test_broken_image(self, pictures: Path) -> None:
        (pictures / "cat" / "999.jpg").write_bytes(b"not an image")
        with pytest.raises(ValueError, match=r"999\.jpg cannot be decoded"):
            ImageFolder(root=str(pictures)).load()


def epochs(dataset: Dataset, augment: object) -> list:
    from raykd.data.augment import HorizontalFlip, RandomCrop, Rotation

    steps = {"batched": (RandomCrop(padding=2), HorizontalFlip()), "per sample": (Rotation(),)}
    chosen = steps.get(augment, ()) if isinstance(augment, str) else ()
    views = ViewOptions(chosen)
    batches = BatchLoader(dataset.train, dataset, batch_size=8, shuffle_seed=3, views=views)
    return [batch for epoch in (0, 1) for batch in batches.epoch(epoch)]


class TestStratified:
    def test_proportions(self) -> None:
        targets = np.repeat([0, 1, 2], [600, 300, 100])
        chosen = stratified(targets, 100, seed=0, name="val")
        assert np.bincount(targets[chosen]).tolist() == [60, 30, 10]

    def test_rare_classes_keep_one_sample_on_each_side(self) -> None:
        targets = np.repeat([0, 1], [98, 2])
        assert np.bincount(targets[stratified(targets, 10, 0, "val")]).tolist() == [9, 1]
        assert np.bincount(targets[stratified(targets, 99 - 1, 0, "val")]).tolist() == [97, 1]

    @pytest.mark.parametrize("count", [1, 99, 100])
    def test_impossible_counts(self, count: int) -> None:
        with pytest.raises(ValueError, match="must take 2 to 98; change `val`"):
            stratified(np.repeat([0, 1], 50), count, 0, "val")

    def test_single_sample_class(self) -> None:
        with pytest.raises(ValueError, match="class 1 has 1 sample"):
            stratified(np.repeat([0, 1], [9, 1]), 4, 0, "val")


def test_digits_split_too_small() -> None:
    with pytest.raises(ValueError, match="change `val`"):
        Digits(val=0.001).load()
    with pytest.raises(ValueError, match="change `limit`"):
        Digits(limit=5).load()


def test_channel_statistics_by_hand() -> None:
    pictures = torch.tensor([[[[0, 255]], [[51, 51]]]], dtype=torch.uint8)
    assert channel_statistics(pictures) == ((0.5, pytest.approx(0.2)), (0.5, 1.0))


def test_mapping_inputs_survive_array_round_trip() -> None:
    tokens = {"tokens": torch.arange(12).reshape(4, 3), "mask": torch.ones(4, 3)}
    split = Split(inputs=tokens, targets=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
    dataset = Dataset("text", split, split, split, 2, ("a", "b"), (3,), (), (), "f", "here")
    back = resident(Dataset.from_arrays(dataset.arrays()), "val")
    assert not isinstance(back.inputs, torch.Tensor)
    assert {key: value.tolist() for key, value in back.inputs.items()} == {
        key: value.tolist() for key, value in tokens.items()
    }
    (batch,) = BatchLoader(split, dataset, batch_size=4, shuffle_seed=0).epoch(0)
    assert not isinstance(batch.inputs, torch.Tensor)
    assert torch.equal(batch.inputs["tokens"], tokens["tokens"][batch.index])


def test_notes_and_warnings_survive_array_round_trip(digits: Dataset) -> None:
    marked = dataclasses.replace(digits, notes=("read so",), warnings=("beware",))
    back = Dataset.from_arrays(marked.arrays())
    assert (back.notes, back.warnings) == (("read so",), ("beware",))
    assert back.fingerprint == digits.fingerprint


@option
class Plain(Source):
    """Minimal source."""

    name: Literal["plain"] = "plain"
    augment: Augments = ()


def test_source_without_survey() -> None:
    assert Plain().survey() is None
