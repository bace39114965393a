"""What a model costs and what it is made of, known before it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from raykd.architecture.layers import Layer, resolve, stage_aliases, survey
from raykd.architecture.macs import Unfilled
from raykd.architecture.model import Model, Task


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


@lru_cache(maxsize=4096)
def _anatomy(model: Model, task: Task) -> Anatomy:
    if task.text is not None and not model.takes_text:
        raise ValueError(
            f"{model.name} takes no texts; take a transformer, such as "
            "{name: hf/bert, config: {num_hidden_layers: 2}}"
        )
    network = unfilled(model, task)
    try:
        return dissect(network, task)
    except Exception as error:
        if not model.foreign:
            raise
        raise ValueError(
            f"{model.name} cannot take samples of shape {task.input_shape}: "
            f"{str(error) or type(error).__name__}"
        ) from error
