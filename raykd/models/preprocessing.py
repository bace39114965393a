"""Classifiers with the preprocessing of their inputs.

The network that a study saves takes raw samples, as the data source returns them.  Normalization,
input shape and class names are part of the module, so that they cannot be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raykd.models.normalization import (
    NORMALIZATIONS,
    Normalization,
    expected_normalization,
    remove_input_map,
)

PIXELS = 255.0
"""Largest pixel value in stored images."""

COLORS = {1: "grayscale", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of raw samples to the inputs of a network.

    Attributes:
        kind: "pictures" (images, stored as uint8), "texts" (tokens) or "tensors" (standardized by
            mean and std, if there are any).
        shape: shape of a raw sample without the batch: (C, H, W), (tokens,), ...
        dtype: NumPy name of the type of raw samples.
        raw_shape: shape of the samples in the data source; empty: same as `shape`.
        maximum: largest raw pixel value; raw values are rounded to 0 ... 255 first.
        mean, std: per channel, of pixels scaled to [0, 1]; empty: pixels are only scaled.  Of
            tensors: per value of a sample.
        keys: names of the tensors of a text in order, such as `input_ids` and `attention_mask`.
        padding: padding token.
        vocabulary: number of tokens.
        preparation: one sentence on how files become raw samples.
        output_mean, output_scale: units of the outputs: output * scale + mean, one a value; () for
            outputs that are returned as they are.
    """

    kind: Literal["pictures", "texts", "tensors"]
    shape: tuple[int, ...]
    dtype: str = "float32"
    raw_shape: tuple[int, ...] = ()
    maximum: float = PIXELS
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    keys: tuple[str, ...] = ()
    padding: int = 0
    vocabulary: int = 0
    preparation: str = ""
    output_mean: tuple[float, ...] = ()
    output_scale: tuple[float, ...] = ()

    @property
    def signature_shape(self) -> tuple[int, ...]:
        """Shape of one sample as a single tensor; for texts, of the stacked tensors of `keys`."""
        if self.kind == "texts":
            return (len(self.keys), *self.shape)
        return self.raw_shape or self.shape

    def facts(self) -> dict[str, object]:
        """Return a description as plain data."""
        facts: dict[str, object] = {"kind": self.kind, "shape": list(self.signature_shape)}
        facts["dtype"] = self.dtype
        if self.kind == "pictures" and len(self.shape) == 3:
            channels, height, width = self.shape
            facts |= {
                "channels": channels,
                "color": COLORS.get(channels, f"{channels} channels"),
                "size": [height, width],
                "maximum": self.maximum,
                "mean": list(self.mean),
                "std": list(self.std),
                "normalization": "(value / maximum - mean) / std, inside the network",
            }
        if self.kind == "texts":
            facts |= {"keys": list(self.keys), "padding": self.padding}
            facts |= {"vocabulary": self.vocabulary, "max_length": self.shape[0]}
        if self.kind == "tensors" and self.mean:
            facts |= {"mean": list(self.mean), "std": list(self.std)}
            facts["normalization"] = "(value - mean) / std, inside the network; NaN: the mean"
        if self.preparation:
            facts["preparation"] = self.preparation
        return facts


