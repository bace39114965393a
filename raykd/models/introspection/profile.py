"""Profile of a model: cost and layers, computed without training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from raykd.models.base import Model, Signature, UnfitShape
from raykd.models.introspection.flops import SkipInit
from raykd.models.introspection.layers import Layer, discover_and_count, resolve, stage_aliases


@dataclass(frozen=True)
class ModelProfile:
    """Cost and layers of a model.

    Attributes:
        params: number of parameters; shared ones count once.
        macs: multiply-accumulates of one sample's forward (convolutions and matrix products).
        layers: shapes without the batch, by dotted name and by alias.
        aliases: dotted names of modules, by alias (`stage1`, `stage2`, ..., `embedding`).
        ordered_layers: the layers, in the order in which they run.
    """

    params: int
    macs: int
    layers: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    ordered_layers: tuple[Layer, ...]

    def resolve(self, names: Iterable[str]) -> tuple[Layer, ...]:
        """Return the layers with these names, for hooks.

        Raises:
            ValueError: there is no such layer; the message lists similar names.
        """
        return tuple(resolve(self.ordered_layers, name) for name in names)


def profile_model(model: Model, signature: Signature) -> ModelProfile:
    """Profile the networks of a model: parameters, multiply-accumulates, layers.

    Builds a network without initializing weights; results are cached.  The state of the random
    number generators does not change.

    Raises:
        ValueError: the model cannot be built for such inputs.
    """
    return _anatomy(model, signature)


def profile_network(network: nn.Module, signature: Signature) -> ModelProfile:
    """Profile an existing network: parameters, multiply-accumulates, layers (`discover`)."""
    layers, macs = discover_and_count(network, signature)
    aliases = stage_aliases(layers)
    return ModelProfile(
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        layers={layer.name: layer.shape for layer in (*layers, *aliases.values())},
        aliases={alias: layer.module for alias, layer in aliases.items()},
        ordered_layers=layers,
    )


def build_without_init(model: Model, signature: Signature) -> nn.Module:
    """Build a network on the CPU without initializing weights, which are arbitrary memory.

    The meta device is not an alternative: some libraries' networks cannot be built on it.

    Raises:
        ValueError: the model cannot be built for such inputs.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), SkipInit():
        return model.blueprint(signature)


_SIZES = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384)
"""Image sizes to suggest if a model cannot take those of the data."""


@lru_cache(maxsize=4096)
def _anatomy(model: Model, signature: Signature) -> ModelProfile:
    if signature.text is not None and not model.takes_text:
        raise ValueError(
            f"{model.name} takes no texts; use a transformer, such as "
            "{name: hf/bert, config: {num_hidden_layers: 2}}"
        )
    try:
        network = build_without_init(model, signature)
    except UnfitShape as error:
        raise ValueError(f"{error}{_size_hint(model, signature)}") from error
    try:
        return profile_network(network, signature)
    except Exception as error:
        if not model.foreign:
            raise
        raise ValueError(
            f"{model.name} cannot take samples of shape {signature.input_shape}: "
            f"{str(error) or type(error).__name__}{_size_hint(model, signature)}"
        ) from error


def _size_hint(model: Model, signature: Signature) -> str:
    """Return the end of a message: the smallest larger image size that works, if any."""
    if len(signature.input_shape) != 3:
        return ""
    channels, *sides = signature.input_shape
    sizes = [side for side in _SIZES if side > max(sides)]

    def works(side: int) -> bool:
        larger = replace(signature, input_shape=(channels, side, side))
        try:
            profile_network(build_without_init(model, larger), larger)
        except Exception:  # noqa: BLE001  the code of others may raise anything
            return False
        return True

    index = bisect_left(sizes, True, key=works)
    if index == len(sizes):
        return ""
    return f"; images of {sizes[index]}x{sizes[index]} work (`data.size: {sizes[index]}`)"
