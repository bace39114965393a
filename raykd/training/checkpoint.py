"""Weights and training states as files: whole or not there at all."""

from __future__ import annotations

import json
import os
import pickle
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raykd.architecture.weight_fit import check_shapes


def dump_weights(model: nn.Module, metadata: Mapping[str, str] | None = None) -> bytes:
    """The model's parameters and buffers in safetensors' format."""
    return safetensors.torch.save(_weights(model), dict(metadata or {}))


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the model's parameters and buffers to a safetensors file, atomically."""
    with _atomic(Path(path)) as draft:
        safetensors.torch.save_file(_weights(model), draft, dict(metadata or {}))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill the model from a safetensors file.

    Raises:
        ValueError: there is no such file, it is no safetensors file, or its tensors are not the
            model's (missing, unexpected or of another shape: the first few are named).
    """
    check_shapes(model, read_shapes(path), str(path))
    _fill(model, safetensors.torch.load_file(path))


def parse_weights(model: nn.Module, content: bytes, source: str = "the weights") -> None:
    """Fill the model from the bytes of a safetensors file; `source` names them in messages.

    Raises:
        ValueError: as `load_weights`.
    """
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(_unreadable(source, error)) from None
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, source)
    _fill(model, tensors)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What was written beside the weights of a safetensors file; reads its header only.

    Raises:
        ValueError: there is no such file, or it is no safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def metadata_of(content: bytes) -> dict[str, str]:
    """What was written beside the weights of a safetensors file's bytes."""
    return dict(_header(content).get("__metadata__") or {})


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with other metadata; the weights stay as they are."""
    header = {key: value for key, value in _header(content).items() if key != "__metadata__"}
    text = json.dumps({"__metadata__": dict(metadata), **header}).encode()
    text += b" " * (-len(text) % 8)  # weights begin at a multiple of 8
    start = 8 + int.from_bytes(content[:8], "little")
    return len(text).to_bytes(8, "little") + text + content[start:]


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The tensor shapes of a safetensors file by name; reads its header only.

    Raises:
        ValueError: there is no such file, or it is no safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def save_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a training's state to a file, atomically."""
    with _atomic(Path(path)) as draft:
        torch.save(dict(state), draft)


def load_state(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a training's state; runs no code from the file.

    Raises:
        ValueError: there is no such file, or it holds no state.
    """
    if not Path(path).is_file():
        raise ValueError(_absent(path))
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as a training's state: {_line(error)}; "
            "remove it to start that training over"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a training's state")
    return state


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its place, synced to disk, if nothing is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies, because safetensors refuses tensors that share memory (tied weights)."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    model.load_state_dict(tensors, strict=False)


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise ValueError(_absent(path))
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(_unreadable(str(path), error)) from None
    with opened as file:
        yield file


def _absent(path: str | Path) -> str:
    what = "a folder" if Path(path).is_dir() else "not there"
    return f"{path} is {what}; give the path of a file (relative to {Path.cwd()}, or absolute)"


def _unreadable(source: str, error: Exception) -> str:
    return (
        f"{source} is no readable safetensors file: {_line(error)}; write it with "
        "safetensors.torch.save_file(model.state_dict(), path)"
    )


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
