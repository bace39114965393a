"""A trained classifier together with the preprocessing of its inputs.

The network that a study keeps takes raw samples, as the data source gives them.  Normalization,
input shape and class names are part of the module, so they cannot get lost on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raykd.models.normalization import (
    NAMED,
    Normalization,
    expected_normalization,
    without_map,
)

PIXELS = 255.0
"""Largest value of a pixel as raykd stores pictures."""

COLORS = {1: "grayscale", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """The way from raw samples to the inputs of a network.

    Attributes:
        kind: "pictures", which are stored as uint8; "texts", which are tokens; or "tensors", which
            are passed on unchanged.
        shape: one raw sample's shape without the batch: (C, H, W), (tokens,), ...
        dtype: NumPy's name of the raw samples' type.
        raw_shape: another shape that the data source gives its samples; empty: `shape`.
        maximum: largest raw value of a pixel; raw values are rounded to 0 ... 255 first.
        mean, std: per channel, of pixels scaled to [0, 1]; empty: pixels are only scaled.
        keys: the tensors of a text in order, such as `input_ids` and `attention_mask`.
        padding: the token that short texts are filled up with.
        vocabulary: number of tokens.
        preparation: one sentence on the way from files to raw samples.
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

    @property
    def signature_shape(self) -> tuple[int, ...]:
        """Shape of one sample as a single tensor: of texts, the tensors of `keys` stacked."""
        if self.kind == "texts":
            return (len(self.keys), *self.shape)
        return self.raw_shape or self.shape

    def facts(self) -> dict[str, Any]:
        """As plain data, with what a reader needs to know."""
        found: dict[str, Any] = {"kind": self.kind, "shape": list(self.signature_shape)}
        found["dtype"] = self.dtype
        if self.kind == "pictures" and len(self.shape) == 3:
            channels, height, width = self.shape
            found |= {
                "channels": channels,
                "color": COLORS.get(channels, f"{channels} channels"),
                "size": [height, width],
                "maximum": self.maximum,
                "mean": list(self.mean),
                "std": list(self.std),
                "normalization": "(value / maximum - mean) / std, inside the network",
            }
        if self.kind == "texts":
            found |= {"keys": list(self.keys), "padding": self.padding}
            found |= {"vocabulary": self.vocabulary, "max_length": self.shape[0]}
        if self.preparation:
            found["preparation"] = self.preparation
        return found


