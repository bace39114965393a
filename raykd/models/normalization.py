"""The normalization of pictures that a network was trained with.

All batches of a study are normalized by the data's own mean and standard deviation, and are shared
by teachers and students.  A teacher that was trained with other values gets its inputs through one
affine map in front of its forward.
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
"""Largest mean or deviation of pixels in [0, 1]; larger values are those of pixels up to 255."""

METADATA = "raykd.normalization"
"""Key of the normalization in the metadata of a safetensors file."""


@option
class Normalization:
    """Mean and standard deviation per channel of the pictures that a network was trained with.

    Pixels p of 0 to 255 enter as (p / 255 - mean) / std; with `maximum: 255` as (p - mean) / std.
    One value holds for all channels.
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
                f"{max(values):g} is no mean or std of pixels in [0, 1]; write `maximum: 255` "
                "beside values of pixels from 0 to 255"
            )
        if self.order == "bgr" and self.channels not in (1, 3):
            raise ValueError(f"order bgr is for 3 channels, not {self.channels}")

    @property
    def channels(self) -> int:
        """Number of channels; 1: any number."""
        return max(len(self.mean), len(self.std))

    def check(self, channels: int) -> None:
        """See that it fits pictures of so many channels.

        Raises:
            ValueError: it does not.
        """
        wanted = 3 if self.order == "bgr" else self.channels
        if wanted not in (1, channels):
            raise ValueError(
                f"the normalization has {wanted} channels and the data's pictures have {channels}; "
                "give one value per channel of the data, or one for all"
            )

    def statistics(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of pixels in [0, 1], (channels,) float64, in the order of the data."""
        self.check(channels)
        mean, std = (
            torch.tensor(values, dtype=torch.float64).expand(channels) / self.maximum
            for values in (self.mean, self.std)
        )
        return (mean.flip(0), std.flip(0)) if self.order == "bgr" else (mean, std)

    def text(self) -> str:
        """In words, for messages."""
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        scale = "" if self.maximum == 1 else f" of pixels up to {self.maximum}"
        order = ", bgr" if self.order == "bgr" else ""
        return f"mean {mean}, std {std}{scale}{order}"


Named = Literal["auto", "data", "model", "imagenet", "half", "none"]

Given = Annotated[
    Annotated[Normalization, Tag("normalization")] | Annotated[Named, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "normalization"),
]
"""What a study may write: a name or the values; messages speak of the one that was meant."""

NAMED: dict[str, Normalization] = {
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Normalization(mean=(0.5,), std=(0.5,)),
    "none": Normalization(mean=(0.0,), std=(1.0,)),
}
"""Normalizations by name; `none`: pixels are only scaled to [0, 1]."""


def to_metadata(normalization: Normalization) -> dict[str, str]:
    """The metadata of a safetensors file whose network expects this normalization."""
    fields = ("mean", "std", "maximum", "order")
    return {METADATA: json.dumps({name: getattr(normalization, name) for name in fields})}


def from_metadata(metadata: dict[str, str]) -> Normalization | None:
    """The normalization in a safetensors file's metadata; None where there is none."""
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
    """The network, in place, such that it takes the batches of data with this mean and deviation.

    The affine map stands in front of the forward, as a hook: names of modules and tensors stay.

    Args:
        network: expects `normalization`.
        normalization: None: the data's own.
        mean, std: of the data, of pixels in [0, 1]; empty: pixels are only scaled to [0, 1], or
            are no pictures where `normalization` is None.

    Raises:
        ValueError: another number of channels.
    """
    if normalization is None:
        return network
    channels = max(len(mean), 1 if normalization.order == "rgb" else 3)
    target_mean, target_std = normalization.statistics(channels)
    own_mean = torch.tensor(tuple(mean) or (0.0,), dtype=torch.float64)
    own_std = torch.tensor(tuple(std) or (1.0,), dtype=torch.float64)
    flipped = normalization.order == "bgr"
    if torch.equal(own_mean, target_mean) and torch.equal(own_std, target_std) and not flipped:
        return network
    scale = (own_std / target_std).float().reshape(1, -1, 1, 1)
    shift = ((own_mean - target_mean) / target_std).float().reshape(1, -1, 1, 1)
    return _hooked(network, normalization, scale, shift)


def expected_normalization(network: nn.Module) -> Normalization | None:
    """The normalization that `adapt_normalization` adapted a network to; None: the data's own."""
    return getattr(network, "raykd_normalization", None)


def like(network: nn.Module, other: nn.Module) -> nn.Module:
    """The network, in place, with the same map in front of it as `other` has."""
    normalization = expected_normalization(other)
    if normalization is None or expected_normalization(network) is not None:
        return network
    scale: Any = other.raykd_scale
    shift: Any = other.raykd_shift
    return _hooked(network, normalization, scale.detach().clone(), shift.detach().clone())


def without_map(network: nn.Module) -> nn.Module:
    """Remove the map of `adapt_normalization`, in place, and return the network."""
    for key, hook in list(network._forward_pre_hooks.items()):
        if hook is _renormalize:
            del network._forward_pre_hooks[key]
    for name in ("raykd_normalization", "raykd_scale", "raykd_shift"):
        if hasattr(network, name):
            delattr(network, name)
    return network


def _hooked(
    network: nn.Module, normalization: Normalization, scale: Tensor, shift: Tensor
) -> nn.Module:
    place = next((t.device for t in network.parameters()), torch.device("cpu"))
    network.register_buffer("raykd_scale", scale.to(place), persistent=False)
    network.register_buffer("raykd_shift", shift.to(place), persistent=False)
    network.raykd_normalization = normalization  # type: ignore[assignment]
    if _renormalize not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_renormalize)
    return network


def _renormalize(network: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pictures = inputs[0] * network.raykd_scale + network.raykd_shift
    if network.raykd_normalization.order == "bgr":
        pictures = pictures.flip(1)
    return (pictures, *inputs[1:])
