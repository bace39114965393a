"""Stored networks, with the preprocessing of the data they were trained on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raykd.data import Dataset, Inputs
from raykd.models import Model
from raykd.models.normalization import from_metadata
from raykd.models.preprocessing import PIXELS, Preprocessing, RawInputModel
from raykd.training.build import task_of
from raykd.training.checkpoint import parse_network, weights_metadata
from raykd.training.normalization import adapt_teacher
from raykd.training.teachers import read_network


def preprocessing_of(data: Dataset) -> Preprocessing:
    """Return the preprocessing from the raw samples of the data to the inputs of a network."""
    inputs = data.train.take(data.train.index[:0])
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
        )
    dtype = raw.dtype or str(inputs.dtype).removeprefix("torch.")
    if inputs.dtype != torch.uint8:
        return Preprocessing(
            kind="tensors", shape=data.input_shape, dtype=dtype, preparation=raw.preparation
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
    inputs = split.take(rows.to(split.targets.device))
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
        return inputs
    raw = data.raw
    if raw.maximum != PIXELS:
        inputs = torch.round(inputs.double() * (raw.maximum / PIXELS))
    if raw.dtype:
        inputs = inputs.to(getattr(torch, raw.dtype))
    return inputs.reshape(-1, *raw.shape) if raw.shape else inputs


def load_stored_network(file: str, content: bytes, model: Model | None, data: Dataset) -> nn.Module:
    """Load a stored network, adapted to the data, in eval mode, on the CPU.

    Args:
        file: name; a safetensors file holds weights of `model`, any other a whole network.
        content: bytes of the file.
        model: of the weights.
        data: source of the batches.

    Raises:
        ValueError: the weights are not those of the model, or their normalization does not fit.
    """
    if not file.endswith(".safetensors"):
        return adapt_teacher(parse_network(content), data).eval()
    assert model is not None, "weights without their model"
    network = read_network(model, task_of(data), content)
    return adapt_teacher(network, data, from_metadata(weights_metadata(content)))
