"""Folders of images with masks, for segmentation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from raykd.data.augment import Augments
from raykd.data.dataset import (
    PARTS,
    Channels,
    Dataset,
    Fraction,
    ImageSize,
    Limit,
    Raw,
    Root,
    Source,
    Split,
    SplitSeed,
    Survey,
    TestFraction,
    ValLimit,
)
from raykd.data.decode import (
    SUFFIXES,
    DecodingLog,
    by,
    center_part,
    decode_all,
    naming,
    open_image,
)
from raykd.data.directory_tree import FollowedLinks, is_hidden
from raykd.data.directory_tree import Root as TreeRoot
from raykd.data.download import folder_path
from raykd.data.pixels import PLAIN
from raykd.data.splits import dataset_of_splits, random_rows
from raykd.registry import option
from raykd.tasks import Segmentation, Task
from raykd.tasks.statistics import IGNORED

MASK_SUFFIXES = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})
"""Suffixes of masks: formats that keep every value."""

MASK_MODES = frozenset({"1", "L", "P"})
"""Modes of Pillow with one class number a pixel."""

CLASSES = "classes.txt"

CHECKED = 200
"""Number of masks that are decoded in a check; all are when the data are loaded."""


@dataclass(frozen=True)
class Pairs:
    """Images of a data set with their masks.

    Attributes:
        images, masks: N files, relative to the root.
        rows: numbers of the images in each split that has a folder.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    rows: Mapping[str, np.ndarray]


