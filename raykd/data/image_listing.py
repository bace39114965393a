"""Every picture of a folder with its class and split, and what is suspicious about them."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from raykd.data.dataset import PARTS
from raykd.data.decode import SUFFIXES, check_header
from raykd.data.directory_tree import Folder, Picture
from raykd.data.download import printable
from raykd.data.duplicates import repeated
from raykd.data.pixels import Rules
from raykd.data.split_folders import Layout, lookalikes

UNREAD = frozenset(
    {
        *("", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif"),
        *(".ico", ".jxl", ".mat", ".nef", ".nii", ".npy", ".npz", ".orf", ".pcx", ".psd", ".raw"),
        *(".rw2", ".svg", ".svgz", ".xcf"),
    }
)
"""Suffixes of files that may be pictures, and are not read."""

HASHED_FILES, HASHED_BYTES = 4000, 64_000_000
"""Files, and bytes of them, that are read at most to find equal pictures."""

HEADERS = 64
"""Files whose headers are looked at in a survey."""

_PICTURE_FOLDERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "pictures", "rgb"})
_LABEL_FOLDERS = frozenset(
    {
        *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"),
        *("segmentations", "segmentationclass", "groundtruth", "ground truth", "gt", "depth"),
    }
)
"""Names, as `_key` writes them, of folders in data sets whose labels are pictures."""

_NAMED = 3
"""Examples in a sentence."""


@dataclass(frozen=True)
class Listing:
    """Pictures of a data set, in an order that depends on names alone.

    Attributes:
        pictures: (N,) files.
        targets: (N,) int64 class indices.
        rows: numbers of the pictures in each split that has a folder of its own.
        class_names: one per class, in Unicode's composed form.
        notes, warnings: sentences on what was read.
    """

    pictures: tuple[Picture, ...]
    targets: np.ndarray
    rows: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def paths(self, rows: np.ndarray) -> tuple[str, ...]:
        """Files of those rows, relative to the root."""
        return tuple(self.pictures[row].path for row in rows)

    def sizes(self, rows: np.ndarray) -> dict[str, int]:
        """Bytes of those rows' files, by path."""
        return {self.pictures[row].path: self.pictures[row].size for row in rows}


def class_folders(folder: Folder) -> dict[str, Folder]:
    """Class folders in the order of their names on disk, by their names in Unicode's composed form.

    Raises:
        ValueError: a name is no text, or two are the same.
    """
    found: dict[str, Folder] = {}
    for inner in folder.entries.folders:
        name = unicodedata.normalize("NFC", inner.name)
        if printable(inner.name) != inner.name and not _is_text(inner.name):
            raise ValueError(f"image_folder: the name of {inner} is not UTF-8; rename the folder")
        if name in found:
            raise ValueError(
                f"image_folder: {folder} holds {name!r} twice, in two Unicode forms; move the "
                "pictures into one folder"
            )
        found[name] = inner
    return found


def list_pictures(layout: Layout) -> Listing:
    """List the pictures of each split and class.

    Raises:
        ValueError: no classes, classes or splits without pictures, empty files, folders that cannot
            be read, links that must not be followed.
    """
    classes = _training_classes(layout.folders["train"])
    names = tuple(classes)
    pictures: list[Picture] = []
    targets: list[int] = []
    rows: dict[str, np.ndarray] = {}
    walked: list[Folder] = []
    warnings = list(_confusable(names))
    for split in (split for split in PARTS if split in layout.folders):
        start, seen = len(pictures), set[str]()
        folder = layout.folders[split]
        walked.append(folder)
        found = classes if split == "train" else _other_classes(split, folder, names)
        for label, name in enumerate(names):
            folders = list(found[name].walk(seen)) if name in found else []
            walked += folders
            here = sorted((p for f in folders for p in f.entries.pictures), key=_by_parts)
            if not here and split == "train":
                _refuse_empty_class(found[name], folders)
            pictures += here
            targets += [label] * len(here)
        rows[split] = np.arange(start, len(pictures))
        if split != "train":
            warnings += _check_split(split, folder, names, np.array(targets[start:], dtype=int))
        warnings += _stray(folder)
    _refuse_empty_files(pictures)
    warnings += _label_pictures(names)
    if layout.folders["train"].path == "":
        warnings += lookalikes(layout.folders["train"])
    notes, more = _left_out(walked)
    return Listing(
        pictures=tuple(pictures),
        targets=np.array(targets, dtype=np.int64),
        rows=rows,
        class_names=names,
        notes=(*layout.notes, *notes),
        warnings=(*layout.warnings, *warnings, *more),
    )


