"""Store of cached teacher outputs, below the storage of a study.

An entry is a folder of shards (safetensors files) and a manifest with their checksums, each file
written atomically.  The manifest is written last: an entry without one is under construction, and
each of its finished shards has a file with its checksum, so that an interrupted build can
continue.
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
from raykd.training.teacher_cache.spec import CacheSpec, Shard

FORMAT = 1
FOLDER = "outputs"
MANIFEST = "manifest.json"
LAST_USE = "used"
LEASE = "held-"
"""Prefix of the files by which running studies protect an entry from removal."""

LEASE_S = 300.0
"""Seconds for which a lease is valid after it was written."""


@dataclass(frozen=True)
class Manifest:
    """Contents of an entry.

    Attributes:
        spec: of its outputs.
        provenance: what is needed to compute them again, and to show them to people
            (`provenance_of`).
        checksums: SHA-256 of each file, by name.
        sizes: bytes of each file, by name.
    """

    spec: CacheSpec
    provenance: Mapping[str, Any]
    checksums: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class CacheEntry:
    """Entry in a listing.

    Attributes:
        key: of the entry.
        manifest: None if the entry is under construction.
        bytes: size of its files.
        used: time of the last use, in seconds since 1970.
    """

    key: str
    manifest: Manifest | None
    bytes: int
    used: float


class CacheStore:
    """Cache entries below a storage.

    Args:
        storage: must be reachable by every worker.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of an entry; None if there is none that can be read."""
        content = self.storage.read(_file(key, MANIFEST))
        if content is None:
            return None
        try:
            data = json.loads(content)
            if data["format"] != FORMAT:
                return None
            return Manifest(
                CacheSpec.from_plain(data["description"]),
                data["about"],
                {file: shard["sha256"] for file, shard in data["shards"].items()},
                {file: shard["size"] for file, shard in data["shards"].items()},
            )
        except (ValueError, KeyError, TypeError):
            return None

    def is_whole(self, key: str) -> bool:
        """Return whether an entry is complete, judging by the sizes of its files."""
        manifest = self.manifest(key)
        return manifest is not None and not self._wrong_sizes(key, manifest)

    def verify(self, key: str) -> list[str]:
        """Read all shards of an entry and remove those whose checksums are wrong.

        The next study that needs the entry computes only the removed shards.

        Returns:
            Names of the removed files.

        Raises:
            ValueError: there is no complete entry with this key.
        """
        manifest = self.manifest(key)
        if manifest is None:
            raise ValueError(f"there are no complete outputs {key} below {self.storage.root}")
        damaged = [
            file
            for file, checksum in manifest.checksums.items()
            if _digest(self.storage.read(_file(key, file))) != checksum
        ]
        self._reopen(key, manifest, damaged)
        return damaged

    def repair(self, key: str) -> None:
        """Remove shards of the wrong size, which puts the entry back under construction."""
        manifest = self.manifest(key)
        if manifest is not None:
            self._reopen(key, manifest, self._wrong_sizes(key, manifest))

    def put(self, key: str, shard: Shard, content: bytes) -> None:
        """Write a finished shard, unless another study has written one of the same size.

        The first one stays, because a manifest may already hold its checksum, and machines differ
        in the last bits.
        """
        if not self.storage.create(_file(key, shard.file), content):
            present = self.storage.read(_file(key, shard.file)) or b""
            if self.manifest(key) is not None:
                return
            if len(present) == len(content):
                content = present
            else:  # left by a crash
                self.storage.write(_file(key, shard.file), content)
        self._write_checksum(key, shard.file, _digest(content), len(content))

    def finished(self, key: str) -> set[str]:
        """Return the names of the finished shards of an entry under construction."""
        files = self.storage.files(f"{FOLDER}/{key}")
        return {file for file in files if _checksum_file(file) in files}

    def complete(self, spec: CacheSpec, provenance: Mapping[str, Any]) -> bool:
        """Write the manifest if all shards exist; return whether the entry is complete now."""
        key = spec.key
        if self.manifest(key) is not None:
            return True
        shards = [shard.file for shard in spec.shards]
        if not self.finished(key).issuperset(shards):
            return False
        checksums = {file: self.storage.read(_file(key, _checksum_file(file))) for file in shards}
        if None in checksums.values():
            return self.manifest(key) is not None  # another worker was first
        content = {
            "format": FORMAT,
            "description": spec.plain(),
            "about": dict(provenance),
            "shards": {file: json.loads(checksum or b"") for file, checksum in checksums.items()},
        }
        self.storage.create(_file(key, MANIFEST), json.dumps(content, indent=1).encode())
        for file in self.storage.files(f"{FOLDER}/{key}"):
            draft_of = file[1:].rpartition(".")[0] if file.startswith(".") else ""
            is_checksum = file.endswith(_checksum_file(""))
            if is_checksum or draft_of.removesuffix(_checksum_file("")) in shards:
                self.storage.remove(_file(key, file))
        return True

    def entries(self) -> list[CacheEntry]:
        """Return all entries, the most recently used first."""
        entries = [self.entry(key) for key in self.storage.folders(FOLDER)]
        return sorted(entries, key=lambda entry: entry.used, reverse=True)

    def entry(self, key: str) -> CacheEntry:
        """Return one entry; its size is 0 if it does not exist."""
        size = sum(self.storage.files(f"{FOLDER}/{key}").values())
        return CacheEntry(key, self.manifest(key), size, self._time(_file(key, LAST_USE)))

    def touch(self, key: str) -> None:
        """Record that an entry is used now."""
        self.storage.write(_file(key, LAST_USE), repr(time.time()).encode())

    def hold(self, key: str, study: str) -> None:
        """Protect an entry from removal by other studies for the next `LEASE_S` seconds.

        Args:
            key: of the entry.
            study: name, unique among running studies.
        """
        self.storage.write(_file(key, f"{LEASE}{study}"), repr(time.time()).encode())

    def release(self, key: str, study: str) -> None:
        """Let other studies remove an entry again."""
        self.storage.remove(_file(key, f"{LEASE}{study}"))
        folder = self.storage.local(f"{FOLDER}/{key}")
        if folder is not None:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def is_held(self, key: str) -> bool:
        """Return whether a running study uses an entry."""
        files = self.storage.files(f"{FOLDER}/{key}")
        times = [self._time(_file(key, file)) for file in files if file.startswith(LEASE)]
        return any(written > time.time() - LEASE_S for written in times)

    def remove(self, key: str) -> None:
        """Remove an entry; the manifest first, so that no other process starts to read it."""
        self.storage.remove(_file(key, MANIFEST))
        self.storage.remove_folder(f"{FOLDER}/{key}")

    def make_room(self, needed: int, limit: float, keep: Iterable[str] = ()) -> list[str]:
        """Remove the least recently used entries until `needed` more bytes fit within `limit`.

        Args:
            needed, limit: bytes.
            keep: keys of entries to keep, in addition to those that running studies use.

        Returns:
            Keys of the removed entries.
        """
        protected = set(keep)
        entries = self.entries()
        total = sum(entry.bytes for entry in entries) + needed
        removed = []
        for entry in reversed(entries):
            if total <= limit:
                break
            if entry.key not in protected and not self.is_held(entry.key):
                self.remove(entry.key)
                removed.append(entry.key)
                total -= entry.bytes
        return removed

    def _time(self, file: str) -> float:
        content = self.storage.read(file)
        with contextlib.suppress(ValueError):
            return float(content or b"0")
        return 0.0

    def _wrong_sizes(self, key: str, manifest: Manifest) -> list[str]:
        files = self.storage.files(f"{FOLDER}/{key}")
        return [file for file, size in manifest.sizes.items() if files.get(file) != size]

    def _reopen(self, key: str, manifest: Manifest, damaged: list[str]) -> None:
        """Put a complete entry back under construction, without its damaged shards."""
        if not damaged:
            return
        for file in damaged:
            self.storage.remove(_file(key, file))
        for file, checksum in manifest.checksums.items():
            if file not in damaged:
                self._write_checksum(key, file, checksum, manifest.sizes[file])
        self.storage.remove(_file(key, MANIFEST))

    def _write_checksum(self, key: str, file: str, checksum: str, size: int) -> None:
        content = json.dumps({"sha256": checksum, "size": size}).encode()
        self.storage.write(_file(key, _checksum_file(file)), content)


def free_bytes(storage: Storage) -> int | None:
    """Return the free space of the disk of a storage; None if it is unknown."""
    folder = storage.local("")
    while folder is not None and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder is None:
        return None
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _file(key: str, file: str) -> str:
    return f"{FOLDER}/{key}/{file}"


def _checksum_file(file: str) -> str:
    return f"{file}.sum"


def _digest(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()
