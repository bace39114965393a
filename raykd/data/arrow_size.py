"""Size of an Arrow file in memory, read from its headers before anything is unpacked."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

MAGIC = b"ARROW1\x00\x00"
"""First bytes of a file of Arrow's file format; the messages of its stream format follow."""


def unpacked_size(file: Path) -> int:
    """Return the bytes that the batches of an Arrow file or stream take in memory.

    A compressed buffer begins with its size, as the format prescribes (arrow.apache.org,
    "Arrow Columnar Format", Buffer compression); nothing is unpacked.

    Raises:
        Exception: the file is damaged: an error of pyarrow, `struct.error` or `IndexError`.
    """
    import pyarrow as pa

    size = 0
    with pa.memory_map(str(file)) as source:
        if source.read(len(MAGIC)) != MAGIC:
            source.seek(0)
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type in ("record batch", "dictionary"):
                size += _size_of(message)
    return size


def _size_of(message: Any) -> int:
    """Return the unpacked bytes of a batch."""
    metadata = message.metadata.to_pybytes()
    header = _Table.root(metadata).table(2)
    batch = header.table(1) if message.type == "dictionary" else header
    is_compressed = batch.place(3) is not None
    body, size = message.body, 0
    for offset, length in batch.pairs(2):
        if not is_compressed or length < 8:
            size += length
            continue
        (unpacked,) = struct.unpack("<q", body.slice(offset, 8).to_pybytes())
        size += length if unpacked < 0 else unpacked  # -1: the buffer is not compressed
    return size


class _Table:
    """A table of a FlatBuffer (flatbuffers.dev, "Internals").

    Args:
        content: the whole buffer.
        place: of the table.
    """

    def __init__(self, content: bytes, place: int) -> None:
        self._content, self._place = content, place

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, *struct.unpack_from("<I", content, 0))

    def place(self, field: int) -> int | None:
        """Return the place of a field; None if the table does not have it."""
        vtable = self._place - struct.unpack_from("<i", self._content, self._place)[0]
        (size,) = struct.unpack_from("<H", self._content, vtable)
        entry = 4 + 2 * field
        if entry >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._content, vtable + entry)
        return self._place + offset if offset else None

    def table(self, field: int) -> _Table:
        """Return a field that is a table.

        Raises:
            IndexError: the table does not have it.
        """
        return _Table(self._content, self._target(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Return a field that is a vector of pairs of int64.

        Raises:
            IndexError: the table does not have it.
        """
        start = self._target(field)
        (count,) = struct.unpack_from("<I", self._content, start)
        values = struct.unpack_from(f"<{2 * count}q", self._content, start + 4)
        return list(zip(values[::2], values[1::2], strict=True))

    def _target(self, field: int) -> int:
        place = self.place(field)
        if place is None:
            raise IndexError(f"the message has no field {field}")
        return place + struct.unpack_from("<I", self._content, place)[0]