@option
class MaskFolder(Source):
    """Images with masks: `root/train/images/NAME.*`, `root/train/masks/NAME.png`.

    A mask has one channel with the class number of each pixel; 255 marks pixels that do not count.
    A palette has no meaning. `root/val` and `root/test` are read alike; a split without a folder is
    drawn at random from the training images. The class names are the lines of `root/classes.txt`,
    the first of class 0. The largest centered part of each image is resized to `size`, masks by the
    nearest pixel. Images are decoded once and stored in memory.
    """

    name: Literal["mask_folder"] = "mask_folder"
    root: Root = "data"
    size: ImageSize = None
    channels: Channels = 3
    class_names: Annotated[
        tuple[str, ...] | None,
        Field(
            min_length=2,
            description="Names of classes 0, 1, 2 ... null: the lines of `classes.txt` in `root`, "
            "otherwise the class numbers in the training masks",
        ),
    ] = None
    links: FollowedLinks = "inside"
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    def default_task(self) -> Task:
        return Segmentation()

    def declared_shape(self) -> tuple[tuple[int, ...], int] | None:
        try:
            names = self._names()
            if not names:
                return None
            return (self.channels, *self._sides(self._pairs())), len(names)
        except ValueError:
            return None  # `check` reports the reason

    def check(self) -> None:
        pairs = self._pairs()
        self._rows(pairs)
        self._check_sizes(pairs)
        names = self._names()
        rows = np.unique(np.linspace(0, len(pairs.masks) - 1, CHECKED).astype(int))
        self._read_masks([pairs.masks[row] for row in rows], None, len(names))

    def survey(self) -> Survey | None:
        self.check()
        names = self._names()
        if not names:
            return None
        rows = self._rows(self._pairs())
        return Survey({part: len(rows[part]) for part in PARTS}, names, origin=self._root)

    def load(self) -> Dataset:
        pairs = self._pairs()
        rows = self._rows(pairs)
        self._check_sizes(pairs)
        height, width = self._sides(pairs)
        names = self._names()
        log = DecodingLog()
        splits = {
            part: self._split(pairs, rows[part], (height, width), len(names), log) for part in PARTS
        }
        if log.counts["turned"]:
            raise ValueError(
                f"mask_folder: {log.first['turned']} is turned by its EXIF orientation, and a mask "
                "is not; write the pixels upright, without orientation"
            )
        if not names:
            names = tuple(map(str, range(_largest(splits["train"]) + 1)))
            _check_later_splits(splits, len(names))
        sample = splits["train"].inputs
        assert isinstance(sample, torch.Tensor)
        data = dataset_of_splits(self.name, splits, sample, names, self._root)
        color = "RGB" if self.channels == 3 else "grayscale"
        return replace(
            data,
            notes=(*self._split_note(pairs), *shares(splits), *log.notes(PLAIN)),
            warnings=(*missing_classes(self.name, splits, names), *log.warnings(PLAIN)),
            raw=Raw(
                preparation=f"the file as {color}, its largest centered part of that ratio resized "
                f"to {height}x{width}"
            ),
        )

    @property
    def _root(self) -> str:
        return str(folder_path(self.root))

    def _names(self) -> tuple[str, ...]:
        """Return the class names; () if they are not listed."""
        file = Path(self._root) / CLASSES
        TreeRoot.of(self.name, self._root, self.links).check_entry(CLASSES)
        names = self.class_names
        if names is None and file.is_file():
            names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
        place = "data.class_names" if self.class_names is not None else str(file)
        twice = [name for name, count in Counter(names or ()).items() if count > 1]
        if twice:
            raise ValueError(f"mask_folder: {place} lists {twice[0]!r} twice; use distinct names")
        if names is not None and not 2 <= len(names) <= IGNORED:
            raise ValueError(
                f"mask_folder: {place} lists {len(names)} classes; 2 to {IGNORED} are allowed"
            )
        return names or ()

    def _pairs(self) -> Pairs:
        """List the images and masks.

        Raises:
            ValueError: a folder is missing, an image has no mask or a mask no image, or a link
                leads outside the root.
        """
        root = Path(self._root)
        tree = TreeRoot.of(self.name, self._root, self.links)
        images: list[str] = []
        masks: list[str] = []
        rows: dict[str, np.ndarray] = {}
        for part in PARTS:
            if part != "train" and not (root / part).is_dir():
                continue
            pairs = _list_pairs(root, part)
            for image, mask in pairs:
                tree.check_entry(image)
                tree.check_entry(mask)
            rows[part] = np.arange(len(images), len(images) + len(pairs))
            images += [image for image, _ in pairs]
            masks += [mask for _, mask in pairs]
        return Pairs(tuple(images), tuple(masks), rows)

    def _rows(self, pairs: Pairs) -> dict[str, np.ndarray]:
        """Return the rows of each split, at random where there is no folder."""
        return random_rows(pairs.rows, self, place="a folder `{part}`", source=self.name)

    def _split_note(self, pairs: Pairs) -> list[str]:
        shares = {"test": self.test, "val": self.val}
        cut = [f"{part} ({share:g})" for part, share in shares.items() if part not in pairs.rows]
        return [f"drawn from the training images: {', then '.join(cut)}"] if cut else []

    def _sides(self, pairs: Pairs) -> tuple[int, int]:
        """Return the height and width of the images."""
        if self.size is not None:
            return self.size, self.size
        width, height = _size(Path(self._root) / pairs.images[0])
        return height, width

    def _check_sizes(self, pairs: Pairs) -> None:
        """Check the headers: a mask has the size of its image, and all images the same size."""
        root = Path(self._root)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            images = list(pool.map(lambda name: _size(root / name), pairs.images))
            masks = list(pool.map(lambda name: _mask_size(root / name), pairs.masks))
        for image, mask, size, mask_size in zip(
            pairs.images, pairs.masks, images, masks, strict=True
        ):
            if size != mask_size:
                raise ValueError(
                    f"mask_folder: {mask} has {by(mask_size)} pixels, and its image {image} "
                    f"{by(size)}; write a mask of the size of the image"
                )
            if self.size is None and size != images[0]:
                raise ValueError(
                    f"mask_folder: {image} has {by(size)} pixels, and {pairs.images[0]} "
                    f"{by(images[0])}; set data.size to resize them"
                )

    def _split(
        self,
        pairs: Pairs,
        rows: np.ndarray,
        sides: tuple[int, int],
        classes: int,
        log: DecodingLog,
    ) -> Split:
        images = [pairs.images[row] for row in rows]
        decoded = decode_all(self._root, images, (self.channels, *sides), PLAIN, log)
        masks = self._read_masks([pairs.masks[row] for row in rows], sides, classes)
        return Split(
            inputs=torch.from_numpy(decoded),
            targets=torch.from_numpy(np.stack(masks)),
            index=torch.from_numpy(rows.astype(np.int64)),
        )

    def _read_masks(
        self, files: Sequence[str], sides: tuple[int, int] | None, classes: int
    ) -> list[np.ndarray]:
        """Decode masks, resized to `sides`; `classes` 0: any class number is allowed.

        Raises:
            ValueError: a class number is too large.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            masks = list(pool.map(lambda name: _read(Path(self._root) / name, sides), files))
        for file, mask in zip(files, masks, strict=True):
            counted = mask[mask != IGNORED]
            if classes and len(counted) and counted.max() >= classes:
                raise ValueError(
                    f"mask_folder: {file} has the class number {counted.max()}, and there are "
                    f"{classes} classes, 0 to {classes - 1}; add its name to data.class_names or "
                    f"{CLASSES}, or write {IGNORED} for pixels that do not count"
                )
        return masks


def _list_pairs(root: Path, part: str) -> list[tuple[str, str]]:
    """Return the images of a split and their masks, in the order of names."""
    images = _files(root, f"{part}/images", SUFFIXES)
    masks = _files(root, f"{part}/masks", MASK_SUFFIXES)
    alone = [(images[name], "mask", f"{part}/masks/{name}.png") for name in images.keys() - masks]
    alone += [(masks[name], "image", f"{part}/images/{name}.*") for name in masks.keys() - images]
    if alone:
        file, other, place = min(alone)
        more = f" (and {len(alone) - 1} more files)" if len(alone) > 1 else ""
        raise ValueError(
            f"mask_folder: {file} has no {other}{more}; add {place}, or remove the file"
        )
    return [(images[name], masks[name]) for name in sorted(images)]


def _files(root: Path, folder: str, suffixes: frozenset[str]) -> dict[str, str]:
    """Return the files of a folder with one of the suffixes, by their names without suffix."""
    if not (root / folder).is_dir():
        raise ValueError(
            f"mask_folder: there is no folder {root / folder}; images are read from "
            "ROOT/train/images and masks of the same names from ROOT/train/masks, and alike for "
            "val and test"
        )
    names = sorted(name for name in os.listdir(root / folder) if not is_hidden(name))
    lossy = next((n for n in names if Path(n).suffix.lower() in (".jpg", ".jpeg")), None)
    if lossy is not None and suffixes is MASK_SUFFIXES:
        raise ValueError(
            f"mask_folder: {folder}/{lossy} is a JPEG, which does not keep class numbers; write "
            "masks as PNG"
        )
    files: dict[str, str] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        if stem in files:
            raise ValueError(
                f"mask_folder: {files[stem]} and {folder}/{name} have the same name; remove one"
            )
        files[stem] = f"{folder}/{name}"
    if not files:
        allowed = ", ".join(sorted(suffixes))
        raise ValueError(f"mask_folder: {root / folder} has no file of the formats {allowed}")
    return files


def _size(path: Path) -> tuple[int, int]:
    """Return the (width, height) of an image."""
    with naming(path), open_image(path) as image:
        return image.size


def _mask_size(path: Path) -> tuple[int, int]:
    with naming(path), open_image(path) as image:
        size, mode = image.size, image.mode
    if mode not in MASK_MODES:
        raise ValueError(
            f"mask_folder: {path} has the mode {mode} of Pillow; a mask has one channel of class "
            "numbers (L, or P with a palette): convert colors to class numbers"
        )
    return size


def _read(path: Path, sides: tuple[int, int] | None) -> np.ndarray:
    """Return a mask, (H, W) uint8, resized to `sides`; its header was checked before."""
    with naming(path), open_image(path) as image:
        image.load()
        if sides is None or image.size == (sides[1], sides[0]):
            return np.array(image).astype(np.uint8)
        return np.array(center_part(image, *sides, nearest=True)).astype(np.uint8)


def _largest(split: Split) -> int:
    counted = split.targets[split.targets != IGNORED]
    if not len(counted):
        raise ValueError(f"mask_folder: every pixel of the training masks is {IGNORED}")
    return int(counted.max())


def _check_later_splits(splits: Mapping[str, Split], classes: int) -> None:
    for part in ("val", "test"):
        largest = _largest(splits[part])
        if largest >= classes:
            raise ValueError(
                f"mask_folder: a {part} mask has the class number {largest}, the largest of the "
                f"training masks is {classes - 1}; list the classes in data.class_names or "
                f"{CLASSES}"
            )


def shares(splits: Mapping[str, Split]) -> Iterator[str]:
    """Yield a note on the share of positions that do not count, if there are any."""
    targets = splits["train"].targets
    share = float((targets == IGNORED).double().mean())
    if share:
        yield f"{share:.1%} of the positions of the training masks do not count ({IGNORED})"


def missing_classes(
    source: str, splits: Mapping[str, Split], names: Sequence[str]
) -> Iterator[str]:
    """Yield a warning for each split whose masks lack classes.

    Raises:
        ValueError: no position of a split counts.
    """
    for part, split in splits.items():
        counts = torch.bincount(split.targets.flatten().long(), minlength=IGNORED + 1)
        missing = [name for number, name in enumerate(names) if not counts[number]]
        if not counts[:IGNORED].any():
            raise ValueError(f"{source}: every pixel of the {part} masks is {IGNORED}")
        if missing:
            yield f"{len(missing)} of {len(names)} classes are in no {part} mask: {missing[0]}"
