"""Folders of images, one per class."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from raykd.data.augment import Augments
from raykd.data.dataset import (
    PARTS,
    Channels,
    Dataset,
    FileSplit,
    Fraction,
    Limit,
    Raw,
    Root,
    Source,
    SplitSeed,
    Survey,
    TestFraction,
    ValLimit,
)
from raykd.data.decode import DecodingLog, decode_all
from raykd.data.directory_tree import Folder, FollowedLinks
from raykd.data.download import folder_path
from raykd.data.image_listing import (
    Listing,
    check_headers,
    class_folders,
    equal_images,
    list_images,
)
from raykd.data.pixels import Background, Rules
from raykd.data.split_folders import Layout, named_layout, recognized_layout
from raykd.data.splits import dataset_of_splits, resident, split_rows
from raykd.registry import option

_STATISTICS_SAMPLE = 2048


@dataclass(frozen=True)
class _CachedListing:
    """A listing, and the times of the last change of its folders.

    Attributes:
        key: fields of the source that decide its files.
        listing: the files.
        stamps: time of the last change of each folder, in ns.
        began: time at which the folders were read, in ns.
    """

    key: tuple[str | None, ...]
    listing: Listing
    stamps: Mapping[str, int]
    began: int

    def is_valid(self) -> bool:
        """Return whether the folders are unchanged; recent changes may have the same time stamp."""
        try:
            return all(
                os.stat(folder).st_mtime_ns == stamp < self.began - _TIME_RESOLUTION
                for folder, stamp in self.stamps.items()
            )
        except OSError:
            return False


_last: list[_CachedListing] = []
"""The last listing, if any: `survey` follows `check`."""

_TIME_RESOLUTION = 2_000_000_000
"""Coarsest resolution of file times, in ns."""


@option
class ImageFolder(Source):
    """Images in one folder per class: `root/train/CLASS/...` or `root/CLASS/...`.

    Split folders are recognized by their names in any case (`Training`, `valid`, `seg_test`); a
    split without a folder is split off the training images, stratified. Hidden and system entries
    are skipped. Images are turned upright according to their EXIF orientation and converted to
    8-bit pixels by one rule per mode (docs/pictures.md). The center square is resized to `size`.
    Up to `resident_limit_mb`, images are decoded once and stored in memory; larger data are
    decoded batch by batch by worker processes, from `root` on every node, and normalized by the
    mean and standard deviation of 2,048 training images.
    """

    name: Literal["image_folder"] = "image_folder"
    root: Root = "data"
    train_folder: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Folder of the training split inside `root` (`.`: `root` itself). "
            "null: detect split folders by their names",
        ),
    ] = None
    val_folder: Annotated[
        str | None,
        Field(min_length=1, description="Folder of the validation split. Requires `train_folder`"),
    ] = None
    test_folder: Annotated[
        str | None,
        Field(min_length=1, description="Folder of the test split. Requires `train_folder`"),
    ] = None
    size: Annotated[int, Field(ge=1, description="Height and width of the images, in pixels")] = 64
    channels: Channels = 3
    background: Annotated[
        Background,
        Field(description="Background color under transparent pixels. none: ignore transparency"),
    ] = "white"
    value_range: Annotated[
        tuple[float, float] | None,
        Field(
            description="Values mapped to black and white in images with more than 8 bits "
            "per pixel. null: the full range for 16-bit images, 0 to 1 for "
            "floating-point images; other types are rejected"
        ),
    ] = None
    links: FollowedLinks = "inside"
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()
    resident_limit_mb: Annotated[
        float, Field(ge=0, description="Maximum size of decoded images to keep in memory, in MB")
    ] = 2000
    workers: Annotated[
        int | None,
        Field(ge=0, description="Number of decoding processes. null: one per core, at most 8"),
    ] = None

    def __post_init__(self) -> None:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError("value_range: the first value must be below the second")
        if self.train_folder is None and (self.val_folder or self.test_folder):
            raise ValueError("val_folder and test_folder need train_folder; set it, too")

    def declared_shape(self) -> tuple[tuple[int, ...], int] | None:
        try:
            return self._shape, len(class_folders(self._layout().folders["train"]))
        except ValueError:
            return None  # `check` reports the reason

    def check(self) -> None:
        self._rows(self._cached_listing())

    def survey(self) -> Survey:
        listing = self._cached_listing()
        rows = self._rows(listing)
        check_headers(self._root, listing, self._rules)
        notes, warnings = equal_images(self._root, listing, rows)
        return Survey(
            sizes={split: len(rows[split]) for split in PARTS},
            class_names=listing.class_names,
            notes=(*self._split_note(listing), *listing.notes, *notes),
            warnings=(*listing.warnings, *warnings),
            origin=self._root,
        )

    def load(self) -> Dataset:
        listing = self._listing()
        rows = self._rows(listing)
        used = sum(len(part) for part in rows.values())
        log = DecodingLog()
        if used * self.channels * self.size**2 <= self.resident_limit_mb * 1e6:
            dataset = self._resident(listing, rows, log)
        else:
            dataset = self._on_disk(listing, rows, log)
        notes, warnings = equal_images(self._root, listing, rows)
        return replace(
            dataset,
            notes=(
                *self._split_note(listing),
                *listing.notes,
                *notes,
                *log.notes(self._rules),
            ),
            warnings=(*listing.warnings, *warnings, *log.warnings(self._rules)),
            raw=Raw(preparation=self._preparation),
        )

    @property
    def _preparation(self) -> str:
        """Sentence on the way from a file to its pixels, for users of a network without raykd."""
        color = "RGB" if self.channels == 3 else "grayscale"
        return (
            f"the file as {color}, its center square resized to {self.size}x{self.size} "
            "(raykd.data.decode.decode_files)"
        )

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    @property
    def _rules(self) -> Rules:
        return Rules(self.background, self.value_range)

    @property
    def _root(self) -> str:
        return str(folder_path(self.root))

    def _layout(self, root: Folder | None = None) -> Layout:
        root = root or Folder.at(self._root, self.links)
        named = {
            split: name
            for split, name in zip(
                PARTS, (self.train_folder, self.val_folder, self.test_folder), strict=True
            )
            if name is not None
        }
        return named_layout(root, named) if named else recognized_layout(root)

    def _listing(self) -> Listing:
        return list_images(self._layout())

    def _cached_listing(self) -> Listing:
        """Return the listing; the cached one if no folder has changed."""
        key = (self._root, self.links, self.train_folder, self.val_folder, self.test_folder)
        if _last and _last[0].key == key and _last[0].is_valid():
            return _last[0].listing
        began = time.time_ns()
        root = Folder.at(self._root, self.links)
        listing = list_images(self._layout(root))
        _last[:] = [_CachedListing(key, listing, root.stamps(), began)]
        return listing

    def _rows(self, listing: Listing) -> dict[str, np.ndarray]:
        try:
            return split_rows(listing.rows, listing.targets, self, listing.class_names)
        except ValueError as error:
            raise ValueError(f"image_folder: {error}") from None

    def _split_note(self, listing: Listing) -> list[str]:
        """Return a note on splits that have no folder."""
        shares = {"test": self.test, "val": self.val}
        cut = [
            f"{split} ({share:g})" for split, share in shares.items() if split not in listing.rows
        ]
        return [f"split off the training images: {', then '.join(cut)}"] if cut else []

    def _resident(
        self, listing: Listing, rows: Mapping[str, np.ndarray], log: DecodingLog
    ) -> Dataset:
        splits = {
            part: resident(
                decode_all(self._root, listing.paths(rows[part]), self._shape, self._rules, log),
                listing.targets,
                rows[part],
            )
            for part in PARTS
        }
        sample = torch.as_tensor(splits["train"].inputs)
        return dataset_of_splits(self.name, splits, sample, listing.class_names, self._root)

    def _on_disk(
        self, listing: Listing, rows: Mapping[str, np.ndarray], log: DecodingLog
    ) -> Dataset:
        splits = {part: self._files(listing, rows[part]) for part in PARTS}
        some = np.linspace(0, len(rows["train"]) - 1, _STATISTICS_SAMPLE).astype(int)
        chosen = listing.paths(rows["train"][np.unique(some)])
        decoded = decode_all(self._root, chosen, self._shape, self._rules, log)
        file_sizes = listing.sizes(np.concatenate(list(rows.values())))
        sample, names = torch.from_numpy(decoded), listing.class_names
        return dataset_of_splits(self.name, splits, sample, names, self._root, file_sizes)

    def _files(self, listing: Listing, rows: np.ndarray) -> FileSplit:
        return FileSplit(
            root=self._root,
            paths=listing.paths(rows),
            targets=torch.from_numpy(listing.targets[rows]),
            index=torch.from_numpy(rows.astype(np.int64)),
            shape=self._shape,
            workers=self._workers(),
            rules=self._rules,
        )

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return min(8, len(os.sched_getaffinity(0)))
