"""Connectors: trainable modules that map a guided layer to the shape of its hint layer.

The two shapes determine the connector:

| guided -> hint | connector |
|---|---|
| the same shape | identity |
| map (C, H, W) -> map, same H, W | 1x1 convolution + batch norm |
| map -> map, H and W divided by integers | strided convolution + batch norm |
| map -> map, H and W multiplied by integers | transposed convolution + batch norm |
| map -> map, other sizes | 1x1 convolution + batch norm + bilinear resizing |
| embedding (D,) -> embedding | linear |
| tokens (N, D) -> tokens (N, D') | linear on each token |
| map or tokens -> embedding | mean over positions, then linear if the widths differ |
| embedding -> map or tokens; map <-> tokens; different numbers of tokens | none: `ValueError` |

A map or tokens can be averaged to an embedding, but an embedding has no positions to restore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.shapes import Shape

Kind = Literal["map", "tokens", "embedding"]


def kind_of(shape: Shape) -> Kind:
    """Return the kind of a layer from its shape without the batch.

    Raises:
        ValueError: the shape is none of (C, H, W), (tokens, D) and (D,).
    """
    kinds: dict[int, Kind] = {1: "embedding", 2: "tokens", 3: "map"}
    if len(shape) not in kinds:
        raise ValueError(
            f"a layer of shape {shape} is neither a map (C, H, W), nor tokens (N, D), nor an "
            "embedding (D,): it is not known which axis holds its channels; name another layer, "
            "or take a loss that compares samples only (sp, cka, pkt, rkd, cc)"
        )
    return kinds[len(shape)]


def require(kind: Kind, loss: str, guided: Shape, hint: Shape) -> None:
    """Check that both layers are of the expected kind.

    Raises:
        ValueError: a layer is of another kind.
    """
    shapes = {"map": "(C, H, W)", "tokens": "(N, D)", "embedding": "(D,)"}
    for side, shape in (("guided", guided), ("hint", hint)):
        if kind_of(shape) != kind:
            raise ValueError(
                f"{loss} compares {kind} layers {shapes[kind]}; the {side} layer is "
                f"{kind_of(shape)} {shape}"
            )


def connector(guided: Shape, hint: Shape, *, always: bool = False) -> nn.Module:
    """Build the module that maps (B, *guided) to (B, *hint); see the table of this module.

    Args:
        guided: shape of the student's layer, without the batch.
        hint: shape of the teacher's layer, without the batch.
        always: train a connector even if the shapes are equal.

    Raises:
        ValueError: no connector maps one shape to the other; the message gives the reason.
    """
    kinds = kind_of(guided), kind_of(hint)
    if guided == hint and not always:
        return nn.Identity()
    bridge = _BRIDGES.get(kinds)
    if bridge is None:
        raise ValueError(
            f"{_named(guided)} cannot become {_named(hint)}: nothing tells where its values "
            "belong; pair layers of the same kind, or a map with an embedding as its hint"
        )
    return bridge(guided, hint)


def channels_connector(guided: Shape, hint: Shape) -> nn.Module:
    """Build the module that maps a map to the channels of the hint map, without changing its size.

    Raises:
        ValueError: a layer is not a map.
    """
    require("map", "the loss", guided, hint)
    return connector(guided, (hint[0], *guided[1:]))


class PlaceMean(nn.Module):
    """(B, C, H, W) or (B, N, D) -> (B, C) or (B, D): mean over positions.

    Raises:
        ValueError: the layer is neither a map nor tokens.
    """

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() not in (3, 4):
            raise ValueError(
                f"a layer of shape {tuple(features.shape)} has no places to take the mean of; it "
                "must be (batch, channels, height, width) or (batch, tokens, width)"
            )
        return features.mean(dim=(2, 3)) if features.dim() == 4 else features.mean(dim=1)


class Resize(nn.Module):
    """(B, C, H, W) -> (B, C, *size): means of areas if both sides shrink, else bilinear."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return resized(features, self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}"


def resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size): means of areas if both sides shrink, else bilinear."""
    height, width = features.shape[-2:]
    if (height, width) == size:
        return features
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def places_of(layer: Tensor) -> Tensor:
    """Convert a map, tokens or an embedding to (B, positions, channels)."""
    if layer.dim() == 4:
        return layer.flatten(2).transpose(1, 2)
    return layer if layer.dim() == 3 else layer[:, None]


def smaller(guided: Tensor, hint: Tensor) -> tuple[int, int]:
    """Return the smaller height and the smaller width of two maps."""
    return min(guided.shape[2], hint.shape[2]), min(guided.shape[3], hint.shape[3])


def _maps(guided: Shape, hint: Shape) -> nn.Module:
    (channels, *source), (hint_channels, *target) = guided, hint
    norm = nn.BatchNorm2d(hint_channels)
    if source == target:
        return nn.Sequential(nn.Conv2d(channels, hint_channels, 1, bias=False), norm)
    if shrink := _whole(source, target):
        conv = nn.Conv2d(channels, hint_channels, shrink, stride=shrink, bias=False)
        return nn.Sequential(conv, norm)
    if grow := _whole(target, source):
        transposed = nn.ConvTranspose2d(channels, hint_channels, grow, stride=grow, bias=False)
        return nn.Sequential(transposed, norm)
    pointwise = nn.Conv2d(channels, hint_channels, 1, bias=False)
    return nn.Sequential(Resize((target[0], target[1])), pointwise, norm)


def _whole(large: list[int], small: list[int]) -> tuple[int, int] | None:
    """Return the integers by which `large` is a multiple of `small` along both sides, or None."""
    if large[0] % small[0] or large[1] % small[1]:
        return None
    return large[0] // small[0], large[1] // small[1]


def _embeddings(guided: Shape, hint: Shape) -> nn.Module:
    return nn.Linear(guided[0], hint[0])


def _tokens(guided: Shape, hint: Shape) -> nn.Module:
    if guided[0] != hint[0]:
        raise ValueError(
            f"{guided[0]} tokens cannot become {hint[0]} tokens: which of them correspond is not "
            "known; pair layers with as many tokens, or cut both inputs alike"
        )
    return nn.Linear(guided[1], hint[1])


def _pooled(guided: Shape, hint: Shape) -> nn.Module:
    width = guided[0] if kind_of(guided) == "map" else guided[1]
    if width == hint[0]:
        return PlaceMean()
    return nn.Sequential(PlaceMean(), nn.Linear(width, hint[0]))


def _named(shape: Shape) -> str:
    article = {"map": "a map", "tokens": "tokens", "embedding": "an embedding"}
    return f"{article[kind_of(shape)]} {shape}"


_BRIDGES: dict[tuple[Kind, Kind], Callable[[Shape, Shape], nn.Module]] = {
    ("map", "map"): _maps,
    ("embedding", "embedding"): _embeddings,
    ("tokens", "tokens"): _tokens,
    ("map", "embedding"): _pooled,
    ("tokens", "embedding"): _pooled,
}
