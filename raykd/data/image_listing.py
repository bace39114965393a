"""Images of a folder with their classes and splits, and warnings about them."""

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
from raykd.data.directory_tree import Folder, ImageFile
from raykd.data.download import printable
from raykd.data.duplicates import duplicate_warnings
from raykd.data.pixels import Rules
from raykd.data.split_folders import Layout, lookalikes

UNREAD = frozenset(
    {
        *("", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif"),
        *(".ico", ".jxl", ".mat", ".nef", ".nii", ".npy", ".npz", ".orf", ".pcx", ".psd", ".raw"),
        *(".rw2", ".svg", ".svgz", ".xcf"),
    }
)
"""Suffixes of files that may be images but are not read."""

HASHED_FILES, HASHED_BYTES = 4000, 64_000_000
"""Limits on the files and bytes that are read to find equal images."""

HEADERS = 64
"""Number of files whose headers are read in a survey."""

_IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "pictures", "rgb"})
_LABEL_FOLDERS = frozenset(
    {
        *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"),
        *("segmentations", "segmentationclass", "groundtruth", "ground truth", "gt", "depth"),
    }
)
"""Names, as normalized by `_key`, of folders in data sets whose labels are images."""

_EXAMPLES = 3
"""Number of examples in a sentence."""


@dataclass(frozen=True)
class Listing:
    """Images of a data set, in an order that depends on names alone.

    Attributes:
        images: N files.
        targets: (N,) int64 class indices.
        rows: numbers of the images in each split that has a folder.
        class_names: names of the classes, in composed Unicode form (NFC).
        notes, warnings: sentences on the files.
    """

    images: tuple[ImageFile, ...]
    targets: np.ndarray
    rows: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def paths(self, rows: np.ndarray) -> tuple[str, ...]:
        """Return the files of the rows, relative to the root."""
        return tuple(self.images[row].path for row in rows)

    def sizes(self, rows: np.ndarray) -> dict[str, int]:
        """Return the sizes in bytes of the files of the rows, by path."""
        return {self.images[row].path: self.images[row].size for row in rows}


def class_folders(folder: Folder) -> dict[str, Folder]:
    """Return the class folders by name (composed Unicode form), in the order of names on disk.

    Raises:
        ValueError: a name is not text, or two are the same.
    """
    folders: dict[str, Folder] = {}
    for inner in folder.entries.folders:
        name = unicodedata.normalize("NFC", inner.name)
        if printable(inner.name) != inner.name and not _is_text(inner.name):
            raise ValueError(f"image_folder: the name of {inner} is not UTF-8; rename the folder")
        if name in folders:
            raise ValueError(
                f"image_folder: {folder} holds {name!r} twice, in two Unicode forms; move the "
                "images into one folder"
            )
        folders[name] = inner
    return folders


def list_images(layout: Layout) -> Listing:
    """List the images of each split and class.

    Raises:
        ValueError: no classes, a class or split without images, empty files, unreadable folders,
            links that must not be followed.
    """
    classes = _training_classes(layout.folders["train"])
    names = tuple(classes)
    images: list[ImageFile] = []
    targets: list[int] = []
    rows: dict[str, np.ndarray] = {}
    walked: list[Folder] = []
    warnings = list(_confusable(names))
    for split in (split for split in PARTS if split in layout.folders):
        start, visited = len(images), set[str]()
        folder = layout.folders[split]
        walked.append(folder)
        by_class = classes if split == "train" else _other_classes(split, folder, names)
        for label, name in enumerate(names):
            folders = list(by_class[name].walk(visited)) if name in by_class else []
            walked += folders
            here = sorted((p for f in folders for p in f.entries.images), key=_by_parts)
            if not here and split == "train":
                _refuse_empty_class(by_class[name], folders)
            images += here
            targets += [label] * len(here)
        rows[split] = np.arange(start, len(images))
        if split != "train":
            warnings += _check_split(split, folder, names, np.array(targets[start:], dtype=int))
        warnings += _stray(folder)
    _refuse_empty_files(images)
    warnings += _label_images(names)
    if layout.folders["train"].path == "":
        warnings += lookalikes(layout.folders["train"])
    notes, more = _skipped(walked)
    return Listing(
        images=tuple(images),
        targets=np.array(targets, dtype=np.int64),
        rows=rows,
        class_names=names,
        notes=(*layout.notes, *notes),
        warnings=(*layout.warnings, *warnings, *more),
    )