def equal_pictures(
    root: str, listing: Listing, rows: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Notes and warnings on equal files in several splits or classes.

    Files of one size are compared by a hash of their content, up to `HASHED_FILES` files.
    """
    samples: list[Hashable] = list(range(len(listing.pictures)))
    groups = _of_equal_size(listing, rows)
    chosen, count = _affordable(listing, groups)
    for row in chosen:
        samples[row] = _digest(os.path.join(root, listing.pictures[row].path)) or row
    notes = []
    if len(chosen) < count:
        notes.append(
            f"equal pictures in several splits or classes: looked for among {len(chosen):,} of "
            f"{count:,} files of equal size"
        )
    return notes, list(repeated(samples, listing.targets, rows, "picture"))


def check_headers(root: str, listing: Listing, rules: Rules) -> None:
    """Check some pictures of each class by their headers.

    Raises:
        ValueError: one cannot be decoded; names it.
    """
    firsts = np.unique(listing.targets, return_index=True)[1]
    spread = np.linspace(0, len(listing.pictures) - 1, HEADERS).astype(int)
    for row in np.unique(np.concatenate([firsts[:HEADERS], spread])):
        check_header(Path(root) / listing.pictures[row].path, rules)


def _training_classes(folder: Folder) -> dict[str, Folder]:
    classes = class_folders(folder)
    if len(classes) >= 2:
        return classes
    pictures = len(folder.entries.pictures)
    flat = f" and {pictures:,} pictures that are in no folder" if pictures else ""
    deeper = ""
    for only in classes.values():
        inner = [f"{one.name}/" for one in only.entries.folders]
        if len(inner) >= 2:
            deeper = f" (if its folders {', '.join(inner[:_NAMED])} are, name {only} as data.root)"
    raise ValueError(
        f"image_folder: {folder} holds {len(classes)} folder(s){flat}; it must hold one per "
        f"class, at least two{deeper}"
    )


def _other_classes(split: str, folder: Folder, names: Sequence[str]) -> dict[str, Folder]:
    found = class_folders(folder)
    for name in found:
        if name not in names:
            close = {_key(one): one for one in names}.get(_key(name))
            close = close or next(iter(get_close_matches(name, names, n=1, cutoff=0.7)), None)
            guess = f" (did you mean {close!r}?)" if close else ""
            raise ValueError(
                f"image_folder: {folder} holds {name!r}, which is no class of the training folder"
                f"{guess}: {_some(names)}; rename or remove it"
            )
    return found


def _check_split(
    split: str, folder: Folder, names: Sequence[str], targets: np.ndarray
) -> Iterator[str]:
    """A warning for classes without a picture in a split.

    Raises:
        ValueError: the split holds no picture of any class.
    """
    if not len(targets):
        flat = len(folder.entries.pictures)
        what = f"its {flat:,} pictures are in no class folder" if flat else "it is empty"
        raise ValueError(
            f"image_folder: {folder} holds no picture of any class (expected {folder}CLASS/...; "
            f"{what}); sort pictures into class folders, or leave the folder out and keep a part "
            f"of the training pictures as {split}: rename it, or set data.train_folder alone"
        )
    missing = [name for label, name in enumerate(names) if label not in set(targets.tolist())]
    if missing:
        yield f"{len(missing)} of {len(names)} classes have no picture in {split}: {_some(missing)}"


def _refuse_empty_class(folder: Folder, folders: Iterable[Folder]) -> None:
    others = Counter(_suffix(path) for one in folders for path in one.entries.others)
    left = f"; it holds {_counted(others)}" if others else ""
    again = "; it is a link to another class folder" if any(folder.entries.again) else ""
    raise ValueError(
        f"image_folder: {folder} holds no picture ({', '.join(sorted(SUFFIXES))}){left}{again}; "
        "add some, or remove the folder"
    )


def _refuse_empty_files(pictures: Iterable[Picture]) -> None:
    empty = [picture.path for picture in pictures if not picture.size]
    if empty:
        raise ValueError(
            f"image_folder: {len(empty)} file(s) are empty, 0 bytes: {_some(empty)}; copy them "
            "again, or remove them"
        )


def _confusable(names: Sequence[str]) -> Iterator[str]:
    """Warnings about class names that differ in case, spaces or the like alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_key(name), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            alike = ", ".join(map(repr, group))
            yield f"classes {alike} differ in case, spaces or Unicode form alone: are they one?"


def _label_pictures(names: Sequence[str]) -> Iterator[str]:
    """A warning about a data set for segmentation or detection, whose folders are no classes."""
    of_labels = [name for name in names if _key(name) in _LABEL_FOLDERS]
    if of_labels and any(_key(name) in _PICTURE_FOLDERS for name in names):
        yield (
            f"{_some(names)} are read as classes, but look like pictures and their annotations "
            "(segmentation or detection); raykd trains classifiers, and needs one folder per class"
        )


def _stray(folder: Folder) -> Iterator[str]:
    stray = [picture.path for picture in folder.entries.pictures]
    if stray:
        yield (
            f"{len(stray):,} pictures directly in {folder} are in no class folder and left out: "
            f"{_some(stray)}"
        )


def _left_out(walked: Sequence[Folder]) -> tuple[list[str], list[str]]:
    """Notes and warnings on entries that are not read."""
    hidden = [path for folder in walked for path in folder.entries.hidden]
    broken = [path for folder in walked for path in folder.entries.broken]
    again = [path for folder in walked for path in folder.entries.again]
    others = [path for folder in walked for path in folder.entries.others]
    notes, warnings = [], []
    if hidden:
        notes.append(f"{len(hidden):,} hidden or system entries skipped: {_some(hidden)}")
    if again:
        notes.append(f"{len(again):,} links to folders that are read already: {_some(again)}")
    if broken:
        warnings.append(f"{len(broken):,} links lead to no file: {_some(broken)}")
    known = Counter(_suffix(path) for path in others)
    doubtful = [path for path in others if _suffix(path) in UNREAD]
    if doubtful:
        counts = Counter({suffix: known[suffix] for suffix in known if suffix in UNREAD})
        warnings.append(
            f"{_counted(counts)} are left out, though they may be pictures: {_some(doubtful)}"
        )
    plain = Counter({suffix: known[suffix] for suffix in known if suffix not in UNREAD})
    if plain:
        notes.append(f"{_counted(plain)} are no pictures, skipped")
    return notes, warnings


def _of_equal_size(listing: Listing, rows: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Rows of pictures of one size that are not all of one split and one class."""
    by_size: dict[int, list[tuple[int, str]]] = {}
    for split, numbers in rows.items():
        for row in numbers.tolist():
            by_size.setdefault(listing.pictures[row].size, []).append((row, split))
    return [
        [row for row, _ in members]
        for members in by_size.values()
        if len({(split, int(listing.targets[row])) for row, split in members}) > 1
    ]


def _affordable(listing: Listing, groups: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Rows of as many groups as may be read, spread evenly, and how many there are in all."""
    count = sum(map(len, groups))
    size = sum(listing.pictures[row].size for group in groups for row in group)
    share = min(1.0, HASHED_FILES / max(1, count), HASHED_BYTES / max(1, size))
    wanted = np.linspace(0, len(groups) - 1, max(1, int(share * len(groups)))).astype(int)
    chosen: list[int] = []
    read = 0
    for number in np.unique(wanted) if groups else ():
        group = groups[number]
        read += sum(listing.pictures[row].size for row in group)
        if len(chosen) + len(group) > HASHED_FILES or read > HASHED_BYTES:
            break
        chosen += group
    return chosen, count


def _digest(path: str) -> bytes | None:
    """Hash of a file; None where it cannot be read (decoding it says so)."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _by_parts(picture: Picture) -> list[str]:
    return picture.path.split("/")


def _key(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_\-]+", " ", folded).strip()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _counted(suffixes: Counter[str]) -> str:
    """ "30 .heic and 2 .svg files"."""
    parts = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(8)]
    more = f" and {len(suffixes) - 8} other kinds" if len(suffixes) > 8 else ""
    return f"{', '.join(parts)}{more} files"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    return f"{shown}, ... ({len(names) - _NAMED:,} more)" if len(names) > _NAMED else shown
