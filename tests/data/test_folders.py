"""Folders of images: split names, hidden entries, links, small classes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raykd.data.dataset import Survey
from raykd.data.directory_tree import Folder
from raykd.data.image_folder import ImageFolder
from raykd.data.split_folders import split_of

CLASSES = ("blue", "red")


def write(folder: Path, count: int, suffix: str = ".png") -> None:
    """Write distinct random images."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(abs(hash(str(folder))) % 2**32)
    for number in range(count):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}{suffix}")


def write_split(folder: Path, count: int = 10, classes: tuple[str, ...] = CLASSES) -> None:
    for name in classes:
        write(folder / name, count)


def survey(root: Path, **options: object) -> Survey:
    source = ImageFolder(root=str(root), size=4, **options)  # type: ignore[arg-type]
    source.check()
    result, dataset = source.survey(), source.load()
    assert result.sizes == dataset.sizes
    assert result.class_names == dataset.class_names
    assert result.origin == dataset.origin
    assert source.declared_shape() == (dataset.input_shape, dataset.classes)
    assert dataset.notes[: len(result.notes)] == result.notes
    assert dataset.warnings[: len(result.warnings)] == result.warnings
    return result


def assert_raises(root: Path, match: str, **options: object) -> None:
    source = ImageFolder(root=str(root), size=4, **options)  # type: ignore[arg-type]
    for look in (source.check, source.survey, source.load):
        with pytest.raises(ValueError, match=match):
            look()


def test_pictures_that_unpack_to_any_size(tmp_path: Path) -> None:
    """Their header is enough to refuse them, before a pixel is decoded."""
    write_split(tmp_path)
    side = 30_000
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(part) - 4) + part for part in (head, data, b"IEND"))
    checked = (part + struct.pack(">I", zlib.crc32(part[4:])) for part in chunks)
    (tmp_path / "red" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(checked))
    with pytest.raises(ValueError, match=r"red/bomb\.png cannot be decoded .*178,956,970 pixels"):
        ImageFolder(root=str(tmp_path), size=4).load()


class TestSplitNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("Train", ("train", ())),
            ("Training", ("train", ())),
            ("trn", ("train", ())),
            ("VALID", ("val", ())),
            ("validation", ("val", ())),
            ("dev", ("val", ())),
            ("Testing", ("test", ())),
            ("tst", ("test", ())),
            ("seg_train", ("train", ("seg",))),
            ("train2017", ("train", ("2017",))),
            ("TestImages", ("test", ())),
            ("training_set", ("train", ())),
            ("trainer", None),
            ("contest", None),
            ("train_test", None),
            ("cat", None),
        ],
    )
    def test_each(self, name: str, expected: object) -> None:
        assert split_of(name) == expected

    @pytest.mark.parametrize(
        "names",
        [
            ("Training", "Testing"),
            ("Train", "Test"),
            ("TRAIN", "TEST"),
            ("seg_train/seg_train", "seg_test/seg_test"),
            ("training_set", "test_set"),
            ("train_images", "test_images"),
        ],
    )
    def test_training_and_test(self, tmp_path: Path, names: tuple[str, str]) -> None:
        for name in names:
            write_split(tmp_path / name)
        result = survey(tmp_path)
        assert result.class_names == CLASSES
        assert result.sizes == {"train": 18, "val": 2, "test": 20}
        assert any(f"train from {names[0]}/" in note for note in result.notes)

    @pytest.mark.parametrize("name", ["val", "valid", "validation", "Dev", "eval"])
    def test_validation(self, tmp_path: Path, name: str) -> None:
        write_split(tmp_path / "train")
        write_split(tmp_path / name, 3)
        write_split(tmp_path / "test", 4)
        result = survey(tmp_path)
        assert result.sizes == {"train": 20, "val": 6, "test": 8}
        assert bool(result.notes) == (name != "val")

    def test_two_folders_for_one_split(self, tmp_path: Path) -> None:
        for name in ("train", "val", "valid"):
            write_split(tmp_path / name)
        assert_raises(tmp_path, r"val/, valid/ .*all look like the val split.*data\.val_folder")
        result = survey(tmp_path, train_folder="train", val_folder="valid")
        assert result.sizes == {"train": 16, "val": 20, "test": 4}

    def test_no_training_folder(self, tmp_path: Path) -> None:
        write_split(tmp_path / "test")
        write_split(tmp_path / "rest")
        assert_raises(tmp_path, r"test/ .*no folder is called train")
        result = survey(tmp_path, train_folder="rest", test_folder="test")
        assert result.sizes["test"] == 20

    def test_class_named_train(self, tmp_path: Path) -> None:
        for name in ("bus", "car", "train"):
            write(tmp_path / name, 10)
        assert survey(tmp_path, val=0.2).class_names == ("bus", "car", "train")

    def test_class_named_train_beside_class_folders(self, tmp_path: Path) -> None:
        for name in ("bus", "train"):
            write_split(tmp_path / name, classes=("day", "night"))
        assert_raises(tmp_path, "may be a split or a class")
        assert survey(tmp_path, train_folder=".").class_names == ("bus", "train")

    def test_classes_that_look_like_splits(self, tmp_path: Path) -> None:
        for name in ("site_a", "site_b"):
            write_split(tmp_path / name)
        (warning,) = survey(tmp_path).warnings
        assert "site_a/, site_b/ are read as classes" in warning
        assert "data.train_folder" in warning

    @pytest.mark.parametrize("form", ["{split}_{name}", "{name}-{split}"])
    def test_name_that_contains_split_and_class(self, tmp_path: Path, form: str) -> None:
        for split in ("train", "test"):
            for name in CLASSES:
                write(tmp_path / form.format(split=split, name=name), 20)
        assert_raises(tmp_path, r"hold a split and a class; move the images into train/CLASS/")
        assert len(survey(tmp_path, train_folder=".").class_names) == 4

    @pytest.mark.parametrize("names", [("images", "masks"), ("Img", "ground_truth")])
    def test_folders_of_images_and_masks(self, tmp_path: Path, names: tuple[str, str]) -> None:
        write_split(tmp_path, classes=names)
        (warning,) = survey(tmp_path).warnings
        assert "look like images and their annotations" in warning

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        write(tmp_path / "train", 10)
        write(tmp_path / "test", 10)
        assert_raises(tmp_path, r"train/ holds 0 folder\(s\) and 10 images that are in no folder")

    def test_class_folders_one_level_deeper(self, tmp_path: Path) -> None:
        write_split(tmp_path / "archive")
        assert_raises(tmp_path, r"holds 1 folder\(s\).*name archive/ as data\.root")

    def test_unused_folders_are_named(self, tmp_path: Path) -> None:
        write_split(tmp_path / "train")
        write_split(tmp_path / "test")
        write(tmp_path / "extra", 3)
        write_split(tmp_path / "seg_test")
        result = survey(tmp_path)
        assert any("extra/ next to train/ not used" in note for note in result.notes)
        assert any("seg_test/ next to train/ look like splits" in text for text in result.warnings)

    def test_named_folders_are_checked(self, tmp_path: Path) -> None:
        write_split(tmp_path / "one")
        assert_raises(tmp_path, "did you mean 'one'", train_folder="onw")
        assert_raises(tmp_path, "share files", train_folder="one", test_folder="one")
        assert_raises(tmp_path, "share files", train_folder=".", test_folder="one")
        assert_raises(tmp_path, "holds no folder", train_folder="../one")
        with pytest.raises(ValueError, match="need train_folder"):
            ImageFolder(root=str(tmp_path), val_folder="one")


