"""Variational information distillation."""

from __future__ import annotations

from math import expm1, log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.knowledge.connectors import connector, kind_of
from raykd.knowledge.evidence import Shape
from raykd.knowledge.loss import PairLoss
from raykd.option import option

_LEAST_VARIANCE = 1e-5


@option
class Vid(PairLoss):
    """The student's layer tells as much as it can about the teacher's.

    Mean over batch and elements of ((t - mu(s))^2 / sigma_c^2 + log sigma_c^2) / 2, with a learned
    mean and one learned variance a channel, sigma^2 = softplus(a) + 1e-5; the negative of the bound
    on mutual information of Ahn 2019 (arXiv:1904.05835), Eqs. 2 to 6, up to a constant.  It can be
    negative.  Weight 1 and the first variance 5 are the CRD benchmark's.
    """

    knowledge = "feature"
    paper = "Ahn 2019, arXiv:1904.05835"
    default_weight = 1.0
    default_pairs = "stages"
    zero_at_teacher = False

    name: Literal["vid"] = "vid"
    variance: Annotated[float, Field(gt=1e-4, description="the first, of every channel")] = 5.0

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        return _Likelihood(guided, hint, self.variance)


class _Likelihood(nn.Module):
    """(guided, hint) -> minus the mean log-likelihood of `hint`, less a constant."""

    def __init__(self, guided: Shape, hint: Shape, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            connector(guided, hint, always=True), nn.ReLU(), _mixer(hint), nn.ReLU(), _mixer(hint)
        )
        channels = hint[0] if kind_of(hint) == "map" else hint[-1]
        inverse_softplus = log(expm1(variance - _LEAST_VARIANCE))
        self.spread = nn.Parameter(torch.full((channels,), inverse_softplus))
        self.trailing = len(hint) - 1 if kind_of(hint) == "map" else 0

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        variance = F.softplus(self.spread) + _LEAST_VARIANCE
        variance = variance.view(-1, *[1] * self.trailing)
        error = (hint - self.mean(guided)).square()
        return (error / variance + variance.log()).mean() / 2


def _mixer(shape: Shape) -> nn.Module:
    """Mixes the channels of a layer of this shape."""
    if kind_of(shape) == "map":
        return nn.Conv2d(shape[0], shape[0], 1)
    return nn.Linear(shape[-1], shape[-1])
