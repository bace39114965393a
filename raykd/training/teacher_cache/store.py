"""Where the outputs of teachers are kept: below the storage, each under its own address.

An entry is a folder of shards (safetensors), each written whole or not at all, and a manifest with
their checksums that is written last: an entry without one is under construction.  While it is,
each finished shard has its checksum beside it, so that an interrupted build goes on after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raykd.storage import Storage
from raykd.training.teacher_cache.spec import Description, Shard

FORMAT = 1
FOLDER = "outputs"
MANIFEST = "manifest.json"
USED = "used"
HELD = "held-"
"""Start of the names of the files by which running studies keep an entry from being removed."""

HELD_S = 300.0
"""Seconds after its last sign of life for which a study still keeps an entry."""


@dataclass(frozen=True)
class Manifest:
    """What an entry holds.

    Attributes:
        description: of its outputs.
        about: what is needed to compute them anew, and to name them to people.
        checksums: SHA-256 of each file, by its name.
        sizes: bytes of each file.
    """

    description: Description
    about: Mapping[str, Any]
    checksums: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Entry:
    """An entry as it is listed.

    Attributes:
        key: its address.
        manifest: None where it is under construction.
        bytes: of the files that are there.
        used: when it was last read, in seconds since 1970.
    """

    key: str
    manifest: Manifest | None
    bytes: int
    used: float


class CacheStore:
    """The entries below one storage.

    Args:
        storage: every worker must reach it.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def manifest(self, key: str) -> Manifest | None:
        """An entry's manifest; None where there is none that can be read."""
        content = self.storage.read(_file(key, MANIFEST))
        if content is None:
            return None
        try:
            data = json.loads(content)
            if data["format"] != FORMAT:
                return None
            return Manifest(
                Description.from_plain(data["description"]),
                data["about"],
                {file: found["sha256"] for file, found in data["shards"].items()},
                {file: found["size"] for file, found in data["shards"].items()},
            )
        except (ValueError, KeyError, TypeError):
            return None

    def is_whole(self, key: str) -> bool:
        """Whether an entry is complete, as far as its files' sizes tell."""
        manifest = self.manifest(key)
        return manifest is not None and not self._misshapen(key, manifest)

    def verify(self, key: str) -> list[str]:
        """The shards whose bytes are not what they were when they were written.

        All are read.  The faulty ones are removed: the next study that needs the entry computes
        them anew, and them alone.

        Raises:
            ValueError: there is no complete entry of this address.
        """
        manifest = self.manifest(key)
        if manifest is None:
            raise ValueError(f"there are no complete outputs {key} below {self.storage.root}")
        faulty = [
            file
            for file, checksum in manifest.checksums.items()
            if _digest(self.storage.read(_file(key, file))) != checksum
        ]
        self._reopen(key, manifest, faulty)
        return faulty

    def mend(self, key: str) -> None:
        """Where an entry's files are missing or cut short, take it back under construction."""
        manifest = self.manifest(key)
        if manifest is not None:
            self._reopen(key, manifest, self._misshapen(key, manifest))

    def put(self, key: str, shard: Shard, content: bytes) -> None:
        """Write a finished shard; one of the same size that another study wrote first stays.

        Its checksum may stand in a manifest already, and machines differ in the last bits.
        """
        if not self.storage.create(_file(key, shard.file), content):
            present = self.storage.read(_file(key, shard.file)) or b""
            if self.manifest(key) is not None:
                return
            if len(present) == len(content):
                content = present
            else:  # what a crash left
                self.storage.write(_file(key, shard.file), content)
        note = {"sha256": _digest(content), "size": len(content)}
        self.storage.write(_file(key, _note(shard.file)), json.dumps(note).encode())

    def finished(self, key: str) -> set[str]:
        """The files of those shards that are there, while an entry is under construction."""
        files = self.storage.files(f"{FOLDER}/{key}")
        return {file for file in files if _note(file) in files}

    def complete(self, description: Description, about: Mapping[str, Any]) -> bool:
        """Write the manifest if all shards are there; whether the entry is complete now."""
        key = description.key
        if self.manifest(key) is not None:
            return True
        wanted = [shard.file for shard in description.shards]
        if not self.finished(key).issuperset(wanted):
            return False
        notes = {file: self.storage.read(_file(key, _note(file))) for file in wanted}
        if None in notes.values():
            return self.manifest(key) is not None  # another worker was first
        content = {
            "format": FORMAT,
            "description": description.plain(),
            "about": dict(about),
            "shards": {file: json.loads(note or b"") for file, note in notes.items()},
        }
        self.storage.create(_file(key, MANIFEST), json.dumps(content, indent=1).encode())
        for file in self.storage.files(f"{FOLDER}/{key}"):
            draft_of = file[1:].rpartition(".")[0] if file.startswith(".") else ""
            if file.endswith(_note("")) or draft_of.removesuffix(_note("")) in wanted:
                self.storage.remove(_file(key, file))
        return True

    def entries(self) -> list[Entry]:
        """All of them, the last used one first."""
        found = [self.entry(key) for key in self.storage.folders(FOLDER)]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def entry(self, key: str) -> Entry:
        files = self.storage.files(f"{FOLDER}/{key}")
        return Entry(key, self.manifest(key), sum(files.values()), self._used(key))

    def touch(self, key: str) -> None:
        """An entry is about to be read."""
        self.storage.write(_file(key, USED), repr(time.time()).encode())

    def hold(self, key: str, study: str) -> None:
        """Keep an entry from being removed by other studies for the next `HELD_S` seconds.

        Args:
            study: unlike that of any other running study.
        """
        self.storage.write(_file(key, f"{HELD}{study}"), repr(time.time()).encode())

    def release(self, key: str, study: str) -> None:
        """Let other studies remove an entry again."""
        self.storage.remove(_file(key, f"{HELD}{study}"))
        folder = self.storage.local(f"{FOLDER}/{key}")
        if folder is not None:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def is_held(self, key: str) -> bool:
        """Return whether a running study uses an entry."""
        files = self.storage.files(f"{FOLDER}/{key}")
        signs = [self._time(_file(key, file)) for file in files if file.startswith(HELD)]
        return any(sign > time.time() - HELD_S for sign in signs)

    def remove(self, key: str) -> None:
        """Remove an entry; the manifest first, so that nobody begins to read the rest."""
        self.storage.remove(_file(key, MANIFEST))
        self.storage.remove_folder(f"{FOLDER}/{key}")

    def make_room(self, needed: int, limit: float, keep: Iterable[str] = ()) -> list[str]:
        """Remove those unused longest until `needed` more bytes are within `limit`.

        Entries that a running study holds stay.

        Args:
            needed, limit: bytes.
            keep: entries that stay.

        Returns:
            The addresses of those removed.
        """
        kept = set(keep)
        entries = self.entries()
        total = sum(entry.bytes for entry in entries) + needed
        removed = []
        for entry in reversed(entries):
            if total <= limit:
                break
            if entry.key not in kept and not self.is_held(entry.key):
                self.remove(entry.key)
                removed.append(entry.key)
                total -= entry.bytes
        return removed

    def _used(self, key: str) -> float:
        return self._time(_file(key, USED))

    def _time(self, file: str) -> float:
        said = self.storage.read(file)
        with contextlib.suppress(ValueError):
            return float(said or b"0")
        return 0.0

    def _misshapen(self, key: str, manifest: Manifest) -> list[str]:
        files = self.storage.files(f"{FOLDER}/{key}")
        return [file for file, size in manifest.sizes.items() if files.get(file) != size]

    def _reopen(self, key: str, manifest: Manifest, faulty: list[str]) -> None:
        """Take a complete entry back under construction without its faulty shards."""
        if not faulty:
            return
        for file in faulty:
            self.storage.remove(_file(key, file))
        for file, checksum in manifest.checksums.items():
            if file not in faulty:
                note = {"sha256": checksum, "size": manifest.sizes[file]}
                self.storage.write(_file(key, _note(file)), json.dumps(note).encode())
        self.storage.remove(_file(key, MANIFEST))


def free_bytes(storage: Storage) -> int | None:
    """What the disk below a storage still holds; None where nobody can tell."""
    folder = storage.local("")
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder is None:
        return None
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _file(key: str, file: str) -> str:
    return f"{FOLDER}/{key}/{file}"


def _note(file: str) -> str:
    return f"{file}.sum"


def _digest(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()