class TestSplitsAndClasses:
    @pytest.mark.parametrize("split", ["val", "test"])
    @pytest.mark.parametrize("kind", ["flat", "empty classes", "empty"])
    def test_splits_without_images(self, tmp_path: Path, split: str, kind: str) -> None:
        write_split(tmp_path / "train")
        (tmp_path / split).mkdir()
        if kind == "flat":
            write(tmp_path / split, 5)
        elif kind == "empty classes":
            write_split(tmp_path / split, 0)
        assert_raises(tmp_path, rf"{split}/ holds no image of any class \(expected {split}/CLASS")
        assert survey(tmp_path, train_folder="train").sizes["train"] == 14

    @pytest.mark.parametrize(("count", "message"), [(1, "1 sample;"), (2, "2 samples;")])
    def test_classes_with_too_few_images(self, tmp_path: Path, count: int, message: str) -> None:
        write_split(tmp_path)
        write(tmp_path / "zebra", count)
        assert_raises(tmp_path, f"class 'zebra' has {message} the splits need at least 3")

    def test_three_images_are_enough(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        write(tmp_path / "zebra", 3)
        assert survey(tmp_path, test=0.6, val=0.4).sizes["val"] >= 3

    def test_limits_below_number_of_classes(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        assert_raises(tmp_path, "change `limit`", limit=1)
        assert_raises(tmp_path, "change `val_limit`", val_limit=1)

    def test_class_missing_in_split(self, tmp_path: Path) -> None:
        write_split(tmp_path / "train")
        write(tmp_path / "test" / "red", 5)
        (warning,) = survey(tmp_path).warnings
        assert warning == "1 of 2 classes have no image in test: blue"

    def test_class_name_in_another_case(self, tmp_path: Path) -> None:
        write_split(tmp_path / "train")
        write_split(tmp_path / "test", classes=("blue", "Red"))
        assert_raises(tmp_path, r"'Red', which is not a class .*did you mean 'red'")

    def test_class_names_that_differ_only_in_case(self, tmp_path: Path) -> None:
        write_split(tmp_path, classes=("Red", "red", "blue"))
        (warning,) = survey(tmp_path, val=0.2).warnings
        assert "'Red', 'red'" in warning

    def test_unicode_forms_are_one_class(self, tmp_path: Path) -> None:
        composed = unicodedata.normalize("NFC", "café")
        parted = unicodedata.normalize("NFD", "café")
        write_split(tmp_path / "train", classes=("bar", composed))
        write_split(tmp_path / "test", classes=("bar", parted))
        assert survey(tmp_path).class_names == ("bar", composed)
        write(tmp_path / "train" / parted, 2)
        assert_raises(tmp_path, "twice, in two Unicode forms")

    def test_undecodable_class_names(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        os.rename(os.fsencode(tmp_path / "red"), os.fsencode(tmp_path) + b"/r\xe9d")
        assert_raises(tmp_path, r"r\\xe9d/ is not UTF-8")


class TestEntries:
    def test_hidden_and_system_entries(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        names = (".ipynb_checkpoints", ".Trash-1000/files", "@eaDir/00.png", "__MACOSX")
        for name in names:
            write(tmp_path / "red" / name, 3)
        write(tmp_path / "__MACOSX" / "red", 3)
        (tmp_path / "red" / "._00.png").write_bytes(b"\0\5\x16\7")
        (tmp_path / "red" / ".DS_Store").write_bytes(b"x")
        (tmp_path / "red" / "Thumbs.db").write_bytes(b"x")
        result = survey(tmp_path)
        assert result.sizes == {"train": 14, "val": 2, "test": 4}
        assert any(note.startswith("8 hidden or system entries") for note in result.notes)

    def test_folders_named_like_images(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        write(tmp_path / "red" / "a.jpg", 2)
        assert sum(survey(tmp_path).sizes.values()) == 22

    def test_pipes_are_skipped(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        os.mkfifo(tmp_path / "red" / "a.png")
        assert sum(survey(tmp_path).sizes.values()) == 20

    def test_skipped_files_are_counted(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        for number in range(3):
            (tmp_path / "red" / f"{number}.heic").write_bytes(b"x")
        (tmp_path / "blue" / "read.txt").write_bytes(b"x")
        write(tmp_path, 2)
        result = survey(tmp_path)
        assert "3 .heic files are skipped" in result.warnings[1]
        assert "2 images directly in" in result.warnings[0]
        assert any("1 .txt files are not images" in note for note in result.notes)

    def test_gif_is_read(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        write(tmp_path / "red", 5, ".gif")
        assert sum(survey(tmp_path).sizes.values()) == 25

    def test_empty_files(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        (tmp_path / "red" / "a.png").write_bytes(b"")
        assert_raises(tmp_path, r"1 file\(s\) are empty, 0 bytes: red/a\.png")

    def test_survey_reads_headers(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "red" / "00.tif")
        with pytest.raises(ValueError, match=r"00\.tif .*data\.value_range"):
            ImageFolder(root=str(tmp_path)).survey()
        assert survey(tmp_path, value_range=(0, 100_000)).sizes["train"] == 15

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
    def test_unreadable_folders(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        (tmp_path / "red").chmod(0)
        assert_raises(tmp_path, "red cannot be read")

    def test_root_is_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x")
        assert_raises(tmp_path / "a", "is a file; set")
        assert_raises(Path("a\0b"), "NUL")
        assert_raises(Path("~nobody-of-this-name/x"), "is not a valid path")


class TestLinks:
    def test_inside(self, tmp_path: Path) -> None:
        write_split(tmp_path / "data")
        write(tmp_path / "data" / "red" / "more", 2)
        (tmp_path / "data" / "blue" / "link.png").symlink_to("00.png")
        (tmp_path / "data" / "green").symlink_to("../data/red/more")
        (tmp_path / "alias").symlink_to("data")
        assert_raises(tmp_path / "alias", "class 'green' has 2 samples")
        write(tmp_path / "data" / "red" / "more", 5)
        result = survey(tmp_path / "alias", val=0.2)
        assert result.class_names == ("blue", "green", "red")
        assert sum(result.sizes.values()) == 11 + 5 + 10
        assert any("links to folders that are already read" in note for note in result.notes)

    @pytest.mark.parametrize("kind", ["file", "folder", "class"])
    def test_outside(self, tmp_path: Path, kind: str) -> None:
        write_split(tmp_path / "data")
        write(tmp_path / "other", 3)
        place, target = {
            "file": ("data/red/a.png", "other/00.png"),
            "folder": ("data/red/more", "other"),
            "class": ("data/green", "other"),
        }[kind]
        (tmp_path / place).symlink_to(tmp_path / target)
        assert_raises(tmp_path / "data", r"is a link to .*data\.links: anywhere")
        assert survey(tmp_path / "data", links="anywhere", val=0.3).sizes["train"] >= 12

    def test_link_loops_end(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        (tmp_path / "red" / "up").symlink_to(tmp_path)
        (tmp_path / "red" / "self").symlink_to(".")
        for source, target in (("a", "b"), ("b", "a")):
            (tmp_path / "red" / source).mkdir()
            (tmp_path / "red" / source / "link").symlink_to(f"../{target}")
        result = survey(tmp_path)
        assert sum(result.sizes.values()) == 20
        assert any("links to folders" in note for note in result.notes)

    def test_broken_links_are_counted(self, tmp_path: Path) -> None:
        write_split(tmp_path)
        (tmp_path / "red" / "a.png").symlink_to("nothing")
        (tmp_path / "red" / "b.png").symlink_to("b.png")
        (warning,) = survey(tmp_path).warnings
        assert warning.startswith("2 links lead to no file: red/a.png, red/b.png")


class TestEqualImages:
    def test_in_train_and_test(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            write_split(tmp_path / split)
        for number in range(3):
            shutil.copy(tmp_path / f"train/red/0{number}.png", tmp_path / f"test/red/x{number}.png")
        (warning,) = survey(tmp_path).warnings
        assert "of 23 test images are also in the training split" in warning

    def test_in_two_classes(self, tmp_path: Path) -> None:
        write_split(tmp_path, 30)
        for number in range(10):
            shutil.copy(tmp_path / f"red/{number:02}.png", tmp_path / f"blue/x{number}.png")
        assert any("20 samples have the same image" in text for text in survey(tmp_path).warnings)


def test_listing_is_cached_until_folder_changes(tmp_path: Path) -> None:
    write_split(tmp_path)
    old = 1_000_000_000
    for folder in (tmp_path, tmp_path / "blue", tmp_path / "red"):
        os.utime(folder, (old, old))
    source = ImageFolder(root=str(tmp_path), size=4)
    assert source._cached_listing() is source._cached_listing()
    write(tmp_path / "red" / "more", 1)
    assert len(source._cached_listing().images) == 21


def test_deep_folders(tmp_path: Path) -> None:
    write_split(tmp_path)
    deep = tmp_path / "red" / "/".join("d" * 400)
    write(deep, 1)
    assert len(list(Folder.at(str(tmp_path)).walk(set()))) == 3 + 400
    assert sum(survey(tmp_path).sizes.values()) == 21


def test_rules_apply_to_images_on_disk(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(10):
            alpha = np.zeros((4, 4, 4), np.uint8)
            alpha[0, 0, 3] = number
            Image.fromarray(alpha).save(tmp_path / name / f"{number}.png")
    digests = set()
    for background in ("white", "black"):
        source = ImageFolder(root=str(tmp_path), size=4, background=background, workers=0)  # type: ignore[arg-type]
        in_memory = source.load()
        on_disk = dataclasses.replace(source, resident_limit_mb=0).load()
        rows = on_disk.train.index.new_tensor([0, 1])
        left, right = in_memory.train.take(rows), on_disk.train.take(rows)
        assert left.equal(right)  # type: ignore[union-attr, arg-type]
        digests |= {in_memory.fingerprint, on_disk.fingerprint}
    assert len(digests) == 4
