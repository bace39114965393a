"""Zen score: expressivity of a network with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model
from raykd.models.introspection.hooks import LayerHooks
from raykd.models.introspection.profile import profile_model
from raykd.models.proxies.base import (
    NetworkProxy,
    ProxyContext,
    Scorer,
    build_initialized,
    derive_seed,
    device_of,
    seeded_rng,
)
from raykd.registry import option


@option
class Zen(NetworkProxy):
    """Sensitivity of the features to small input noise, with Gaussian weights.

    Lin et al. 2021 (arXiv:2102.01063), algorithm 1: weights, x and e from N(0, 1),

        log E ||f(x) - f(x + alpha e)||_F + sum_l log sqrt(mean_j sigma_lj^2)

    with f the features before the global average, E over the batch, and sigma_lj^2 the variance
    that batch-norm l sees in channel j of f(x): the second part restores the scale that
    batch-norms remove.  No data are used.

    Differences from the paper: shortcuts and squeeze-and-excites are kept, since networks of other
    libraries cannot run without them.  f is the output of the last stage.  Networks without
    batch-norms have only the first part; compare them with one another only.
    """

    paper = "Lin 2021, arXiv:2102.01063"
    takes_text: ClassVar[bool] = False

    name: Literal["zen"] = "zen"
    alpha: Annotated[float, Field(gt=0, description="Scale of the perturbation")] = 0.01

    def seeded_scorer(self, context: ProxyContext, seed: int) -> Scorer:
        device = device_of(context.inputs)
        with seeded_rng(derive_seed(seed, "noise")):
            noise = torch.randn(2, self.batch, *context.signature.input_shape)
        clean, noisy = noise[0].to(device), (noise[0] + self.alpha * noise[1]).to(device)

        def score(model: Model) -> float:
            network = build_initialized(model, context, seed, gaussian=True)
            layer = last_stage(model, context)
            hooks = LayerHooks(network, profile_model(model, context.signature).resolve([layer]))
            with torch.no_grad():
                with batch_variances(network) as variances:
                    clean_features = hooks.run(clean).layers[layer]
                noisy_features = hooks.run(noisy).layers[layer]
            return zen_score(clean_features, noisy_features, variances)

        return score


def zen_score(clean: Tensor, noisy: Tensor, variances: list[Tensor]) -> float:
    """Compute the score from features of clean and noisy inputs and batch-norm variances.

    Args:
        clean, noisy: (B, ...) features.
        variances: (channels,) tensors, one per batch-norm.
    """
    change = (clean - noisy).double().flatten(1).norm(dim=1).mean()
    return float(change.log() + sum(0.5 * values.double().mean().log() for values in variances))


@contextmanager
def batch_variances(network: nn.Module) -> Iterator[list[Tensor]]:
    """Record the variances that batch-norms see, one (channels,) tensor per call."""
    variances: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(args[0].dim()) if axis != 1]
        variances.append(args[0].var(axes, correction=0))

    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    handles = [norm.register_forward_pre_hook(record) for norm in norms]
    try:
        yield variances
    finally:
        for handle in handles:
            handle.remove()


def last_stage(model: Model, context: ProxyContext) -> str:
    """Return the alias of the deepest features before the classifier.

    Raises:
        ValueError: the network has neither stages nor a linear classifier.
    """
    aliases = list(profile_model(model, context.signature).aliases)
    stages = [alias for alias in aliases if alias.startswith("stage")]
    if not aliases:
        raise ValueError(
            f"{model.name} has no stages and no linear classifier; use naswot, params or macs"
        )
    return max(stages, key=lambda alias: int(alias.removeprefix("stage"))) if stages else aliases[0]