def equal_images(
    root: str, listing: Listing, rows: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """Return notes and warnings on equal files in several splits or classes.

    Files of the same size are compared by a hash of their content, up to `HASHED_FILES` files.
    """
    samples: list[Hashable] = list(range(len(listing.images)))
    groups = _groups_of_equal_size(listing, rows)
    chosen, count = _affordable(listing, groups)
    for row in chosen:
        samples[row] = _digest(os.path.join(root, listing.images[row].path)) or row
    notes = []
    if len(chosen) < count:
        notes.append(
            f"searched for equal images in several splits or classes among {len(chosen):,} of "
            f"{count:,} files of equal size"
        )
    return notes, list(duplicate_warnings(samples, listing.targets, rows, "image"))


def check_headers(root: str, listing: Listing, rules: Rules) -> None:
    """Check the headers of some images of each class.

    Raises:
        ValueError: an image cannot be decoded; names it.
    """
    firsts = np.unique(listing.targets, return_index=True)[1]
    spread = np.linspace(0, len(listing.images) - 1, HEADERS).astype(int)
    for row in np.unique(np.concatenate([firsts[:HEADERS], spread])):
        check_header(Path(root) / listing.images[row].path, rules)


def _training_classes(folder: Folder) -> dict[str, Folder]:
    classes = class_folders(folder)
    if len(classes) >= 2:
        return classes
    images = len(folder.entries.images)
    flat = f" and {images:,} images that are in no folder" if images else ""
    deeper = ""
    for only in classes.values():
        inner = [f"{folder.name}/" for folder in only.entries.folders]
        if len(inner) >= 2:
            deeper = (
                f" (if its folders {', '.join(inner[:_EXAMPLES])} are, name {only} as data.root)"
            )
    raise ValueError(
        f"image_folder: {folder} holds {len(classes)} folder(s){flat}; it must hold one per "
        f"class, at least two{deeper}"
    )


def _other_classes(split: str, folder: Folder, names: Sequence[str]) -> dict[str, Folder]:
    folders = class_folders(folder)
    for name in folders:
        if name not in names:
            close = {_key(other): other for other in names}.get(_key(name))
            close = close or next(iter(get_close_matches(name, names, n=1, cutoff=0.7)), None)
            guess = f" (did you mean {close!r}?)" if close else ""
            raise ValueError(
                f"image_folder: {folder} holds {name!r}, which is not a class of the training "
                f"folder{guess}: {_some(names)}; rename or remove it"
            )
    return folders


def _check_split(
    split: str, folder: Folder, names: Sequence[str], targets: np.ndarray
) -> Iterator[str]:
    """Warn about classes without an image in a split.

    Raises:
        ValueError: the split has no image of any class.
    """
    if not len(targets):
        flat = len(folder.entries.images)
        state = f"its {flat:,} images are in no class folder" if flat else "it is empty"
        raise ValueError(
            f"image_folder: {folder} holds no image of any class (expected {folder}CLASS/...; "
            f"{state}); sort images into class folders, or leave the folder out and keep a part "
            f"of the training images as {split}: rename it, or set data.train_folder alone"
        )
    missing = [name for label, name in enumerate(names) if label not in set(targets.tolist())]
    if missing:
        yield f"{len(missing)} of {len(names)} classes have no image in {split}: {_some(missing)}"


def _refuse_empty_class(folder: Folder, folders: Iterable[Folder]) -> None:
    suffixes = Counter(_suffix(path) for inner in folders for path in inner.entries.other_files)
    content = f"; it holds {_counted(suffixes)}" if suffixes else ""
    link = "; it is a link to another class folder" if any(folder.entries.repeated) else ""
    raise ValueError(
        f"image_folder: {folder} holds no image ({', '.join(sorted(SUFFIXES))}){content}{link}; "
        "add some, or remove the folder"
    )


def _refuse_empty_files(images: Iterable[ImageFile]) -> None:
    empty = [image.path for image in images if not image.size]
    if empty:
        raise ValueError(
            f"image_folder: {len(empty)} file(s) are empty, 0 bytes: {_some(empty)}; copy them "
            "again, or remove them"
        )


def _confusable(names: Sequence[str]) -> Iterator[str]:
    """Warn about class names that differ only in case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_key(name), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            alike = ", ".join(map(repr, group))
            yield f"classes {alike} differ only in case, spaces or Unicode form: are they the same?"


def _label_images(names: Sequence[str]) -> Iterator[str]:
    """Warn about a data set for segmentation or detection, whose folders are not classes."""
    of_labels = [name for name in names if _key(name) in _LABEL_FOLDERS]
    if of_labels and any(_key(name) in _IMAGE_FOLDERS for name in names):
        yield (
            f"{_some(names)} are read as classes, but look like images and their annotations "
            "(segmentation or detection); raykd trains classifiers, and needs one folder per class"
        )


def _stray(folder: Folder) -> Iterator[str]:
    stray = [image.path for image in folder.entries.images]
    if stray:
        yield (
            f"{len(stray):,} images directly in {folder} are in no class folder and skipped: "
            f"{_some(stray)}"
        )


def _skipped(walked: Sequence[Folder]) -> tuple[list[str], list[str]]:
    """Return notes and warnings on entries that are not read."""
    hidden = [path for folder in walked for path in folder.entries.hidden]
    broken = [path for folder in walked for path in folder.entries.broken]
    repeated = [path for folder in walked for path in folder.entries.repeated]
    other_files = [path for folder in walked for path in folder.entries.other_files]
    notes, warnings = [], []
    if hidden:
        notes.append(f"{len(hidden):,} hidden or system entries skipped: {_some(hidden)}")
    if repeated:
        notes.append(f"{len(repeated):,} links to folders that are already read: {_some(repeated)}")
    if broken:
        warnings.append(f"{len(broken):,} links lead to no file: {_some(broken)}")
    suffixes = Counter(_suffix(path) for path in other_files)
    doubtful = [path for path in other_files if _suffix(path) in UNREAD]
    if doubtful:
        counts = Counter({suffix: n for suffix, n in suffixes.items() if suffix in UNREAD})
        warnings.append(
            f"{_counted(counts)} are skipped, though they may be images: {_some(doubtful)}"
        )
    plain = Counter({suffix: n for suffix, n in suffixes.items() if suffix not in UNREAD})
    if plain:
        notes.append(f"{_counted(plain)} are not images, skipped")
    return notes, warnings


def _groups_of_equal_size(listing: Listing, rows: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Group images by size; groups within one split and class are left out."""
    by_size: dict[int, list[tuple[int, str]]] = {}
    for split, numbers in rows.items():
        for row in numbers.tolist():
            by_size.setdefault(listing.images[row].size, []).append((row, split))
    return [
        [row for row, _ in members]
        for members in by_size.values()
        if len({(split, int(listing.targets[row])) for row, split in members}) > 1
    ]


def _affordable(listing: Listing, groups: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Return the rows of the groups to read, spread evenly, and the number of all rows."""
    count = sum(map(len, groups))
    size = sum(listing.images[row].size for group in groups for row in group)
    share = min(1.0, HASHED_FILES / max(1, count), HASHED_BYTES / max(1, size))
    numbers = np.linspace(0, len(groups) - 1, max(1, int(share * len(groups)))).astype(int)
    chosen: list[int] = []
    read = 0
    for number in np.unique(numbers) if groups else ():
        group = groups[number]
        read += sum(listing.images[row].size for row in group)
        if len(chosen) + len(group) > HASHED_FILES or read > HASHED_BYTES:
            break
        chosen += group
    return chosen, count


def _digest(path: str) -> bytes | None:
    """Return the hash of a file; None if it cannot be read (decoding reports that)."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _by_parts(image: ImageFile) -> list[str]:
    return image.path.split("/")


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
    """Return a text such as "30 .heic, 2 .svg files"."""
    parts = [f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(8)]
    more = f" and {len(suffixes) - 8} other kinds" if len(suffixes) > 8 else ""
    return f"{', '.join(parts)}{more} files"


def _some(names: Sequence[str]) -> str:
    examples = ", ".join(printable(name) for name in names[:_EXAMPLES])
    more = len(names) - _EXAMPLES
    return f"{examples}, ... ({more:,} more)" if more > 0 else examples
