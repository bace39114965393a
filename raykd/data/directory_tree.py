"""Folders of pictures on disk: which entries count, and which links are followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from raykd.data.decode import SUFFIXES
from raykd.data.download import printable

Links = Literal["inside", "anywhere"]

SYSTEM = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        *("__macosx", "__pycache__", "lost+found", "thumbs.db", "desktop.ini", "icon\r"),
    }
)
"""Entries, in lower case, that systems and programs write into folders of other people's files."""


def is_hidden(name: str) -> bool:
    """Return whether an entry is left out by its name: hidden, or written by a system."""
    return name.startswith((".", "~$")) or name.casefold() in SYSTEM


@dataclass(frozen=True)
class Picture:
    """A picture file: its path relative to the root of the data, and its size in bytes."""

    path: str
    size: int


@dataclass
class Entries:
    """Content of one folder, in the order of names; paths are relative to the root of the data.

    Attributes:
        pictures: files with the suffix of a picture.
        folders: those that are read.
        others: other files.
        hidden: hidden and system entries.
        broken: links to nothing.
        again: folders that were reached before, by links.
    """

    pictures: list[Picture] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Root:
    """The folder a data source reads.

    Attributes:
        path: absolute, as the user knows it.
        real: without links.
        links: which links are followed.
    """

    path: str
    real: str
    links: Links = "inside"

    def check_link(self, path: str, target: str) -> None:
        """Check that a link may be followed.

        Raises:
            ValueError: it leads out of the root.
        """
        inside = os.path.commonpath([self.real, target]) == self.real
        if not inside and self.links == "inside":
            raise ValueError(
                f"image_folder: {printable(path)} is a link to {printable(target)}, outside of "
                f"{printable(self.path)}; copy the files into it, or follow such links by "
                "data.links: anywhere"
            )


@dataclass(frozen=True)
class Folder:
    """One folder below the root; read from disk at the first look.

    Attributes:
        root: the root.
        path: relative to it; empty: the root itself.
        reals: the folder's path without links, after those of the folders it was reached through.
    """

    root: Root
    path: str
    reals: tuple[str, ...]

    @classmethod
    def at(cls, path: str, links: Links = "inside") -> Folder:
        """The root folder at an absolute path.

        Raises:
            ValueError: there is none.
        """
        if not os.path.isdir(path):
            kind = "a file" if os.path.exists(path) else "no folder"
            raise ValueError(
                f"image_folder: {printable(path)} is {kind}; set data.root to a folder with one "
                "folder per class, or with train/ (and val/, test/) that hold them"
            )
        real = os.path.realpath(path)
        return cls(Root(path, real, links), "", (real,))

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def __str__(self) -> str:
        """For messages: the path from the root on."""
        return f"{printable(self.path)}/" if self.path else printable(self.root.path)

    @cached_property
    def entries(self) -> Entries:
        """Content of the folder.

        Raises:
            ValueError: it cannot be read, or holds a link that must not be followed.
        """
        found = Entries()
        for entry in self._scanned():
            path = os.path.join(self.path, entry.name)
            if is_hidden(entry.name):
                found.hidden.append(path)
            elif entry.is_symlink():
                self._add_link(found, path, entry)
            elif entry.is_dir():
                self._add_folder(found, path, os.path.join(self.reals[-1], entry.name))
            else:
                _add_file(found, path, entry)
        return found

    def walk(self, seen: set[str]) -> Iterator[Folder]:
        """This folder and all below it, each real folder once.

        Args:
            seen: real folders that are left out; those of this walk are added.
        """
        waiting: list[Folder] = [self]
        while waiting:
            folder = waiting.pop()
            if folder.reals[-1] in seen:
                self.entries.again.append(folder.path)
                continue
            seen.add(folder.reals[-1])
            yield folder
            waiting += reversed(folder.entries.folders)

    def stamps(self) -> dict[str, int]:
        """Time of the last change in nanoseconds, of each folder below this one that was read."""
        found: dict[str, int] = {}
        waiting: list[Folder] = [self]
        while waiting:
            folder = waiting.pop()
            if "entries" in folder.__dict__:  # `cached_property` keeps it there
                full = os.path.join(folder.root.path, folder.path)
                found[full] = os.stat(full).st_mtime_ns
                waiting += folder.entries.folders
        return found

    def _scanned(self) -> list[os.DirEntry[str]]:
        full = os.path.join(self.root.path, self.path)
        try:
            with os.scandir(full) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"image_folder: {printable(full)} cannot be read ({error.strerror}); allow it, or "
                "remove the folder"
            ) from None

    def _add_link(self, found: Entries, path: str, entry: os.DirEntry[str]) -> None:
        full = os.path.join(self.root.path, path)
        target = os.path.realpath(full)
        if not os.path.exists(target):
            found.broken.append(path)
        elif os.path.isdir(target):
            self.root.check_link(full, target)
            self._add_folder(found, path, target)
        else:
            if _has_suffix(entry.name):
                self.root.check_link(full, target)
            _add_file(found, path, entry)

    def _add_folder(self, found: Entries, path: str, real: str) -> None:
        if real in self.reals:
            found.again.append(path)
        else:
            found.folders.append(Folder(self.root, path, (*self.reals, real)))


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _add_file(found: Entries, path: str, entry: os.DirEntry[str]) -> None:
    """Note a file; pipes and devices count as other files, for they may block a reader."""
    about = entry.stat() if _has_suffix(entry.name) else None
    if about is not None and stat.S_ISREG(about.st_mode):
        found.pictures.append(Picture(path, about.st_size))
    else:
        found.others.append(path)
