"""Recognition of split folders (train, val, test) by their names."""

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
"""Words that name a split, in lower case."""

_FILLERS = frozenset({"set", "data", "dataset", "image", "images", "img", "imgs", "pictures"})
"""Other words in the names of split folders, which do not distinguish data sets."""

_FIX = (
    "name the folders of the splits in data.train_folder, data.val_folder and data.test_folder "
    "(data.train_folder: . if the folders are classes)"
)

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layout:
    """Folder of each split: `train`, and `val` and `test` if they exist.

    Attributes:
        folders: folders by split.
        notes: sentences on how the folders were recognized.
        warnings: sentences on possible mistakes.
    """

    folders: Mapping[str, Folder]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split in the name of a folder, and the other words of the name.

    `Train`, `train_images` and `train2017` are train; `seg_train` is train with the word "seg".
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    words = re.findall(r"[^\W\d_]+|\d+", spaced.casefold())
    splits = [split for word in words for split in WORDS if word in WORDS[split]]
    if len(splits) != 1:
        return None
    rest = [word for word in words if word not in WORDS[splits[0]] and word not in _FILLERS]
    return splits[0], tuple(rest)


def named_layout(root: Folder, names: Mapping[str, str]) -> Layout:
    """Return the layout given in a study.

    Args:
        root: root of the data.
        names: folder of each split, relative to the root.

    Raises:
        ValueError: a folder does not exist, or two overlap.
    """
    if "train" not in names:
        raise ValueError("image_folder: with data.val_folder or test_folder, name train_folder too")
    folders = {split: _subfolder(root, name, split) for split, name in names.items()}
    for (split, left), (other, right) in combinations(folders.items(), 2):
        if left.reals[-1] in right.reals or right.reals[-1] in left.reals:
            raise ValueError(
                f"image_folder: {split} and {other} share files: {left} and {right} are the same "
                "folder, or one is inside the other"
            )
    return Layout(folders)


def recognized_layout(root: Folder) -> Layout:
    """Recognize the split folders by name; without any, the root holds the classes.

    Raises:
        ValueError: the names are ambiguous.
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
    return Layout(folders, *_remarks(root, folders))


def lookalikes(root: Folder) -> Iterator[str]:
    """Warn about classes that look like splits: they hold folders of the same names."""
    classes = [folder for folder in root.entries.folders if _holds_anything(folder)]
    inner = [{inner.name for inner in folder.entries.folders} for folder in classes]
    if len(classes) < 2 or any(folder.entries.images for folder in classes):
        return
    shared, every = set.intersection(*inner), set.union(*inner)
    if len(shared) >= 2 and 2 * len(shared) >= len(every):
        yield (
            f"{_names(classes)} are read as classes, but hold folders of the same names "
            f"({_list(sorted(shared))}), as splits do; if they are splits, {_FIX}"
        )


def _is_split(root: Folder, rest: tuple[str, ...], family: Mapping[str, list[Folder]]) -> bool:
    """Return whether folders are splits by their names and content.

    A class called "train" holds images itself.
    """
    if "train" not in family:
        return False
    siblings = [folder for folder in root.entries.folders if folder not in _all(family)]
    if any(_unnested(folder).entries.folders for folder in family["train"]):
        if rest and len(family) == 1 and siblings:
            return False
        _refuse_ambiguous(root, family, siblings)
        return True
    return not any(_holds_anything(folder) for folder in siblings)


def _refuse_ambiguous(
    root: Folder, family: Mapping[str, list[Folder]], siblings: Iterable[Folder]
) -> None:
    """Reject a "train" folder that may be a class: its siblings hold the same folders."""
    (train, *_) = family["train"]
    inner = {folder.name for folder in train.entries.folders}
    for folder in siblings:
        shared = inner & {inner.name for inner in folder.entries.folders}
        if len(family) == 1 and shared and len(shared) * 2 >= len(inner):
            raise ValueError(
                f"image_folder: {_names([train, folder])} hold folders of the same names "
                f"({_list(sorted(shared))}), so {train} may be a split or a class; {_FIX}"
            )


def _refuse_splits_without_training(
    root: Folder, families: Iterable[Mapping[str, list[Folder]]]
) -> None:
    """Reject test/CLASS/... without a training folder, which would read as one class "test"."""
    for family in families:
        splits = [folder for folder in _all(family) if len(folder.entries.folders) >= 2]
        if "train" not in family and splits and not any(f.entries.images for f in splits):
            raise ValueError(
                f"image_folder: {_names(splits)} in {printable(root.root.path)} look like splits, "
                f"but no folder is called train; {_FIX}"
            )


def _refuse_class_and_split(
    candidates: Mapping[tuple[str, ...], Mapping[str, list[Folder]]],
) -> None:
    """Reject train_cats, train_dogs, test_cats, test_dogs: split and class in one name."""
    families = [
        family
        for rest, family in candidates.items()
        if rest and "train" in family and family.keys() - {"train"}
    ]
    folders = [folder for family in families for folder in _all(family)]
    if len(families) >= 2 and all(folder.entries.images for folder in folders):
        raise ValueError(
            f"image_folder: the names of {_names(folders)} hold a split and a class; move the "
            "images into train/CLASS/ and test/CLASS/, or set data.train_folder: . if each of "
            "these folders is a class"
        )


def _only(root: Folder, split: str, folders: list[Folder]) -> Folder:
    if len(folders) > 1:
        raise ValueError(
            f"image_folder: {_names(folders)} in {printable(root.root.path)} all look like the "
            f"{split} split; rename or remove all but one, or {_FIX}"
        )
    return _unnested(folders[0])


def _unnested(folder: Folder) -> Folder:
    """Return the folder, or its only entry if that names the same split (seg_train/seg_train)."""
    inner = folder.entries.folders
    if folder.entries.images or len(inner) != 1:
        return folder
    ours, theirs = split_of(folder.name), split_of(inner[0].name)
    same = ours is not None and theirs is not None and ours[0] == theirs[0]
    return inner[0] if same else folder


def _remarks(
    root: Folder, folders: Mapping[str, Folder]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return notes and warnings on recognized splits."""
    notes, warnings = [], []
    if any(folder.path != split for split, folder in folders.items()):
        sources = ", ".join(f"{split} from {folder}" for split, folder in folders.items())
        notes.append(f"split folders recognized by their names: {sources}")
    used = [folder.path.split("/")[0] for folder in folders.values()]
    unused = [f for f in root.entries.folders if f.name not in used]
    inner = {folder.name for folder in folders["train"].entries.folders}
    alike = [f for f in unused if split_of(f.name) or _share(inner, f)]
    if alike:
        warnings.append(
            f"{_names(alike)} next to {folders['train']} look like splits, but are not used"
        )
    ignored = [folder for folder in unused if folder not in alike]
    if ignored:
        notes.append(f"{_names(ignored)} next to {folders['train']} not used")
    return tuple(notes), tuple(warnings)


def _share(inner: set[str], folder: Folder) -> bool:
    return bool(inner & {subfolder.name for subfolder in folder.entries.folders})


def _subfolder(root: Folder, name: str, split: str) -> Folder:
    """Return a folder by its path relative to the root."""
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
    return bool(folder.entries.images or folder.entries.folders)


def _all(family: Mapping[str, list[Folder]]) -> list[Folder]:
    return [folder for many in family.values() for folder in many]


def _names(folders: Iterable[Folder]) -> str:
    return _list([f"{printable(folder.path)}/" for folder in folders])


def _list(names: list[str]) -> str:
    listed = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{listed} and {more} more" if more > 0 else listed
