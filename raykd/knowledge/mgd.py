"""Masked generative distillation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.knowledge.connectors import connector, require
from raykd.knowledge.evidence import Shape
from raykd.knowledge.loss import PairLoss
from raykd.option import option


@option
class Mgd(PairLoss):
    """From the student's features with places masked out, the teacher's are generated.

    Mean over batch and elements of (t - G(M connector(s)))^2, M zero at a random share `mask` of
    the places of each sample and G two 3x3 convolutions with a ReLU between; Yang 2022
    (arXiv:2205.01529), Eqs. 3 to 5, which sum over elements.  mask 0.15 and the weight, 7e-5 times
    the 2048 x 7 x 7 elements there, are the paper's for classification.
    """

    knowledge = "feature"
    paper = "Yang 2022, arXiv:2205.01529"
    default_weight = 7.0
    default_pairs = "last"
    zero_at_teacher = False
    random = True

    name: Literal["mgd"] = "mgd"
    mask: Annotated[float, Field(ge=0, lt=1, description="share of places hidden")] = 0.15

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "mgd", guided, hint)
        return _Generator(guided, hint, self.mask)


class _Generator(nn.Module):
    """(guided, hint) -> the error of the hint generated from the masked guided layer."""

    def __init__(self, guided: Shape, hint: Shape, mask: float) -> None:
        super().__init__()
        channels = hint[0]
        self.mask = mask
        self.connector = connector(guided, hint)
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        carried = self.connector(guided)
        draw = torch.rand(len(carried), 1, *carried.shape[2:], device=carried.device)
        return F.mse_loss(self.generate(carried * (draw >= self.mask)), hint)
