"""The shape every screen has: it ranks architectures before one of them is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture.model import Model, Task
from raykd.option import option

Inputs = Tensor | Mapping[str, Tensor]
Scorer = Callable[[Model], float]
"""A model's score; more is better.  Not a finite number: this screen cannot rank it."""


@dataclass(frozen=True)
class Screening:
    """What a screen may look at.

    Attributes:
        task: what the models take and give.
        inputs: (B, ...) one batch of training samples, as models take them.
        targets: (B,) their classes, int64.
        teacher: the teacher's model; None where there is none.
        seed: of all that is drawn at random.
    """

    task: Task
    inputs: Inputs
    targets: Tensor
    teacher: Model | None = None
    seed: int = 0


@option
class Screen:
    """Base of every screen.

    Class attributes:
        paper: author, year, arXiv number; empty where there is none.
        needs_teacher: whether it compares a student with a teacher.
        takes_text: whether it can look at networks for texts.
    """

    name: str
    paper: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = False
    takes_text: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        """See that it can look at networks for such a task.

        Raises:
            ValueError: it cannot; says which can.
        """
        if task.text is not None and not self.takes_text:
            raise ValueError(
                f"screen '{self.name}' feeds networks with noise, which texts cannot be made of; "
                "take naswot, diswot, params or macs"
            )


@option
class Unscreened(Screen):
    """No ranking: the sampler selects all points."""

    name: Literal["none"] = "none"


@option
class Ranking(Screen):
    """Base of the screens that rank.

    `candidates` feasible points are drawn at random, their distinct architectures scored, and the
    best `keep` of them are the first trials; what is no part of the student's model is left to
    the sampler, which goes on by itself where trials are left.
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

    def scorer(self, about: Screening) -> Scorer:
        """What gives each model its score.

        Raises:
            ValueError: it cannot work with what there is to look at.
        """
        raise NotImplementedError


@option
class Measured(Ranking):
    """Base of the screens that build each network and let it run."""

    batch: Annotated[int, Field(ge=2, description="Batch size of training samples or noise")] = 64
    repeats: Annotated[
        int, Field(ge=1, description="Number of weight initializations to average over")
    ] = 1

    def scorer(self, about: Screening) -> Scorer:
        self.check(about.task)
        once = [self.seeded_scorer(about, derived(about.seed, n)) for n in range(self.repeats)]
        return lambda model: sum(score(model) for score in once) / len(once)

    def seeded_scorer(self, about: Screening, seed: int) -> Scorer:
        """What gives each model its score under one seed.

        Raises:
            ValueError: as `scorer`.
        """
        raise NotImplementedError


def derived(seed: int, *purpose: str | int) -> int:
    """A seed of its own for each purpose, below 2**63."""
    text = "/".join(map(str, ("screen", seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def drawing(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's random numbers start from `seed` inside, and go on as before afterwards."""
    on_cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_cuda):
        torch.manual_seed(seed)
        yield


def fresh(model: Model, about: Screening, seed: int, *, gaussian: bool = False) -> nn.Module:
    """The model's network with first weights of this seed, on the inputs' device.

    Its batch-norms take what they need from the batch, as in training; nothing else, dropout
    least of all, behaves as in training.

    Args:
        gaussian: weights of convolutions and linear layers from N(0, 1), biases 0, norms 1 and 0.
    """
    with drawing(seed):
        network = model.build(about.task)
        if gaussian:
            make_gaussian(network)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return network.to(device_of(about.inputs))


def make_gaussian(network: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from N(0, 1); reset biases and norms."""
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
    """Where they lie."""
    return (inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))).device


def first(inputs: Inputs, count: int) -> Any:
    """The first `count` samples."""
    if isinstance(inputs, Tensor):
        return inputs[:count]
    return {key: value[:count] for key, value in inputs.items()}
