"""Factor transfer: a paraphraser on the teacher's features, a translator on the student's."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair
from raykd.losses.connectors import Resize, require
from raykd.losses.functional import unit
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import Shape, check_features
from raykd.registry import option


@option
class Ft(Loss):
    """Match translated student features to factors extracted from the teacher.

    The loss is || f_t/||f_t||_2 - f_s/||f_s||_2 ||_1, mean over the batch, where f_t is the factor
    of the teacher and f_s that of the student: Kim 2018 (arXiv:1802.04977) with p = 1.  The factor
    of the teacher comes from a paraphraser, an autoencoder of the hint layer with `rate` times its
    channels in the middle.

    In the first `pretrain_epochs` of the term (in the paper, before the training) the value is the
    mean squared reconstruction error of the paraphraser, divided by the weight of the term so that
    its training does not depend on the weight.  Meanwhile the student learns from the labels and
    other terms.  Then the paraphraser is frozen and the value is the distance of the factors.
    Epochs are counted from the `start_epoch` of the term; a resumed training continues the count.

    `scale: paper` is the sum of absolute values above. `scale: benchmark`, as in the CRD
    benchmark, is the mean over positions of the absolute difference between the normalized means
    over channels of the squared factors. The authors' code uses the mean over all elements.
    """

    knowledge = "feature"
    paper = "Kim 2018, arXiv:1802.04977"
    default_weight = 0.25
    weight_source = (
        "The authors' 500 of the mean over elements, which is 0.25 of the sum over the 32 x 8 x 8 "
        "elements of their factor; the CRD benchmark's 200 belongs to its own `scale`."
    )
    default_pairs = "last"
    zero_at_teacher = False
    relates_samples = False

    name: Literal["ft"] = "ft"
    rate: Annotated[
        float, Field(gt=0, le=4, description="Ratio of the factor channels to the hint channels")
    ] = 0.5
    pretrain_epochs: Annotated[
        int, Field(ge=0, description="Epochs to pretrain the paraphraser")
    ] = 1
    scale: Annotated[
        Literal["paper", "benchmark"],
        Field(description="Scale of the loss: distance of factors, or of their mean energy"),
    ] = "paper"

    @property
    def pairs_apart(self) -> bool:
        return True

    def build(self, context: LossContext) -> LossModule:
        return _FactorTransfer(self, context)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        """Return the distance of two factors of equal shape, (B, C, H, W) each."""
        check_features(self.name, guided, hint, same=True)
        if self.scale == "benchmark":
            guided, hint = (side.square().mean(dim=1) for side in (guided, hint))
        difference = (unit(guided.flatten(1)) - unit(hint.flatten(1))).abs()
        distances = difference.sum(dim=1) if self.scale == "paper" else difference.mean(dim=1)
        return distances.mean()


class _FactorTransfer(LossModule):
    def __init__(self, loss: Ft, context: LossContext) -> None:
        super().__init__(context)
        self.loss = loss
        self.pairs = context.pairs
        self.weight = context.weight
        self.judges = nn.ModuleList(for_each_pair(context, self._pair))
        self.sometimes_unused = True

    def value(self, inputs: LossInputs) -> Tensor:
        pretrains = inputs.progress.epoch < self.loss.pretrain_epochs
        values = [
            judge.restoration(inputs.teacher.layers[pair.hint]) / self.weight
            if pretrains
            else judge(inputs.student.layers[pair.guided], inputs.teacher.layers[pair.hint])
            for pair, judge in zip(self.pairs, self.judges, strict=True)
            if isinstance(judge, _Factors)
        ]
        return torch.stack(values).sum()

    def _pair(self, guided: Shape, hint: Shape) -> _Factors:
        require("map", "ft", guided, hint)
        return _Factors(self.loss, guided, hint)


class _Factors(nn.Module):
    """(guided, hint) -> distance of their factors, without a gradient for the paraphraser."""

    def __init__(self, loss: Ft, guided: Shape, hint: Shape) -> None:
        super().__init__()
        width = max(1, round(hint[0] * loss.rate))
        self.loss = loss
        self.encoder = _layers([hint[0], hint[0], width, width])
        self.decoder = _layers([width, width, hint[0], hint[0]])
        self.translator = nn.Sequential(
            Resize((hint[1], hint[2])), *_layers([guided[0], guided[0], width, width])
        )

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        self.encoder.eval()
        with torch.no_grad():
            factor = self.encoder(hint)
        return self.loss(self.translator(guided), factor)

    def restoration(self, hint: Tensor) -> Tensor:
        """Return the mean squared error of the hint layer reconstructed from its factor."""
        self.encoder.train(self.training)
        return F.mse_loss(self.decoder(self.encoder(hint)), hint)


def _layers(widths: list[int]) -> nn.Sequential:
    """Build convolutions, each with batch norm and leaky ReLU (0.1), as in the paper."""
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*modules)
