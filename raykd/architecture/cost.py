"""What a model costs and what it is made of, known before it is trained."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from raykd.architecture.layers import Layer, resolve, stage_aliases, survey
from raykd.architecture.macs import Unfilled
from raykd.architecture.model import Model, Task, UnfitShape


@dataclass(frozen=True)
class Anatomy:
    """A model's cost and layers.

    Attributes:
        params: number of parameters, each shared one counted once.
        macs: multiply-accumulates of one sample's forward (convolutions and matrix products).
        layers: shapes without the batch, by dotted name and by alias.
        aliases: `stage1`, `stage2`, ..., `embedding` -> the dotted name of the module.
        found: the layers themselves, in the order in which they run.
    """

    params: int
    macs: int
    layers: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    found: tuple[Layer, ...]

    def resolve(self, names: Iterable[str]) -> tuple[Layer, ...]:
        """The layers of these names, each under the name asked for, ready to be tapped.

        Raises:
            ValueError: there is no such layer; says what comes near.
        """
        return tuple(resolve(self.found, name) for name in names)


def anatomy(model: Model, task: Task) -> Anatomy:
    """Parameters, multiply-accumulates and layers of the networks that `model` builds.

    One is built without drawing weights, and dissected; the answer is remembered.  The state of
    the random numbers stays as it is.

    Raises:
        ValueError: the model cannot be built for such inputs.
    """
    return _anatomy(model, task)


def dissect(network: nn.Module, task: Task) -> Anatomy:
    """Parameters, multiply-accumulates and layers of a network that is there (`discover`)."""
    found, macs = survey(network, task)
    aliases = stage_aliases(found)
    return Anatomy(
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        layers={layer.name: layer.shape for layer in (*found, *aliases.values())},
        aliases={alias: layer.module for alias, layer in aliases.items()},
        found=found,
    )


def unfilled(model: Model, task: Task) -> nn.Module:
    """The network that `model` builds, on the CPU, whatever its memory holds as weights.

    The meta device would do too, but not every library's networks can be built there.

    Raises:
        ValueError: the model cannot be built for such inputs.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), Unfilled():
        return model.blueprint(task)


_SIZES = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384)
"""Sides of the pictures that are tried where a model cannot take those of the data."""


@lru_cache(maxsize=4096)
def _anatomy(model: Model, task: Task) -> Anatomy:
    if task.text is not None and not model.takes_text:
        raise ValueError(
            f"{model.name} takes no texts; take a transformer, such as "
            "{name: hf/bert, config: {num_hidden_layers: 2}}"
        )
    try:
        network = unfilled(model, task)
    except UnfitShape as error:
        raise ValueError(f"{error}{_larger(model, task)}") from error
    try:
        return dissect(network, task)
    except Exception as error:
        if not model.foreign:
            raise
        raise ValueError(
            f"{model.name} cannot take samples of shape {task.input_shape}: "
            f"{str(error) or type(error).__name__}{_larger(model, task)}"
        ) from error


def _larger(model: Model, task: Task) -> str:
    """The smallest larger size of picture that the model takes, for a message; empty: none."""
    if len(task.input_shape) != 3:
        return ""
    channels, *sides = task.input_shape
    sizes = [side for side in _SIZES if side > max(sides)]

    def is_taken(side: int) -> bool:
        larger = replace(task, input_shape=(channels, side, side))
        try:
            dissect(unfilled(model, larger), larger)
        except Exception:  # noqa: BLE001  it runs others' code: anything may come
            return False
        return True

    at = bisect_left(sizes, True, key=is_taken)
    if at == len(sizes):
        return ""
    return f"; pictures of {sizes[at]}x{sizes[at]} would do (`data.size: {sizes[at]}`)"