class RawInputModel(nn.Module):
    """Raw samples -> logits: a trained classifier after its preprocessing.

    - pictures: (B, C, H, W), uint8 or any type that holds the same values; of one channel also
      (B, H, W) or (B, H * W).
    - texts: a mapping of (B, tokens) int64, or these tensors stacked, (B, keys, tokens), in the
      order of `preprocessing.keys`.
    - tensors: (B, ...), passed on unchanged.

    The forward can be traced (`torch.export`, ONNX).  Outside of a trace, pictures whose values do
    not fit are refused, such as pixels that were scaled to [0, 1] beforehand.

    Args:
        network: normalized inputs -> (B, classes) logits.
        preprocessing: of its inputs.
        class_names: one name per class, in the order of the logits.
        metrics: figures that the network reached ("test_accuracy", ...).

    Raises:
        ValueError (in `forward`): inputs of another shape, or pictures out of range.
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
        scale, shift = scale_and_shift(preprocessing.mean, preprocessing.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.train(network.training)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) of raw samples."""
        return self.network(self.preprocessed(inputs))

    def preprocessed(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The network's inputs for raw samples."""
        kind = self.preprocessing.kind
        if kind == "texts":
            return self._tokens(inputs)
        if not isinstance(inputs, Tensor):
            raise ValueError(f"this network takes one tensor, not a {type(inputs).__name__}")
        return self._pixels(inputs) if kind == "pictures" else inputs

    def facts(self) -> dict[str, Any]:
        """Inputs, outputs, classes and figures as plain data."""
        return {
            "input": self.preprocessing.facts(),
            "output": "logits (batch, classes); softmax gives probabilities",
            "classes": list(self.class_names),
            "metrics": dict(self.metrics),
        }

    def _pixels(self, inputs: Tensor) -> Tensor:
        pixels = self._shaped(inputs)
        maximum = self.preprocessing.maximum
        if not _traced():
            _check_range(pixels, maximum)
        pixels = pixels.float()
        if maximum != PIXELS:
            pixels = torch.round(pixels * (PIXELS / maximum))
        if not self.preprocessing.mean:
            return pixels / PIXELS
        return pixels * self.scale + self.shift

    def _shaped(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) of any shape that is allowed."""
        shape, given = self.preprocessing.shape, tuple(inputs.shape[1:])
        if given == shape:
            return inputs
        if len(shape) != 3:
            raise ValueError(f"this network takes samples of shape {shape}, got {given}")
        channels, height, width = shape
        if channels == 1 and given == (height, width):
            return inputs.unsqueeze(1)
        if channels == 1 and given == (height * width,):
            return inputs.unflatten(1, (1, height, width))
        raise ValueError(
            f"this network takes pictures of shape (batch, {channels}, {height}, {width}), got "
            f"{tuple(inputs.shape)}" + _hint(given, (channels, height, width))
        )

    def _tokens(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        keys = self.preprocessing.keys
        if isinstance(inputs, Tensor):
            if inputs.dim() != 3 or inputs.shape[1] != len(keys):
                raise ValueError(
                    f"this network takes {', '.join(keys)} stacked, (batch, {len(keys)}, tokens), "
                    f"or as a mapping; got {tuple(inputs.shape)}"
                )
            return {key: inputs[:, number] for number, key in enumerate(keys)}
        missing = [key for key in keys if key not in inputs]
        if missing:
            raise ValueError(f"this network takes {', '.join(keys)}; missing: {missing[0]}")
        return {key: inputs[key] for key in keys}


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factor and offset, (1, C, 1, 1) float32 each, with which pixels 0 ... 255 are normalized.

    Args:
        mean, std: per channel, of pixels scaled to [0, 1].
    """
    deviations = torch.tensor(tuple(std), dtype=torch.float64)
    means = torch.tensor(tuple(mean), dtype=torch.float64)
    shape = (1, -1, 1, 1)
    scale = (1 / (PIXELS * deviations)).float().reshape(shape)
    return scale, (-means / deviations).float().reshape(shape)


def _traced() -> bool:
    """Return whether the forward is being recorded, so that no value may decide anything."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _check_range(pixels: Tensor, maximum: float) -> None:
    """See that pictures hold raw values; costs nothing for uint8 of the full range."""
    if pixels.is_meta or not pixels.numel():
        return
    if pixels.dtype == torch.uint8 and maximum == PIXELS:
        return
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high > maximum:
        raise ValueError(
            f"this network takes pixels of 0 to {maximum:g}, got values from {low:.4g} to "
            f"{high:.4g}; give raw samples, normalization is part of the network"
        )
    if pixels.is_floating_point() and 0 < high <= 1:
        raise ValueError(
            f"this network takes pixels of 0 to {maximum:g}, got values up to {high:.4g}; give raw "
            f"samples (multiply by {maximum:g} if they were scaled to [0, 1])"
        )


def _hint(given: tuple[int, ...], shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    if given == (height, width, channels):
        return "; move the channels first: pictures.permute(0, 3, 1, 2)"
    if len(given) == 3 and given[0] == channels:
        return f"; resize them to {height}x{width}"
    return ""


class Expecting(nn.Module):
    """A network beside the normalization that it was trained with; the forward is the network's.

    Args:
        network: normalized inputs -> logits.
        normalization: of its inputs.
    """

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.normalization = normalization
        self.train(network.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def expecting(network: nn.Module, asked: Normalization | str) -> nn.Module:
    """The network with the normalization that a study names for it.

    Args:
        network: any network, with or without preprocessing.
        asked: as `teacher.normalization`; "auto": what the network itself knows.
    """
    if asked == "auto":
        return network
    inner, _ = strip_preprocessing(network)
    if isinstance(asked, str):
        return Expecting(inner, NAMED[asked]) if asked in NAMED else inner
    return Expecting(inner, asked)


def strip_preprocessing(network: nn.Module) -> tuple[nn.Module, Normalization | None]:
    """A network without its preprocessing, and the normalization that it expects.

    Args:
        network: any network; its preprocessing is taken off where raykd put it on.

    Returns:
        The network itself, and None, where nothing is known of its normalization.
    """
    found: Normalization | None = None
    if isinstance(network, RawInputModel):
        preprocessing, network = network.preprocessing, network.network
        if preprocessing.kind == "pictures":
            found = NAMED["none"]
            if preprocessing.mean:
                found = Normalization(mean=preprocessing.mean, std=preprocessing.std)
    elif isinstance(network, Expecting):
        found, network = network.normalization, network.network
    inner = expected_normalization(network)
    return (network, found) if inner is None else (without_map(network), inner)
