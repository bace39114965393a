"""Base classes of zero-cost proxies, which rank architectures without training them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature
from raykd.registry import Registry, option
from raykd.tasks.base import ALL_KINDS, Kind

Inputs = Tensor | Mapping[str, Tensor]
Scorer = Callable[[Model], float]
"""Function from a model to its score: more is better; without a finite score it is not ranked."""


@dataclass(frozen=True)
class ProxyContext:
    """Data, teacher and seed that a proxy may use.

    Attributes:
        signature: inputs and outputs of the models.
        inputs: (B, ...) one batch of training samples, as inputs of the models.
        targets: of the samples, as in `Batch`.
        teacher: model of the teacher, or None.
        seed: seed of all random numbers.
    """

    signature: Signature
    inputs: Inputs
    targets: Tensor
    teacher: Model | None = None
    seed: int = 0


@option
class Proxy:
    """Base of every proxy.

    Class attributes:
        paper: author, year, arXiv number; may be empty.
        needs_teacher: whether it compares a student with a teacher.
        kinds: kinds of responses that it fits.
        takes_text: whether it supports text models.
        reads_labels: whether it reads the targets, so that every training sample needs a label.
    """

    name: str
    paper: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ALL_KINDS
    takes_text: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False


PROXIES = Registry("proxy", base=Proxy, entry_points="raykd.proxies")
"""Proxies that a study may name; `raykd.models.proxies` adds them."""

AnyProxy = Annotated[Proxy, PROXIES]
"""Type of a field that holds a proxy."""


@option
class NoProxy(Proxy):
    """No ranking: the sampler selects all points."""

    name: Literal["none"] = "none"


@option
class RankingProxy(Proxy):
    """Base of the proxies that rank.

    `candidates` feasible points are drawn at random and their distinct architectures are scored.
    The best `keep` become the first trials; the sampler chooses their other values and all further
    trials.
    """

    candidates: Annotated[
        int, Field(ge=2, description="Number of random feasible points to score")
    ] = 200
    keep: Annotated[
        int | None,
        Field(
            ge=1, description="Number of top-ranked points to try first. null: half of the trials"
        ),
    ] = None
    per_cost: Annotated[
        Literal["auto", "params", "macs", "none"],
        Field(
            description="Rank within bins of similar cost and keep the same number from "
            "each bin. auto: by the cost that is also an objective, if there is "
            "one"
        ),
    ] = "auto"
    bins: Annotated[int, Field(ge=2, description="Number of bins. Only with `per_cost`")] = 5

    def check(self, signature: Signature) -> None:
        """Check that the proxy supports a signature.

        Raises:
            ValueError: it does not; the message names proxies that do.
        """
        if signature.text is not None and not self.takes_text:
            raise ValueError(
                f"proxy '{self.name}' feeds noise to networks, which is not possible with texts; "
                "use naswot, diswot, params or macs"
            )

    def scorer(self, context: ProxyContext) -> Scorer:
        """Return a function that scores models.

        Raises:
            ValueError: the context lacks something that the proxy needs.
        """
        raise NotImplementedError


@option
class NetworkProxy(RankingProxy):
    """Base of the proxies that build and run each network."""

    kinds = ("softmax", "sigmoid", "real")

    batch: Annotated[int, Field(ge=2, description="Batch size of training samples or noise")] = 64
    repeats: Annotated[
        int, Field(ge=1, description="Number of weight initializations to average over")
    ] = 1

    def scorer(self, context: ProxyContext) -> Scorer:
        self.check(context.signature)
        seeds = [derive_seed(context.seed, number) for number in range(self.repeats)]
        scorers = [self.seeded_scorer(context, seed) for seed in seeds]
        return lambda model: sum(score(model) for score in scorers) / len(scorers)

    def seeded_scorer(self, context: ProxyContext, seed: int) -> Scorer:
        """Return a function that scores models under one seed.

        Raises:
            ValueError: as `scorer`.
        """
        raise NotImplementedError


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a separate seed, below 2**63, for each purpose."""
    text = "/".join(map(str, ("screen", seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded_rng(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's random numbers inside the context, and restore their state after it."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def build_initialized(
    model: Model, context: ProxyContext, seed: int, *, gaussian: bool = False
) -> nn.Module:
    """Build a network with initial weights of this seed, on the device of the inputs.

    Batch-norms use batch statistics, as in training; all else, such as dropout, is in eval mode.

    Args:
        gaussian: weights of convolutions and linear layers from N(0, 1), biases 0, norms 1 and 0.
    """
    with seeded_rng(seed):
        network = model.build(context.signature)
        if gaussian:
            init_gaussian(network)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # no public base in torch 2.15
            module.train()
    return network.to(device_of(context.inputs))


def init_gaussian(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from N(0, 1); reset biases and norms."""
    # `_ConvNd` and `_NormBase`: no public bases in torch 2.15.
    for module in network.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight)
        elif _is_norm(module) and isinstance(weight, Tensor):
            nn.init.ones_(weight)
        else:
            continue
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)


def device_of(inputs: Inputs) -> torch.device:
    """Return the device of a batch."""
    return (inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))).device


def first(inputs: Inputs, count: int) -> Inputs:
    """Return the first `count` samples."""
    if isinstance(inputs, Tensor):
        return inputs[:count]
    return {key: value[:count] for key, value in inputs.items()}