class RawInputModel(nn.Module):
    """A trained classifier with its preprocessing: raw samples -> logits.

    - pictures: (B, C, H, W), uint8 or any type with the same values; with one channel also
      (B, H, W) or (B, H * W).
    - texts: a mapping of (B, tokens) int64 tensors, or the same stacked, (B, keys, tokens), in the
      order of `preprocessing.keys`.
    - tensors: (B, ...), standardized if the data are; a NaN becomes the mean.

    The forward can be traced (`torch.export`, ONNX).  Outside of a trace, images with values out of
    range raise an error, such as pixels that are already scaled to [0, 1].

    Args:
        network: normalized inputs -> (B, classes) logits.
        preprocessing: preprocessing of the inputs.
        class_names: one name per class, in the order of the logits.
        metrics: metrics of the network ("test_accuracy", ...).

    Raises:
        ValueError (in `forward`): inputs have another shape, or pixels are out of range.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.metrics = dict(metrics or {})
        if preprocessing.kind == "tensors" and preprocessing.std:
            scale = 1 / torch.tensor(preprocessing.std, dtype=torch.float64)
            shift = -torch.tensor(preprocessing.mean, dtype=torch.float64) * scale
            scale, shift = scale.float()[None], shift.float()[None]
        else:
            scale, shift = scale_and_shift(preprocessing.mean, preprocessing.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.train(network.training)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, classes) of raw samples, or values in the units of the data."""
        outputs = self.network(self.preprocessed(inputs))
        if not self.preprocessing.output_scale:
            return outputs
        scale = outputs.new_tensor(self.preprocessing.output_scale)
        return outputs * scale + outputs.new_tensor(self.preprocessing.output_mean)

    def preprocessed(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Convert raw samples to inputs of the network."""
        kind = self.preprocessing.kind
        if kind == "texts":
            return self._tokens(inputs)
        if not isinstance(inputs, Tensor):
            raise ValueError(f"this network takes a tensor, got a {type(inputs).__name__}")
        if kind == "pictures":
            return self._pixels(inputs)
        if not self.preprocessing.std:
            return inputs
        return torch.nan_to_num(inputs.float() * self.scale + self.shift)

    def facts(self) -> dict[str, object]:
        """Return inputs, outputs, classes and metrics as plain data."""
        return {
            "input": self.preprocessing.facts(),
            "output": (
                "values (batch, targets) in the units of the data"
                if self.preprocessing.output_scale
                else "logits (batch, classes); softmax gives probabilities"
            ),
            "classes": list(self.class_names),
            "metrics": dict(self.metrics),
        }

    def _pixels(self, inputs: Tensor) -> Tensor:
        pixels = self._shaped(inputs)
        maximum = self.preprocessing.maximum
        if not _is_traced():
            _check_range(pixels, maximum)
        pixels = pixels.float()
        if maximum != PIXELS:
            pixels = torch.round(pixels * (PIXELS / maximum))
        if not self.preprocessing.mean:
            return pixels / PIXELS
        return pixels * self.scale + self.shift

    def _shaped(self, inputs: Tensor) -> Tensor:
        """Reshape images of any allowed shape to (B, C, H, W)."""
        shape, actual = self.preprocessing.shape, tuple(inputs.shape[1:])
        if actual == shape:
            return inputs
        if len(shape) != 3:
            raise ValueError(f"this network takes samples of shape {shape}, got {actual}")
        channels, height, width = shape
        if channels == 1 and actual == (height, width):
            return inputs.unsqueeze(1)
        if channels == 1 and actual == (height * width,):
            return inputs.unflatten(1, (1, height, width))
        raise ValueError(
            f"this network takes images of shape (batch, {channels}, {height}, {width}), got "
            f"{tuple(inputs.shape)}" + _hint(actual, (channels, height, width))
        )

    def _tokens(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        keys = self.preprocessing.keys
        if isinstance(inputs, Tensor):
            if inputs.dim() != 3 or inputs.shape[1] != len(keys):
                raise ValueError(
                    f"this network takes a mapping with {', '.join(keys)}, or these stacked, "
                    f"(batch, {len(keys)}, tokens); got {tuple(inputs.shape)}"
                )
            return {key: inputs[:, number] for number, key in enumerate(keys)}
        missing = [key for key in keys if key not in inputs]
        if missing:
            raise ValueError(f"this network takes {', '.join(keys)}; missing: {missing[0]}")
        return {key: inputs[key] for key in keys}


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return factor and offset, (1, C, 1, 1) float32 each, that normalize pixels of 0 ... 255.

    Args:
        mean, std: per channel, of pixels scaled to [0, 1].
    """
    deviations = torch.tensor(tuple(std), dtype=torch.float64)
    means = torch.tensor(tuple(mean), dtype=torch.float64)
    shape = (1, -1, 1, 1)
    scale = (1 / (PIXELS * deviations)).float().reshape(shape)
    return scale, (-means / deviations).float().reshape(shape)


def _is_traced() -> bool:
    """Return whether the forward is being traced, so that it cannot depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _check_range(pixels: Tensor, maximum: float) -> None:
    """Raise ValueError unless images have raw values; free for uint8 with the full range."""
    if pixels.is_meta or not pixels.numel():
        return
    if pixels.dtype == torch.uint8 and maximum == PIXELS:
        return
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high > maximum:
        raise ValueError(
            f"this network takes pixels of 0 to {maximum:g}, got values from {low:.4g} to "
            f"{high:.4g}; pass raw samples, normalization is part of the network"
        )
    if pixels.is_floating_point() and 0 < high <= 1:
        raise ValueError(
            f"this network takes pixels of 0 to {maximum:g}, got values up to {high:.4g}; pass raw "
            f"samples (multiply by {maximum:g} if they were scaled to [0, 1])"
        )


def _hint(actual: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    if actual == (height, width, channels):
        return "; move the channels first: images.permute(0, 3, 1, 2)"
    if len(actual) == 3 and actual[0] == channels:
        return f"; resize them to {height}x{width}"
    return ""


class NormalizedInputModel(nn.Module):
    """A network with a record of the normalization it was trained with; same forward.

    Args:
        network: normalized inputs -> logits.
        normalization: normalization of the inputs.
    """

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.normalization = normalization
        self.train(network.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def set_normalization(network: nn.Module, setting: Normalization | str) -> nn.Module:
    """Return the network with the normalization that a study sets for it.

    Args:
        network: any network, with or without preprocessing.
        setting: `teacher.normalization`; "auto": keep what the network records.
    """
    if setting == "auto":
        return network
    inner, _ = strip_preprocessing(network)
    if isinstance(setting, str):
        normalization = NORMALIZATIONS.get(setting)
        return inner if normalization is None else NormalizedInputModel(inner, normalization)
    return NormalizedInputModel(inner, setting)


def strip_preprocessing(network: nn.Module) -> tuple[nn.Module, Normalization | None]:
    """Return a network without its preprocessing, and the normalization of its inputs.

    Args:
        network: any network; preprocessing that raykd added is removed.

    Returns:
        The network, and its normalization or None if that is unknown.
    """
    normalization: Normalization | None = None
    if isinstance(network, RawInputModel):
        preprocessing, network = network.preprocessing, network.network
        if preprocessing.kind == "pictures":
            normalization = NORMALIZATIONS["none"]
            if preprocessing.mean:
                normalization = Normalization(mean=preprocessing.mean, std=preprocessing.std)
    elif isinstance(network, NormalizedInputModel):
        normalization, network = network.normalization, network.network
    inner = expected_normalization(network)
    return (network, normalization) if inner is None else (remove_input_map(network), inner)
