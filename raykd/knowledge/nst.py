"""Neuron selectivity transfer: what each channel looks for, as a distribution."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.knowledge.connectors import require, resized, smaller
from raykd.knowledge.kernels import Kernel, discrepancy, unit
from raykd.knowledge.loss import PairLoss
from raykd.knowledge.shapes import Shape, check_maps
from raykd.option import option


@option
class Nst(PairLoss):
    """Match the distribution of channel activation patterns.

    Squared maximum mean discrepancy between the channels' maps, flattened and of norm 1, mean
    over the batch, sum over pairs; Huang 2017 (arXiv:1707.01219), the NST loss without its
    lambda / 2, which is the weight.  polynomial: (x.y)^2, the paper's d = 2, c = 0; gaussian:
    exp(-||x - y||^2 / 2 sigma^2), sigma^2 the mean squared distance between the teacher's patterns;
    linear: x.y.  Maps of different size are brought to the smaller by area means; numbers of
    channels may differ.  Zero for the teacher's own channels in any order.  A channel that is 0
    everywhere stays 0.
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
    """(B, C, H, W) -> (B, C, places), of norm 1."""
    return unit(resized(features, size).flatten(2))
