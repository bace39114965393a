"""Stored networks: their checksums, and the preprocessing of the data they were trained on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raykd.compat.network_files import read_network as read_whole_network
from raykd.data import Dataset, Inputs
from raykd.models import Model
from raykd.models.normalization import from_metadata
from raykd.models.preprocessing import PIXELS, Preprocessing, RawInputModel
from raykd.storage import Storage
from raykd.training.build import signature_of
from raykd.training.checkpoint import weights_metadata
from raykd.training.normalization import adapt_teacher
from raykd.training.stored_outputs import SUFFIX, load_outputs
from raykd.training.teachers import read_network


def preprocessing_of(data: Dataset) -> Preprocessing:
    """Return the preprocessing from the raw samples of the data to the inputs of a network."""
    inputs = _as_input(data, data.train.take(data.train.index[:0]))
    raw = data.raw
    if not isinstance(inputs, Tensor):
        return Preprocessing(
            kind="texts",
            shape=data.input_shape,
            dtype="int64",
            keys=tuple(inputs),
            padding=data.padding,
            vocabulary=data.vocabulary,
            preparation=raw.preparation,
            output_mean=data.target_mean,
            output_scale=data.target_scale,
        )
    dtype = raw.dtype or str(inputs.dtype).removeprefix("torch.")
    if inputs.dtype != torch.uint8:
        return Preprocessing(
            kind="tensors",
            shape=data.input_shape,
            dtype=dtype,
            mean=raw.mean,
            std=raw.scale,
            preparation=raw.preparation,
            output_mean=data.target_mean,
            output_scale=data.target_scale,
        )
    return Preprocessing(
        kind="pictures",
        shape=data.input_shape,
        dtype=dtype,
        raw_shape=raw.shape,
        maximum=raw.maximum,
        mean=data.mean,
        std=data.std,
        preparation=raw.preparation,
    )


def with_preprocessing(
    network: nn.Module, data: Dataset, metrics: Mapping[str, float] | None = None
) -> RawInputModel:
    """Return a network as a module from raw samples of the data to logits.

    Args:
        network: trained on `data`; on the CPU.
        data: determines normalization, shape and class names.
        metrics: of the network.
    """
    return RawInputModel(network, preprocessing_of(data), data.class_names, metrics).eval()


def raw_samples(data: Dataset, rows: Tensor, part: str = "test") -> Inputs:
    """Return samples of a split as they are before preprocessing.

    Args:
        data: a data set.
        rows: (B,) int64, rows of the split.
        part: "train", "val" or "test".

    Returns:
        (B, ...) of `Raw.dtype`, or a mapping of tensors.
    """
    split = {"train": data.train, "val": data.val, "test": data.test}[part]
    inputs = _as_input(data, split.take(rows.to(split.targets.device)))
    raw = data.raw
    if isinstance(inputs, Tensor) and raw.scale:
        scale, mean = inputs.new_tensor(raw.scale), inputs.new_tensor(raw.mean)
        return inputs * scale + mean
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
        return inputs
    if raw.maximum != PIXELS:
        inputs = torch.round(inputs.double() * (raw.maximum / PIXELS))
    if raw.dtype:
        inputs = inputs.to(getattr(torch, raw.dtype))
    return inputs.reshape(-1, *raw.shape) if raw.shape else inputs


def _as_input(data: Dataset, inputs: Inputs) -> Inputs:
    return inputs if data.form is None else data.form.take(inputs)


def load_stored_network(
    file: str,
    content: bytes,
    model: Model | None,
    data: Dataset,
    *,
    allow_code: bool = False,
) -> nn.Module:
    """Load a stored network, adapted to the data, in eval mode, on the CPU.

    Args:
        file: name; a safetensors file holds weights of `model`, `SUFFIX` outputs by sample, any
            other a whole network.
        content: bytes of the file.
        model: of the weights.
        data: source of the batches, as the network takes them.
        allow_code: a whole network may run code of its file.

    Raises:
        ValueError: the weights are not those of the model, their normalization does not fit, or a
            whole network would run code.
    """
    if file.endswith(SUFFIX):
        return load_outputs(content, data).eval()
    if not file.endswith(".safetensors"):
        network = read_whole_network(content, file, allow_code=allow_code)
        return adapt_teacher(network, data).eval()
    assert model is not None, "weights without their model"
    network = read_network(model, signature_of(data), content)
    return adapt_teacher(network, data, from_metadata(weights_metadata(content)))


def save_network(storage: Storage, file: str, content: bytes) -> None:
    """Write a network and its checksum, unless the file exists: other studies may read it."""
    if storage.create(file, content):
        storage.write(_checksum_file(file), _checksum(content))


def remove_network(storage: Storage, file: str) -> None:
    """Remove a stored network and its checksum."""
    storage.remove(file)
    storage.remove(_checksum_file(file))


def find_damage(storage: Storage, file: str) -> str:
    """Return the reason why a stored network cannot be trusted; empty if it is as it was written.

    A network without a checksum (its writer died before it wrote that) gets one if it is readable.
    """
    content = storage.read(file)
    if content is None:
        return "it is missing"
    stored, present = storage.read(_checksum_file(file)), _checksum(content)
    if stored is not None:
        return "" if stored == present else "its SHA-256 is not the one it was stored with"
    if not _is_readable(file, content):
        return "it is cut short or overwritten"
    with contextlib.suppress(OSError):  # a folder that others have filled may be read-only
        storage.create(_checksum_file(file), present)
    return ""


def _is_readable(file: str, content: bytes) -> bool:
    """Check the form of a network's file; runs no code of it."""
    try:
        if file.endswith((".safetensors", SUFFIX)):
            safetensors.torch.load(content)
            return True
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except (SafetensorError, zipfile.BadZipFile):
        return False


def _checksum_file(file: str) -> str:
    return f"{file}.sha256"


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
