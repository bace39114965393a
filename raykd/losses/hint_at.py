"""Feature losses: a guided layer of the student follows a hint layer of the teacher."""

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

    `similarity`, in the terms of the survey (Gou 2021, arXiv:2006.05525, Eq. 2 and Table 3):

    - l2: mean over batch and elements of (connector(F_s) - F_t)^2; FitNets, Romero 2015
      (arXiv:1412.6550), Eq. 3.  The paper sums 1/2 ||.||^2 over elements; the mean is that of the
      CRD benchmark.
    - l1: mean of absolute differences.
    - cross_entropy: of softmaxes over channels, mean over positions, minus the entropy of the
      teacher, so that it is 0 if the student equals the teacher.
    - mmd: squared maximum mean discrepancy (Gaussian kernel) between the sets of positions.

    The layers may be of any kinds that a connector maps.  The paper trains in two stages: give this
    term `stop_epoch: n`, and the scheme and a kd term `start_epoch: n`.
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

    The loss is || Q_s/||Q_s||_2 - Q_t/||Q_t||_2 ||_2, mean over the batch, summed over pairs, with
    Q = sum_c |F_c|^p flattened; Zagoruyko 2017 (arXiv:1612.03928), Eq. 2 without its factor beta/2,
    which is the weight of the term.  Area means reduce maps to the smaller of the two sizes.
    `scale: benchmark` uses the mean of squares over batch and positions instead of the norm, as the
    authors' code and the CRD benchmark do.  A map of zeros stays 0.
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
        """(B, C, H, W) -> (B, positions), of norm 1."""
        features = resized(features, size)
        largest = features.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
        energy = (features / or_one(largest)).abs().pow(self.power).sum(dim=1)
        return unit(energy.flatten(1))
