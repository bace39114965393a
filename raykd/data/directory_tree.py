"""Folders of images on disk: their entries, and the links that are followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from raykd.data.decode import SUFFIXES
from raykd.data.download import printable

Links = Literal["inside", "anywhere"]
FollowedLinks = Annotated[
    Links, Field(description="Symbolic links to follow: only those inside `root`, or anywhere")
]

SYSTEM = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        *("__macosx", "__pycache__", "lost+found", "thumbs.db", "desktop.ini", "icon\r"),
    }
)
"""Entries, in lower case, that systems and programs add to folders."""


def is_hidden(name: str) -> bool:
    """Return whether an entry is skipped by its name: hidden, or written by a system."""
    return name.startswith((".", "~$")) or name.casefold() in SYSTEM


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path relative to the root of the data, and its size in bytes."""

    path: str
    size: int


@dataclass
class Entries:
    """Content of one folder, in the order of names; paths are relative to the root of the data.

    Attributes:
        images: files with the suffix of an image.
        folders: folders that are read.
        other_files: files with other suffixes.
        hidden: hidden and system entries.
        broken: links without a target.
        repeated: folders that were already reached by links.
    """

    images: list[ImageFile] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Root:
    """Root folder of a data source.

    Attributes:
        path: absolute path, as the user gave it.
        real: path without links.
        links: links to follow.
        source: name of the data source, for messages.
        option: key of the study that allows all links; None if there is none.
    """

    path: str
    real: str
    links: Links
    source: str
    option: str | None

    @classmethod
    def of(
        cls, source: str, path: str, links: Links = "inside", option: str | None = "data.links"
    ) -> Root:
        """Return the root at an absolute path that exists."""
        return cls(path, os.path.realpath(path), links, source, option)

    def folder(self) -> Folder:
        return Folder(self, "", (self.real,))

    def check_entry(self, path: str) -> None:
        """Check a file or folder, given relative to the root, that may be a link or below one.

        Raises:
            ValueError: it leads outside the root.
        """
        full = os.path.join(self.path, path)
        self.check_link(full, os.path.realpath(full))

    def check_link(self, path: str, target: str) -> None:
        """Check that a link may be followed.

        Raises:
            ValueError: it leads outside the root.
        """
        inside = os.path.commonpath([self.real, target]) == self.real
        if not inside and self.links == "inside":
            follow = f", or follow such links by {self.option}: anywhere" if self.option else ""
            link = "" if os.path.normpath(path) == target else f"a link to {printable(target)}, "
            raise ValueError(
                f"{self.source}: {printable(path)} is {link}outside of {printable(self.path)}; "
                f"copy the files into it{follow}"
            )


@dataclass(frozen=True)
class Folder:
    """Folder below the root; read from disk at the first access.

    Attributes:
        root: root of the data.
        path: path relative to the root; empty for the root itself.
        reals: paths without links of the folders on the way, this folder last.
    """

    root: Root
    path: str
    reals: tuple[str, ...]

    @classmethod
    def at(cls, path: str, links: Links = "inside") -> Folder:
        """Return the root folder of `image_folder` at an absolute path.

        Raises:
            ValueError: there is no such folder.
        """
        if not os.path.isdir(path):
            kind = "a file" if os.path.exists(path) else "not a folder"
            raise ValueError(
                f"image_folder: {printable(path)} is {kind}; set data.root to a folder with one "
                "folder per class, or with train/ (and val/, test/) that hold them"
            )
        return Root.of("image_folder", path, links).folder()

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def __str__(self) -> str:
        """Return the path for messages, relative to the root."""
        return f"{printable(self.path)}/" if self.path else printable(self.root.path)

    @cached_property
    def entries(self) -> Entries:
        """Content of the folder.

        Raises:
            ValueError: it cannot be read, or holds a link that must not be followed.
        """
        entries = Entries()
        for entry in self._scan():
            path = os.path.join(self.path, entry.name)
            if is_hidden(entry.name):
                entries.hidden.append(path)
            elif entry.is_symlink():
                self._add_link(entries, path, entry)
            elif entry.is_dir():
                self._add_folder(entries, path, os.path.join(self.reals[-1], entry.name))
            else:
                _add_file(entries, path, entry)
        return entries

    def walk(self, visited: set[str]) -> Iterator[Folder]:
        """Iterate over this folder and all below it, each real folder once.

        Args:
            visited: real folders to skip; those of this walk are added.
        """
        waiting: list[Folder] = [self]
        while waiting:
            folder = waiting.pop()
            if folder.reals[-1] in visited:
                self.entries.repeated.append(folder.path)
                continue
            visited.add(folder.reals[-1])
            yield folder
            waiting += reversed(folder.entries.folders)

    def stamps(self) -> dict[str, int]:
        """Return the time of the last change, in ns, of each folder that was read."""
        times: dict[str, int] = {}
        waiting: list[Folder] = [self]
        while waiting:
            folder = waiting.pop()
            if "entries" in folder.__dict__:  # `cached_property` keeps it there
                full = os.path.join(folder.root.path, folder.path)
                times[full] = os.stat(full).st_mtime_ns
                waiting += folder.entries.folders
        return times

    def _scan(self) -> list[os.DirEntry[str]]:
        full = os.path.join(self.root.path, self.path)
        try:
            with os.scandir(full) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(
                f"{self.root.source}: {printable(full)} cannot be read ({error.strerror}); make it "
                "readable, or remove it"
            ) from None

    def _add_link(self, entries: Entries, path: str, entry: os.DirEntry[str]) -> None:
        full = os.path.join(self.root.path, path)
        target = os.path.realpath(full)
        if not os.path.exists(target):
            entries.broken.append(path)
        elif os.path.isdir(target):
            self.root.check_link(full, target)
            self._add_folder(entries, path, target)
        else:
            if _has_suffix(entry.name):
                self.root.check_link(full, target)
            _add_file(entries, path, entry)

    def _add_folder(self, entries: Entries, path: str, real: str) -> None:
        if real in self.reals:
            entries.repeated.append(path)
        else:
            entries.folders.append(Folder(self.root, path, (*self.reals, real)))


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _add_file(entries: Entries, path: str, entry: os.DirEntry[str]) -> None:
    """Add a file; pipes and devices count as other files, because reading them may block."""
    status = entry.stat() if _has_suffix(entry.name) else None
    if status is not None and stat.S_ISREG(status.st_mode):
        entries.images.append(ImageFile(path, status.st_size))
    else:
        entries.other_files.append(path)
