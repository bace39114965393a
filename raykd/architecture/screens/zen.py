"""Zen score: how expressive is a network of random weights?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture.cost import anatomy
from raykd.architecture.model import Model
from raykd.architecture.screens.screen import (
    Measured,
    Scorer,
    Screening,
    derived,
    device_of,
    drawing,
    fresh,
)
from raykd.architecture.taps import Taps
from raykd.option import option


@option
class Zen(Measured):
    """Sensitivity of the features to small input noise, with Gaussian weights.

    Lin et al. 2021 (arXiv:2102.01063), algorithm 1: weights, x and e from N(0, 1),

        log E ||f(x) - f(x + alpha e)||_F + sum_l log sqrt(mean_j sigma_lj^2)

    with f the features before the global average, E over the batch, and sigma_lj^2 the variance
    that batch-norm l sees in channel j of f(x): the first part alone would not see the scale that
    batch-norms take away.  No sample of the data is looked at.

    We depart: shortcuts stay where the paper takes them out, since no library's network can be
    asked to run without; squeeze-and-excites stay, too.  f is the end of the last stage.  Networks
    without batch-norms have the first part alone, and should be compared with their like only.
    """

    paper = "Lin 2021, arXiv:2102.01063"
    takes_text: ClassVar[bool] = False

    name: Literal["zen"] = "zen"
    alpha: Annotated[float, Field(gt=0, description="Scale of the perturbation")] = 0.01

    def seeded_scorer(self, about: Screening, seed: int) -> Scorer:
        device = device_of(about.inputs)
        with drawing(derived(seed, "noise")):
            noise = torch.randn(2, self.batch, *about.task.input_shape)
        point, moved = noise[0].to(device), (noise[0] + self.alpha * noise[1]).to(device)

        def score(model: Model) -> float:
            network = fresh(model, about, seed, gaussian=True)
            layer = last_stage(model, about)
            taps = Taps(network, anatomy(model, about.task).resolve([layer]))
            with torch.no_grad():
                with scales(network) as scale:
                    here = taps.run(point).layers[layer]
                there = taps.run(moved).layers[layer]
            return zen_score(here, there, scale)

        return score


def zen_score(here: Tensor, there: Tensor, scale: list[Tensor]) -> float:
    """The score of the features at two places, (B, ...) each, and of the batch-norms' variances.

    Args:
        scale: one tensor (channels,) a batch-norm.
    """
    moved = (here - there).double().flatten(1).norm(dim=1).mean()
    return float(moved.log() + sum(0.5 * variances.double().mean().log() for variances in scale))


@contextmanager
def scales(network: nn.Module) -> Iterator[list[Tensor]]:
    """The variances that batch-norms see in the forwards inside, one tensor (channels,) a run."""
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(args[0].dim()) if axis != 1]
        seen.append(args[0].var(axes, correction=0))

    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def last_stage(model: Model, about: Screening) -> str:
    """The alias of the deepest features before the classifier.

    Raises:
        ValueError: the network has neither stages nor a linear classifier.
    """
    aliases = list(anatomy(model, about.task).aliases)
    stages = [alias for alias in aliases if alias.startswith("stage")]
    if not aliases:
        raise ValueError(f"{model.name} has no stages to look at; take naswot, params or macs")
    return max(stages, key=lambda alias: int(alias.removeprefix("stage"))) if stages else aliases[0]
