"""Neuron selectivity transfer and probabilistic knowledge transfer."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.losses.base import PairLoss
from raykd.losses.connectors import require, resized, smaller
from raykd.losses.functional import Kernel, discrepancy, or_one, unit
from raykd.losses.shapes import Shape, check_maps
from raykd.registry import option


@option
class Nst(PairLoss):
    """Match the distribution of channel activation patterns.

    Squared maximum mean discrepancy between the maps of the channels, flattened and of norm 1, mean
    over the batch, summed over pairs; Huang 2017 (arXiv:1707.01219), NST loss without its factor
    lambda / 2, which is the weight of the term. `kernel: polynomial` is (x.y)^2 (d = 2, c = 0 in
    the paper); `gaussian` is exp(-||x - y||^2 / 2 sigma^2), sigma^2 being the mean squared distance
    between the patterns of the teacher; `linear` is x.y. Area means reduce maps to the smaller of
    the two sizes; numbers of channels may differ. The value is 0 for the channels of the teacher
    in any order. A channel of zeros stays 0.
    """

    knowledge = "feature"
    paper = "Huang 2017, arXiv:1707.01219"
    default_weight = 10.0
    weight_source = (
        "The 10 that Knowledge-Distillation-Zoo takes for the same formula on CIFAR-10; the CRD "
        "benchmark's 50 made no difference to a student of six epochs, 10 helped."
    )
    default_pairs = "stages"
    same_shape = False

    name: Literal["nst"] = "nst"
    kernel: Annotated[Kernel, Field(description="Kernel that compares two channels")] = "polynomial"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "nst", guided, hint)
        return nn.Identity()

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        check_maps(self.name, guided, hint)
        size = smaller(guided, hint)
        return discrepancy(_patterns(guided, size), _patterns(hint, size), self.kernel).mean()


def _patterns(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, positions), of norm 1."""
    return unit(resized(features, size).flatten(2))


@option
class Pkt(PairLoss):
    """Match the conditional probabilities between samples of a batch.

    KL(p_t(.|i) || p_s(.|i)), mean over samples i, with p(j|i) = k(i, j) / sum_{j != i} k(i, j) and
    k = (cosine + 1) / 2; Passalis 2018 (arXiv:1803.10837), conditional probabilities with the
    cosine kernel and their divergence (there a sum over i). `scale: benchmark` includes j = i and
    takes the mean over all B^2 entries, as the authors' code and the CRD benchmark do. Layers are
    flattened; widths may differ. A batch of one sample gives 0.
    """

    knowledge = "feature"
    paper = "Passalis 2018, arXiv:1803.10837"
    default_weight = 100.0
    weight_source = (
        "The CRD benchmark's 30000 on the mean over B^2 entries is 470 here for batches of 64, "
        "and made no difference to a student of six epochs; 100 helped."
    )
    default_pairs = "embedding"
    relates_samples = True
    same_shape = False

    name: Literal["pkt"] = "pkt"
    scale: Annotated[
        Literal["paper", "benchmark"],
        Field(description="Scale of the loss: mean of sums, or mean of entries"),
    ] = "paper"

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        learned, taught = self._probabilities(guided), self._probabilities(hint)
        tiny = torch.finfo(learned.dtype).eps
        divergence = taught * ((taught + tiny) / (learned + tiny)).log()
        return divergence.mean() if self.scale == "benchmark" else divergence.sum(dim=1).mean()

    def _probabilities(self, features: Tensor) -> Tensor:
        """(B, ...) -> (B, B), rows with sum 1."""
        directions = unit(features.flatten(1))
        near = ((directions @ directions.T + 1) / 2).clamp_min(0)
        if self.scale == "paper":
            near = near * (1 - torch.eye(len(near), dtype=near.dtype, device=near.device))
        return near / or_one(near.sum(dim=1, keepdim=True))
