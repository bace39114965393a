"""Feature-based knowledge: a guided layer of the student follows a hint layer of the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from raykd.losses.base import PairLoss
from raykd.losses.connectors import connector, places_of, require, resized, smaller
from raykd.losses.functional import discrepancy, or_one, unit
from raykd.losses.shapes import Shape, check_maps
from raykd.registry import option


@option
class Hint(PairLoss):
    """Match a guided layer, through a regressor, to its hint layer.

    l2: mean over batch and elements of (connector(F_s) - F_t)^2; FitNets, Romero 2015
    (arXiv:1412.6550), Eq. 3, whose 1/2 ||.||^2 is summed over elements: the mean is the CRD
    benchmark's.  The paper trains in two stages: `stop_epoch: n` for this term, `start_epoch: n`
    for the scheme and a kd.  The other similarities of the survey (Gou 2021, arXiv:2006.05525,
    Eq. 2 and Table 3): l1, the mean of |.|; cross_entropy, of softmaxes over channels, mean over
    places, less the teacher's own entropy so that it is 0 at the teacher; mmd, the squared maximum
    mean discrepancy (Gaussian kernel) between the sets of places.  Any kinds of layers that a
    connector bridges.
    """

    knowledge = "feature"
    paper = "Romero 2015, arXiv:1412.6550"
    default_weight = 10.0
    weight_source = (
        "A tenth of the CRD benchmark's 100 for the same mean of squares, which cost accuracy in "
        "trainings of six epochs where 10 gained some."
    )
    default_pairs = "last"

    name: Literal["hint"] = "hint"
    similarity: Annotated[
        Literal["l2", "l1", "cross_entropy", "mmd"],
        Field(description="Similarity measure of the two layers"),
    ] = "l2"
    regressor: Annotated[
        Literal["auto", "always"],
        Field(description="Regressor between the layers. auto: none if the shapes are equal"),
    ] = "auto"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        if self.similarity == "mmd" and len(hint) == 1:
            raise ValueError(
                "similarity 'mmd' compares sets of places and an embedding has none; pair maps or "
                "tokens, or take 'l2'"
            )
        return connector(guided, hint, always=self.regressor == "always")

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        if self.similarity == "l2":
            return F.mse_loss(guided, hint)
        if self.similarity == "l1":
            return F.l1_loss(guided, hint)
        guided, hint = places_of(guided), places_of(hint)
        if self.similarity == "mmd":
            return discrepancy(guided, hint, "gaussian").mean()
        learned, taught = F.log_softmax(guided, dim=2), F.log_softmax(hint, dim=2)
        return (taught.exp() * (taught - learned)).sum(dim=2).mean()


@option
class AttentionTransfer(PairLoss):
    """Match the spatial attention maps of the teacher.

    || Q_s/||Q_s||_2 - Q_t/||Q_t||_2 ||_2 with Q = sum_c |F_c|^p flattened, mean over the batch,
    sum over pairs; Zagoruyko 2017 (arXiv:1612.03928), Eq. 2 without its beta/2, which is the
    weight.  Maps of different size are brought to the smaller by area means.  `scale: benchmark`
    takes the mean of squares over batch and places instead of the norm, as the authors' code and
    the CRD benchmark do.  A map that is 0 everywhere stays 0.
    """

    knowledge = "feature"
    paper = "Zagoruyko 2017, arXiv:1612.03928"
    default_weight = 1.0
    weight_source = (
        "The CRD benchmark's 1000 on the mean of squares, whose gradient is that of about 15 here, "
        "did not help a student of six epochs; 1 helped."
    )
    default_pairs = "stages"
    same_shape = False

    name: Literal["at"] = "at"
    power: Annotated[
        float, Field(ge=1, description="Exponent p; large values emphasize strong activations")
    ] = 2.0
    scale: Annotated[
        Literal["paper", "benchmark"],
        Field(description="Scale of the loss: norm, or mean of squares"),
    ] = "paper"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "at", guided, hint)
        return nn.Identity()

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        check_maps(self.name, guided, hint)
        size = smaller(guided, hint)
        difference = self._attention(guided, size) - self._attention(hint, size)
        if self.scale == "benchmark":
            return difference.square().mean()
        return vector_norm(difference, dim=1).mean()

    def _attention(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) -> (B, places), of norm 1."""
        features = resized(features, size)
        largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
        energy = (features / or_one(largest)).abs().pow(self.power).sum(dim=1)
        return unit(energy.flatten(1))
