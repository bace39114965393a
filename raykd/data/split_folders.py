"""Split folders by their names: train, val and test as people call them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations

from raykd.data.directory_tree import Folder
from raykd.data.download import printable

WORDS = {
    "train": frozenset({"train", "training", "trn", "trainset", "trainingset"}),
    "val": frozenset(
        {"val", "valid", "validation", "validate", "dev", "eval", "evaluation", "valset"}
    ),
    "test": frozenset({"test", "testing", "tst", "testset"}),
}
"""Words that name a split, in any case."""

_FILLERS = frozenset({"set", "data", "dataset", "image", "images", "img", "imgs", "pictures"})
"""Words beside them that tell two splits of one data set not apart."""

_FIX = (
    "name the folders of the splits in data.train_folder, data.val_folder and data.test_folder "
    "(data.train_folder: . if the folders are classes)"
)

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layout:
    """The folder of each split; `train` always, others if they are there.

    Attributes:
        folders: by split.
        notes: sentences on how they were recognized.
        warnings: sentences on what may be wrong.
    """

    folders: Mapping[str, Folder]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a folder's name tells, and the other words of the name.

    `Train`, `train_images` and `train2017` are train; `seg_train` is train beside "seg".
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    words = re.findall(r"[^\W\d_]+|\d+", spaced.casefold())
    found = [split for word in words for split in WORDS if word in WORDS[split]]
    if len(found) != 1:
        return None
    rest = [word for word in words if word not in WORDS[found[0]] and word not in _FILLERS]
    return found[0], tuple(rest)


def named_layout(root: Folder, names: Mapping[str, str]) -> Layout:
    """The layout that a study names.

    Args:
        root: the root.
        names: folder of each split, relative to the root.

    Raises:
        ValueError: a folder is not there, or two are the same.
    """
    if "train" not in names:
        raise ValueError("image_folder: with data.val_folder or test_folder, name train_folder too")
    folders = {split: _descended(root, name, split) for split, name in names.items()}
    for (one, left), (other, right) in combinations(folders.items(), 2):
        if left.reals[-1] in right.reals or right.reals[-1] in left.reals:
            raise ValueError(
                f"image_folder: {one} and {other} share files: {left} and {right} are the same "
                "folder, or one lies in the other"
            )
    return Layout(folders)


def recognized_layout(root: Folder) -> Layout:
    """The layout by the names of the folders; without split folders the root holds the classes.

    Raises:
        ValueError: the names leave open which folder is which.
    """
    candidates: dict[tuple[str, ...], dict[str, list[Folder]]] = {}
    for folder in root.entries.folders:
        named = split_of(folder.name)
        if named is not None:
            candidates.setdefault(named[1], {}).setdefault(named[0], []).append(folder)
    families = [family for rest, family in candidates.items() if _is_split(root, rest, family)]
    if not families:
        _refuse_splits_without_training(root, candidates.values())
        _refuse_class_and_split(candidates)
        return Layout({"train": root})
    if len(families) > 1:
        raise ValueError(
            f"image_folder: {root} holds several sets of splits "
            f"({'; '.join(_names(_all(family)) for family in families)}); {_FIX}"
        )
    folders = {split: _only(root, split, many) for split, many in families[0].items()}
    return Layout(folders, *_told(root, folders))


def lookalikes(root: Folder) -> Iterator[str]:
    """Warnings about classes that look like splits: they hold folders of the same names."""
    classes = [folder for folder in root.entries.folders if _holds_anything(folder)]
    inner = [{inner.name for inner in folder.entries.folders} for folder in classes]
    if len(classes) < 2 or any(folder.entries.pictures for folder in classes):
        return
    shared, every = set.intersection(*inner), set.union(*inner)
    if len(shared) >= 2 and 2 * len(shared) >= len(every):
        yield (
            f"{_names(classes)} are read as classes, but hold folders of the same names "
            f"({_list(sorted(shared))}), as splits do; if they are splits, {_FIX}"
        )


def _is_split(root: Folder, rest: tuple[str, ...], family: Mapping[str, list[Folder]]) -> bool:
    """Return whether folders are splits by their names and content.

    A class may be called "train", too: it holds pictures itself.
    """
    if "train" not in family:
        return False
    beside = [folder for folder in root.entries.folders if folder not in _all(family)]
    if any(_opened(folder).entries.folders for folder in family["train"]):
        if rest and len(family) == 1 and beside:
            return False
        _refuse_ambiguous(root, family, beside)
        return True
    return not any(_holds_anything(folder) for folder in beside)


def _refuse_ambiguous(
    root: Folder, family: Mapping[str, list[Folder]], beside: Iterable[Folder]
) -> None:
    """Refuse a "train" that may be a class like its siblings: they hold the same folders."""
    (train, *_) = family["train"]
    inner = {folder.name for folder in train.entries.folders}
    for folder in beside:
        shared = inner & {inner.name for inner in folder.entries.folders}
        if len(family) == 1 and shared and len(shared) * 2 >= len(inner):
            raise ValueError(
                f"image_folder: {_names([train, folder])} hold folders of the same names "
                f"({_list(sorted(shared))}), so {train} may be a split or a class; {_FIX}"
            )


def _refuse_splits_without_training(
    root: Folder, families: Iterable[Mapping[str, list[Folder]]]
) -> None:
    """Refuse test/CLASS/... without a training folder: its classes are no parts of one class."""
    for family in families:
        splits = [folder for folder in _all(family) if len(folder.entries.folders) >= 2]
        if "train" not in family and splits and not any(f.entries.pictures for f in splits):
            raise ValueError(
                f"image_folder: {_names(splits)} in {printable(root.root.path)} look like splits, "
                f"but no folder is called train; {_FIX}"
            )


def _refuse_class_and_split(
    candidates: Mapping[tuple[str, ...], Mapping[str, list[Folder]]],
) -> None:
    """Refuse train_cats, train_dogs, test_cats, test_dogs: a class and a split in one name."""
    families = [
        family
        for rest, family in candidates.items()
        if rest and "train" in family and family.keys() - {"train"}
    ]
    folders = [folder for family in families for folder in _all(family)]
    if len(families) >= 2 and all(folder.entries.pictures for folder in folders):
        raise ValueError(
            f"image_folder: the names of {_names(folders)} hold a split and a class; move the "
            "pictures into train/CLASS/, test/CLASS/ and the like, or set data.train_folder: . if "
            "each of these folders is a class"
        )


def _only(root: Folder, split: str, folders: list[Folder]) -> Folder:
    if len(folders) > 1:
        raise ValueError(
            f"image_folder: {_names(folders)} in {printable(root.root.path)} all look like the "
            f"{split} split; rename or remove all but one, or {_FIX}"
        )
    return _opened(folders[0])


def _opened(folder: Folder) -> Folder:
    """The folder, or the one of the same split that is all it holds (seg_train/seg_train)."""
    inner = folder.entries.folders
    if folder.entries.pictures or len(inner) != 1:
        return folder
    ours, theirs = split_of(folder.name), split_of(inner[0].name)
    same = ours is not None and theirs is not None and ours[0] == theirs[0]
    return inner[0] if same else folder


def _told(root: Folder, folders: Mapping[str, Folder]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings on recognized splits."""
    notes, warnings = [], []
    if any(folder.path != split for split, folder in folders.items()):
        found = ", ".join(f"{split} from {folder}" for split, folder in folders.items())
        notes.append(f"split folders recognized by their names: {found}")
    used = [folder.path.split("/")[0] for folder in folders.values()]
    unused = [f for f in root.entries.folders if f.name not in used]
    inner = {folder.name for folder in folders["train"].entries.folders}
    alike = [f for f in unused if split_of(f.name) or _share(inner, f)]
    if alike:
        warnings.append(f"{_names(alike)} beside {folders['train']} look like splits, not used")
    others = [folder for folder in unused if folder not in alike]
    if others:
        notes.append(f"{_names(others)} beside {folders['train']} not used")
    return tuple(notes), tuple(warnings)


def _share(inner: set[str], folder: Folder) -> bool:
    return bool(inner & {one.name for one in folder.entries.folders})


def _descended(root: Folder, name: str, split: str) -> Folder:
    """A folder by its path relative to the root."""
    folder = root
    for step in (part for part in name.split("/") if part not in ("", ".")):
        by_name = {inner.name: inner for inner in folder.entries.folders}
        if step not in by_name:
            close = get_close_matches(step, by_name, n=1, cutoff=0.6)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"image_folder: data.{split}_folder names {name!r}, but {folder} holds no folder "
                f"{step!r} (it holds {_list(sorted(by_name)) or 'none'}){guess}"
            )
        folder = by_name[step]
    return folder


def _holds_anything(folder: Folder) -> bool:
    return bool(folder.entries.pictures or folder.entries.folders)


def _all(family: Mapping[str, list[Folder]]) -> list[Folder]:
    return [folder for many in family.values() for folder in many]


def _names(folders: Iterable[Folder]) -> str:
    return _list([f"{printable(folder.path)}/" for folder in folders])


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
