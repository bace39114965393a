"""Networks as bytes: weights as safetensors files, whole networks as files of `torch.save`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from raykd.errors import first_line
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


def dump_network(network: nn.Module) -> bytes:
    """Serialize a network with `torch.save`."""
    buffer = io.BytesIO()
    torch.save(network, buffer)
    return buffer.getvalue()


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


def _unreadable(source: str, error: Exception) -> str:
    return (
        f"{source} is no readable safetensors file: {first_line(error)}; write it with "
        "safetensors.torch.save_file(model.state_dict(), path)"
    )
