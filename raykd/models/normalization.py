"""Normalization of the images that a network was trained with.

All batches of a study are normalized with the mean and standard deviation of the data, and shared
by teachers and students.  A teacher that was trained with other values gets an affine map before
its forward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from raykd.registry import option

LARGEST = 1.0
"""Largest mean or deviation of pixels in [0, 1]; larger values refer to pixels up to 255."""

METADATA = "raykd.normalization"
"""Key of the normalization in the metadata of a safetensors file."""


@option
class Normalization:
    """Mean and standard deviation per channel of the images that a network was trained with.

    The network takes (p / 255 - mean) / std for pixels p of 0 to 255; with `maximum: 255` it takes
    (p - mean) / std.  A single value applies to all channels.
    """

    mean: Annotated[tuple[float, ...], Field(min_length=1, description="Mean per channel")]
    std: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(min_length=1, description="Standard deviation per channel"),
    ]
    maximum: Annotated[
        Literal[1, 255],
        Field(description="Value of a white pixel; 1 if mean and std refer to [0, 1]"),
    ] = 1
    order: Annotated[
        Literal["rgb", "bgr"], Field(description="Channel order (OpenCV reads bgr)")
    ] = "rgb"

    def __post_init__(self) -> None:
        values = (*self.mean, *self.std)
        if not all(map(math.isfinite, values)):
            raise ValueError("mean and std must be finite numbers")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; give one per channel"
            )
        if self.maximum == 1 and max(values) > LARGEST:
            raise ValueError(
                f"{max(values):g} is too large for pixels in [0, 1]; set `maximum: 255` if mean "
                "and std refer to pixels from 0 to 255"
            )
        if self.order == "bgr" and self.channels not in (1, 3):
            raise ValueError(f"order bgr needs 3 channels, not {self.channels}")

    @property
    def channels(self) -> int:
        """Number of channels; 1: any number."""
        return max(len(self.mean), len(self.std))

    def check(self, channels: int) -> None:
        """Check that the normalization fits images with this number of channels.

        Raises:
            ValueError: it does not.
        """
        expected = 3 if self.order == "bgr" else self.channels
        if expected not in (1, channels):
            raise ValueError(
                f"the normalization has {expected} channels and the images have {channels}; give "
                "one value per channel of the data, or one for all"
            )

    def statistics(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return mean and std of pixels in [0, 1], (channels,) float64, as the data order them."""
        self.check(channels)
        mean, std = (
            torch.tensor(values, dtype=torch.float64).expand(channels) / self.maximum
            for values in (self.mean, self.std)
        )
        return (mean.flip(0), std.flip(0)) if self.order == "bgr" else (mean, std)

    def text(self) -> str:
        """Return a description for messages."""
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        scale = "" if self.maximum == 1 else f" of pixels up to {self.maximum}"
        order = ", bgr" if self.order == "bgr" else ""
        return f"mean {mean}, std {std}{scale}{order}"


NormalizationName = Literal["auto", "data", "model", "imagenet", "half", "none"]

NormalizationSetting = Annotated[
    Annotated[Normalization, Tag("normalization")] | Annotated[NormalizationName, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "normalization"),
]
"""Normalization in a study file: a name or the values; errors refer to the form that was used."""

NORMALIZATIONS: dict[str, Normalization] = {
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Normalization(mean=(0.5,), std=(0.5,)),
    "none": Normalization(mean=(0.0,), std=(1.0,)),
}
"""Normalizations by name; `none`: pixels are only scaled to [0, 1]."""


def to_metadata(normalization: Normalization) -> dict[str, str]:
    """Return metadata for a safetensors file of a network with this normalization."""
    fields = ("mean", "std", "maximum", "order")
    return {METADATA: json.dumps({name: getattr(normalization, name) for name in fields})}


def from_metadata(metadata: dict[str, str]) -> Normalization | None:
    """Return the normalization in the metadata of a safetensors file, or None."""
    try:
        fields = json.loads(metadata[METADATA])
        return Normalization(
            mean=tuple(fields["mean"]),
            std=tuple(fields["std"]),
            maximum=fields["maximum"],
            order=fields["order"],
        )
    except (KeyError, ValueError, TypeError):
        return None


def adapt_normalization(
    network: nn.Module,
    normalization: Normalization | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Adapt a network, in place, to batches of data with this mean and deviation.

    A forward pre-hook applies the affine map, so that names of modules and tensors do not change.

    Args:
        network: trained with `normalization`.
        normalization: None: that of the data.
        mean, std: of the data, for pixels in [0, 1]; empty: pixels are only scaled to [0, 1], or,
            without `normalization`, the data are not images.

    Raises:
        ValueError: the number of channels differs.
    """
    if normalization is None:
        return network
    channels = max(len(mean), 1 if normalization.order == "rgb" else 3)
    target_mean, target_std = normalization.statistics(channels)
    data_mean = torch.tensor(tuple(mean) or (0.0,), dtype=torch.float64)
    data_std = torch.tensor(tuple(std) or (1.0,), dtype=torch.float64)
    is_bgr = normalization.order == "bgr"
    if torch.equal(data_mean, target_mean) and torch.equal(data_std, target_std) and not is_bgr:
        return network
    scale = (data_std / target_std).float().reshape(1, -1, 1, 1)
    shift = ((data_mean - target_mean) / target_std).float().reshape(1, -1, 1, 1)
    return _add_input_map(network, normalization, scale, shift)


def expected_normalization(network: nn.Module) -> Normalization | None:
    """Return the normalization that `adapt_normalization` adapts, or None for that of the data."""
    return getattr(network, "raykd_normalization", None)


def copy_normalization(network: nn.Module, other: nn.Module) -> nn.Module:
    """Add, in place, the input map of another network, if it has one."""
    normalization = expected_normalization(other)
    if normalization is None or expected_normalization(network) is not None:
        return network
    scale: Any = other.raykd_scale
    shift: Any = other.raykd_shift
    return _add_input_map(network, normalization, scale.detach().clone(), shift.detach().clone())


def remove_input_map(network: nn.Module) -> nn.Module:
    """Remove the map of `adapt_normalization`, in place, and return the network."""
    # `_forward_pre_hooks` is private in torch 2.15; handles of hooks are not copied or pickled.
    for key, hook in list(network._forward_pre_hooks.items()):
        if hook is _renormalize:
            del network._forward_pre_hooks[key]
    for name in ("raykd_normalization", "raykd_scale", "raykd_shift"):
        if hasattr(network, name):
            delattr(network, name)
    return network


def _add_input_map(
    network: nn.Module, normalization: Normalization, scale: Tensor, shift: Tensor
) -> nn.Module:
    device = next((t.device for t in network.parameters()), torch.device("cpu"))
    network.register_buffer("raykd_scale", scale.to(device), persistent=False)
    network.register_buffer("raykd_shift", shift.to(device), persistent=False)
    network.raykd_normalization = normalization  # type: ignore[assignment]
    if _renormalize not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_renormalize)
    return network


def _renormalize(network: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images = inputs[0] * network.raykd_scale + network.raykd_shift
    if network.raykd_normalization.order == "bgr":
        images = images.flip(1)
    return (images, *inputs[1:])
