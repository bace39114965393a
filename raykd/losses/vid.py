"""Variational information distillation."""

from __future__ import annotations

from math import expm1, log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PairLoss
from raykd.losses.connectors import PlaceMean, connector, kind_of, resized
from raykd.losses.shapes import Shape
from raykd.registry import option

_LEAST_VARIANCE = 1e-5


@option
class Vid(PairLoss):
    """Maximize the mutual information with a teacher layer (variational bound).

    Mean over batch and elements of ((t - mu(s))^2 / sigma_c^2 + log sigma_c^2) / 2, with a learned
    mean mu and a learned variance per channel, sigma_c^2 = softplus(a_c) + 1e-5: the negative log-
    likelihood of Ahn 2019 (arXiv:1904.05835), section 2, without its constant. The paper sums over
    elements; the mean is that of the CRD benchmark. The value can be negative. mu is that of the
    benchmark: three 1x1 convolutions without bias and with ReLU between them. Area means reduce
    the larger of two maps.
    """

    knowledge = "feature"
    paper = "Ahn 2019, arXiv:1904.05835"
    default_weight = 1.0
    weight_source = "The CRD benchmark's 1, as it is."
    default_pairs = "stages"
    zero_at_teacher = False

    name: Literal["vid"] = "vid"
    variance: Annotated[float, Field(gt=1e-4, description="Initial variance of every channel")] = (
        5.0
    )

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        return _Likelihood(guided, hint, self.variance)


class _Likelihood(nn.Module):
    """(guided, hint) -> negative mean log-likelihood of `hint`, without a constant."""

    def __init__(self, guided: Shape, hint: Shape, variance: float) -> None:
        super().__init__()
        connector(guided, hint)  # raises where nothing bridges the two
        pooled = kind_of(hint) == "embedding" and kind_of(guided) != "embedding"
        channels, hint_channels = _channels(guided), _channels(hint)
        self.pool = PlaceMean() if pooled else nn.Identity()
        self.mean = nn.Sequential(
            _mixer(channels, hint_channels, hint),
            nn.ReLU(),
            _mixer(hint_channels, hint_channels, hint),
            nn.ReLU(),
            _mixer(hint_channels, hint_channels, hint),
        )
        inverse_softplus = variance + log(-expm1(_LEAST_VARIANCE - variance)) - _LEAST_VARIANCE
        self.spread = nn.Parameter(torch.full((hint_channels,), inverse_softplus))
        self.trailing = len(hint) - 1 if kind_of(hint) == "map" else 0

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        guided = self.pool(guided)
        if hint.dim() == 4:
            size = (min(guided.shape[2], hint.shape[2]), min(guided.shape[3], hint.shape[3]))
            guided, hint = resized(guided, size), resized(hint, size)
        variance = F.softplus(self.spread) + _LEAST_VARIANCE
        variance = variance.view(-1, *[1] * self.trailing)
        error = (hint - self.mean(guided)).square()
        return (error / variance + variance.log()).mean() / 2


def _channels(shape: Shape) -> int:
    return shape[0] if kind_of(shape) == "map" else shape[-1]


def _mixer(channels: int, out_channels: int, like: Shape) -> nn.Module:
    """Build layers that mix the channels of a layer of the same kind as `like`."""
    if kind_of(like) == "map":
        return nn.Conv2d(channels, out_channels, 1, bias=False)
    return nn.Linear(channels, out_channels, bias=False)
