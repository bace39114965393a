"""Masked generative distillation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PairLoss
from raykd.losses.connectors import Resize, require
from raykd.losses.shapes import Shape
from raykd.registry import option


@option
class Mgd(PairLoss):
    """Generate the teacher's features from masked student features.

    Mean over batch and elements of (t - G(M a(s)))^2; Yang 2022 (arXiv:2205.01529), section 3.2,
    which sums over elements. M sets a random share `mask` of the positions of each sample to zero,
    a is a 1x1 convolution if the channels differ (with resizing if the sizes differ), and G
    consists of two 3x3 convolutions with a ReLU between them. `masked: places` is the formula of
    the paper; `masked: channels` masks channels, as the authors' code does for classification.
    """

    knowledge = "feature"
    paper = "Yang 2022, arXiv:2205.01529"
    default_weight = 1.0
    weight_source = (
        "The paper's 7e-5 of the sum over elements is 7 times the mean over the 2048 x 7 x 7 "
        "elements it was used on, which at a learning rate of 0.05 diverged without a ramp; 1 did "
        "not, and gained accuracy."
    )
    default_pairs = "last"
    zero_at_teacher = False
    random = True

    name: Literal["mgd"] = "mgd"
    mask: Annotated[float, Field(ge=0, lt=1, description="Fraction to mask")] = 0.15
    masked: Annotated[
        Literal["places", "channels"],
        Field(description="Units to mask: spatial positions or channels"),
    ] = "places"

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "mgd", guided, hint)
        return _Generator(self, guided, hint)


class _Generator(nn.Module):
    """(guided, hint) -> error of the hint layer generated from the masked guided layer."""

    def __init__(self, loss: Mgd, guided: Shape, hint: Shape) -> None:
        super().__init__()
        channels = hint[0]
        self.loss = loss
        self.align = nn.Sequential(Resize((hint[1], hint[2])))
        if guided[0] != channels:
            self.align.append(nn.Conv2d(guided[0], channels, 1))
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        carried = self.align(guided)
        batch, channels, *places = carried.shape
        shape = (batch, 1, *places) if self.loss.masked == "places" else (batch, channels, 1, 1)
        visible = torch.rand(shape, device=carried.device) >= self.loss.mask
        return F.mse_loss(self.generate(carried * visible), hint)
