"""Weights and training states as bytes: safetensors files, and files of `torch.save`."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from raykd.models.weights.matching import check_shapes


def dump_weights(model: nn.Module, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialize the parameters and buffers of a model in the safetensors format."""
    # Copies, because safetensors refuses tensors that share memory (tied weights).
    weights = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(weights, dict(metadata or {}))


def parse_weights(model: nn.Module, content: bytes, source: str = "the weights") -> None:
    """Load the bytes of a safetensors file into a model.

    Args:
        model: is changed in place, or not at all.
        content: of the file.
        source: name of the file in error messages.

    Raises:
        ValueError: the bytes are no safetensors file, or its tensors are not those of the model
            (missing, unexpected, or of another shape; the first few are named).
    """
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(_unreadable(source, error)) from None
    check_shapes(model, {name: tuple(tensors[name].shape) for name in sorted(tensors)}, source)
    model.load_state_dict(tensors, strict=False)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; reads its header only.

    Raises:
        ValueError: there is no such file, or it is no safetensors file.
    """
    if not Path(path).is_file():
        state = "a folder" if Path(path).is_dir() else "not there"
        raise ValueError(
            f"{path} is {state}; give the path of a file (relative to {Path.cwd()}, or absolute)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(_unreadable(str(path), error)) from None


def weights_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the bytes of a safetensors file."""
    return dict(_header(content).get("__metadata__") or {})


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file with other metadata and the same weights."""
    header = {key: value for key, value in _header(content).items() if key != "__metadata__"}
    text = json.dumps({"__metadata__": dict(metadata), **header}).encode()
    text += b" " * (-len(text) % 8)  # weights begin at a multiple of 8
    start = 8 + int.from_bytes(content[:8], "little")
    return len(text).to_bytes(8, "little") + text + content[start:]


def dump_object(value: object) -> bytes:
    """Serialize a network or a training state with `torch.save`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def parse_state(
    content: bytes, device: torch.device | str = "cpu", source: str = "the state"
) -> dict[str, Any]:
    """Return the training state in bytes written by `dump_object`; runs no code of the file.

    Args:
        content: of the file.
        device: where tensors are put.
        source: name of the file in error messages.

    Raises:
        ValueError: the bytes hold no training state.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{source} is no readable training state: {_first_line(error)}; remove it to start "
            "the training over"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(
            f"{source} holds a {type(state).__name__}, not a training state; remove it to start "
            "the training over"
        )
    return state


def parse_network(content: bytes) -> nn.Module:
    """Return the network in bytes written by `dump_object`, on the CPU.

    Unpickling runs code that the bytes name: only for files of trusted origin.
    """
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


def _unreadable(source: str, error: Exception) -> str:
    return (
        f"{source} is no readable safetensors file: {_first_line(error)}; write it with "
        "safetensors.torch.save_file(model.state_dict(), path)"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
