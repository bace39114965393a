"""Files of training states: safetensors with checksums, read without running code.

The tensors of a state are those of a safetensors file, named by their place in the state.  Its
metadata hold the rest as JSON, the training that the state belongs to, the CRC-32 of each tensor
and the SHA-256 of the header.

A training has two files, for states after an even and after an odd number of epochs.  The state
before the last one therefore stays whole while the last one is written.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from raykd.storage import Storage

FORMAT = "1"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
}
"""Names of data types in a safetensors file."""


class Entry(TypedDict):
    """Description of a tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


Header = dict[str, Entry]
"""Header of a safetensors file, without its metadata."""


class TrainingState(TypedDict):
    """State of a training between two epochs.

    Attributes:
        seed: of the training.
        epoch: number of finished epochs.
        history: metrics of each of them.
        student: tensors of the student, by name.
        distiller: tensors of what scheme and losses have learned, by name.
        optimizer: the optimizer's state of each parameter, by its number.
    """

    seed: int
    epoch: int
    history: list[dict[str, float]]
    student: dict[str, Tensor]
    distiller: dict[str, Tensor]
    optimizer: dict[int, dict[str, object]]


class StateFiles:
    """The two files of a training's states.

    Args:
        storage: of the files.
        names: files below the storage, for states after an even and an odd number of epochs.
        training: identity of the training.

    Attributes:
        notes: what went wrong with states since `take_notes`, one sentence each.
    """

    def __init__(self, storage: Storage, names: tuple[str, str], training: str) -> None:
        self.notes: list[str] = []
        self._storage = storage
        self._names = names
        self._training = training

    def save(self, state: TrainingState) -> None:
        """Write a state (`Training.state`) in place of the one before the last."""
        try:
            content = dump_state(state, self._training)
        except ValueError as error:
            self.notes.append(
                f"its state cannot be saved ({error}), so it starts over after an interruption"
            )
            return
        try:
            self._storage.write(self._names[state["epoch"] % 2], content)
        except OSError as error:  # the training can continue without a state
            self.notes.append(
                f"the state after epoch {state['epoch']} cannot be written ({error.strerror}); "
                "after an interruption the training continues from an earlier epoch"
            )

    def take_notes(self) -> tuple[str, ...]:
        """Return the notes, and forget them."""
        notes = tuple(self.notes)
        self.notes.clear()
        return notes

    def load(self) -> Iterator[TrainingState]:
        """Yield the states that are whole and belong to the training, the last one first."""
        states = []
        for name in self._names:
            content = self._storage.read(name)
            if content is None:
                continue
            try:
                states.append(parse_state(content, self._training))
            except ValueError as error:
                self.notes.append(f"{name} {error}")
        yield from sorted(states, key=lambda state: state["epoch"], reverse=True)


def dump_state(state: TrainingState, training: str) -> list[bytes | memoryview]:
    """Return the parts of a state file, in order; tensors are not copied.

    Args:
        state: its values are nested mappings with text or integer keys, lists and tuples of
            tensors on the CPU, text, numbers, Booleans and None.
        training: identity of the training.

    Raises:
        ValueError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, "", tensors)
    header: Header = {}
    parts: list[bytes | memoryview] = []
    checksums, end = [], 0
    # larger data types first, so that every tensor is aligned to its own
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        data = _bytes_of(tensor)
        start, end = end, end + data.nbytes
        header[name] = Entry(
            dtype=DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end]
        )
        checksums.append(zlib.crc32(data))
        parts.append(data)
    metadata = {
        "raykd.state": FORMAT,
        "training": training,
        "state": json.dumps(rest, separators=(",", ":")),
        "crc32": json.dumps(checksums, separators=(",", ":")),
    }
    metadata["sha256"] = _digest(metadata, header)
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return [len(text).to_bytes(8, "little"), text, *parts]


def parse_state(content: bytes, training: str) -> TrainingState:
    """Return the state in the content of a state file, with its tensors on the CPU.

    Args:
        content: of the file.
        training: identity of the training that the state must belong to.

    Raises:
        ValueError: the content is damaged, or belongs to another training; the message continues
            a sentence that begins with the name of the file.
    """
    if not content:
        raise ValueError("is empty")
    try:
        metadata, header, data = _split(content)
        checksum = metadata.pop("sha256")
        whole = checksum == _digest(metadata, header)
        if whole and metadata["raykd.state"] == FORMAT and metadata["training"] == training:
            _check_tensors(data, json.loads(metadata["crc32"]), header)
            tensors = safetensors.torch.load(content)
            return cast("TrainingState", _with_tensors(json.loads(metadata["state"]), tensors))
    except (KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        raise ValueError("is damaged, or no training state: its header is unreadable") from None
    if not whole:
        raise ValueError("is damaged: its header has another checksum")
    if metadata["raykd.state"] != FORMAT:
        raise ValueError("was written by another version of raykd")
    raise ValueError("belongs to another training")


def _split(content: bytes) -> tuple[dict[str, str], Header, memoryview]:
    """Return metadata, header and tensors of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
    except ValueError:  # JSON, or its encoding
        header = {}
    return header.pop("__metadata__"), header, memoryview(content)[start:]


def _check_tensors(data: memoryview, checksums: Sequence[int], header: Header) -> None:
    offsets = [entry["data_offsets"] for entry in header.values()]
    size = offsets[-1][1] if offsets else 0
    if len(data) != size:
        raise ValueError(f"is damaged: it has {len(data):,} bytes of tensors instead of {size:,}")
    for name, (start, end), checksum in zip(header, offsets, checksums, strict=True):
        if zlib.crc32(data[start:end]) != checksum:
            raise ValueError(f"is damaged: its tensor {name} has another checksum")


def _digest(metadata: Mapping[str, str], header: Header) -> str:
    """Return the checksum of a header."""
    text = json.dumps([dict(metadata), header], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"a state file cannot hold tensors of type {tensor.dtype}")
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


# A state as JSON: mappings, lists and tuples are written with their kind, tensors by their names


def _without_tensors(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """Return a value as JSON, and collect its tensors."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = place if place not in tensors else f"{place}#{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise ValueError(f"a state file cannot hold the keys of {place}: {list(value)[:3]}")
        items = [[key, _without_tensors(v, _join(place, key), tensors)] for key, v in value.items()]
        return {"mapping": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_without_tensors(v, _join(place, i), tensors) for i, v in enumerate(value)]}
    raise ValueError(f"a state file cannot hold {place}, a {type(value).__name__}")


def _with_tensors(value: object, tensors: Mapping[str, Tensor]) -> object:
    """Return the value that `_without_tensors` wrote as JSON."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: _with_tensors(item, tensors) for key, item in content}
    items = [_with_tensors(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _join(place: str, step: str | int) -> str:
    return f"{place}.{step}" if place else str(step)
