"""A folder of pictures, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from raykd.data.augment import Augments
from raykd.data.decode import SUFFIXES, decode_all
from raykd.data.source import (
    PARTS,
    Dataset,
    FileSplit,
    Fraction,
    Limit,
    Root,
    Source,
    SplitSeed,
    TestFraction,
    ValLimit,
)
from raykd.data.splitting import dataset_of_splits, parted, resident
from raykd.option import option

_STATISTICS_SAMPLE = 2048


@option
class ImageFolder(Source):
    """Pictures in folders, one a class: `root/train/CLASS/...` or `root/CLASS/...`.

    The folders `root/val` and `root/test` are used where they are; else that part of the training
    folder's pictures is kept, stratified.  A picture's short side is scaled to `size` and the
    middle of the long one kept.  What fits `resident_limit_mb` is decoded once and kept in
    memory; more is decoded by worker processes batch by batch, from `root` on every node, and
    normalised by the mean and deviation of 2,048 training pictures.
    """

    name: Literal["image_folder"] = "image_folder"
    root: Root = "data"
    size: Annotated[int, Field(ge=1, description="height and width in pixels")] = 64
    channels: Annotated[Literal[1, 3], Field(description="1: grey, 3: colour")] = 3
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()
    resident_limit_mb: Annotated[
        float, Field(ge=0, description="decoded data up to this size are kept in memory")
    ] = 2000
    workers: Annotated[
        int | None, Field(ge=0, description="decoding processes; null: up to 8, by the cores")
    ] = None

    def task_shape(self) -> tuple[tuple[int, ...], int] | None:
        train = self._folders().get("train")
        if train is None or not train.is_dir():
            return None
        return self._shape, len(_class_names(train))

    def check(self) -> None:
        train = self._folders()["train"]
        if not train.is_dir():
            raise ValueError(
                f"image_folder: {train} is no folder; set data.root to a folder with one folder "
                "a class, or with train/ (and val/, test/) that hold them"
            )
        if len(_class_names(train)) < 2:
            raise ValueError(
                f"image_folder: {train} holds {len(_class_names(train))} folder(s); it must hold "
                "one a class, at least two"
            )

    def load(self) -> Dataset:
        self.check()
        listing = _listing(self._root(), self._folders())
        rows = parted(listing.rows, listing.targets, self)
        used = sum(len(part) for part in rows.values())
        if used * self.channels * self.size**2 <= self.resident_limit_mb * 1e6:
            return self._resident(listing, rows)
        return self._on_disk(listing, rows)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def _root(self) -> Path:
        return Path(self.root).expanduser().absolute()

    def _folders(self) -> dict[str, Path]:
        """The folder of each part; `train` always, the others where they are."""
        root = self._root()
        if not (root / "train").is_dir():
            return {"train": root}
        return {part: root / part for part in PARTS if (root / part).is_dir()}

    def _resident(self, listing: _Listing, rows: Mapping[str, np.ndarray]) -> Dataset:
        root = str(self._root())
        splits = {
            part: resident(
                decode_all(root, listing.some_paths(rows[part]), self._shape),
                listing.targets,
                rows[part],
            )
            for part in PARTS
        }
        sample = torch.as_tensor(splits["train"].inputs)
        return dataset_of_splits(self.name, splits, sample, listing.class_names, root)

    def _on_disk(self, listing: _Listing, rows: Mapping[str, np.ndarray]) -> Dataset:
        root = str(self._root())
        splits = {part: self._files(listing, rows[part]) for part in PARTS}
        some = np.linspace(0, len(rows["train"]) - 1, _STATISTICS_SAMPLE).astype(int)
        seen = listing.some_paths(rows["train"][np.unique(some)])
        sample = torch.from_numpy(decode_all(root, seen, self._shape))
        file_sizes = {
            path: os.stat(os.path.join(root, path)).st_size
            for split in splits.values()
            for path in split.paths
        }
        names = listing.class_names
        return dataset_of_splits(self.name, splits, sample, names, root, file_sizes)

    def _files(self, listing: _Listing, rows: np.ndarray) -> FileSplit:
        return FileSplit(
            root=str(self._root()),
            paths=listing.some_paths(rows),
            targets=torch.from_numpy(listing.targets[rows]),
            index=torch.from_numpy(rows.astype(np.int64)),
            shape=self._shape,
            workers=self._workers(),
        )

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return min(8, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class _Listing:
    """Every picture found: paths relative to root, (N,) int64 targets, rows by part."""

    paths: tuple[str, ...]
    targets: np.ndarray
    rows: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]

    def some_paths(self, rows: np.ndarray) -> tuple[str, ...]:
        return tuple(self.paths[row] for row in rows)


def _class_names(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _listing(root: Path, folders: Mapping[str, Path]) -> _Listing:
    names = _class_names(folders["train"])
    paths: list[str] = []
    targets: list[int] = []
    rows = {}
    for part in (part for part in PARTS if part in folders):
        start = len(paths)
        _check_classes(folders[part], names)
        for label, name in enumerate(names):
            found = _pictures(folders[part] / name)
            if not found and part == "train":
                raise ValueError(
                    f"image_folder: {folders[part] / name} holds no picture "
                    f"({', '.join(sorted(SUFFIXES))}); add some, or remove the folder"
                )
            paths += [str(path.relative_to(root)) for path in found]
            targets += [label] * len(found)
        rows[part] = np.arange(start, len(paths))
    return _Listing(tuple(paths), np.array(targets, dtype=np.int64), rows, names)


def _check_classes(folder: Path, names: tuple[str, ...]) -> None:
    strange = sorted(set(_class_names(folder)) - set(names))
    if strange:
        raise ValueError(
            f"image_folder: {folder} holds {strange[0]!r}, which is no class of the training "
            f"folder ({', '.join(names)}); rename or remove it"
        )


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
