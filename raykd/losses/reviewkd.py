"""Knowledge review: deep layers of the student learn from shallow layers of the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair
from raykd.losses.connectors import kind_of, require
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import Shape, check_features, check_maps
from raykd.registry import option

LEVELS = (4, 2, 1)
"""Sizes to which a map is pooled for the hierarchical context loss."""


@option
class ReviewKD(Loss):
    """Match student layers, fused from deep to shallow, to the teacher.

    From deep to shallow, each guided layer is fused with the result of the deeper layers by learned
    attention (ABF) and compared with its hint layer by the hierarchical context loss (HCL): the
    mean squared error of the maps and of their means on 4x4, 2x2 and 1x1 grids smaller than the
    maps, with weights 1, 1/2, 1/4, 1/8 normalized to sum 1; Chen 2021 (arXiv:2104.09044), section 3
    and the figure of ABF and HCL. The loss is the sum over pairs, which are ordered shallow to
    deep. An embedding counts as a map with one position (the deepest pair of the authors).
    """

    knowledge = "feature"
    paper = "Chen 2021, arXiv:2104.09044"
    default_weight = 5.0
    weight_source = (
        "The authors' 5 for resnet32x4 -> resnet8x4 (0.6 to 8 for other networks), as it is; they "
        "let it grow over 20 of 240 epochs, which is a term's `ramp_epochs`."
    )
    default_pairs = "stages"
    zero_at_teacher = False

    name: Literal["reviewkd"] = "reviewkd"
    width: Annotated[
        int, Field(ge=1, description="Maximum number of channels of the fused maps")
    ] = 512

    def build(self, context: LossContext) -> LossModule:
        return _Review(self, context)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        """Return the hierarchical context loss of two maps of one shape."""
        check_maps(self.name, guided, hint)
        check_features(self.name, guided, hint, same=True)
        value, total, weight = F.mse_loss(guided, hint), 1.0, 1.0
        for level in LEVELS:
            if level < guided.shape[2]:
                weight /= 2
                ours, theirs = (F.adaptive_avg_pool2d(side, level) for side in (guided, hint))
                value = value + weight * F.mse_loss(ours, theirs)
                total += weight
        return value / total


class _Review(LossModule):
    def __init__(self, loss: ReviewKD, context: LossContext) -> None:
        super().__init__(context)
        self.loss = loss
        self.pairs = context.pairs
        deepest = context.guided_shapes[-1] if context.guided_shapes else (0,)
        self.width = min(loss.width, deepest[0])
        fusions = for_each_pair(context, self._fusion)
        for fusion in fusions[:-1]:
            fusion.attention = nn.Conv2d(2 * self.width, 2, 1)
        self.fusions = nn.ModuleList(fusions)

    def _fusion(self, guided: Shape, hint: Shape) -> _Fusion:
        if kind_of(guided) == kind_of(hint) == "embedding":
            hint = (*hint, 1, 1)
        else:
            require("map", "reviewkd", guided, hint)
        return _Fusion(guided[0], self.width, hint)

    def value(self, inputs: LossInputs) -> Tensor:
        values, fused = [], None
        for pair, fusion in zip(self.pairs[::-1], self.fusions[::-1], strict=True):
            fused, carried = fusion(_as_map(inputs.student.layers[pair.guided]), fused)
            values.append(self.loss(carried, _as_map(inputs.teacher.layers[pair.hint])))
        return torch.stack(values).sum()


class _Fusion(nn.Module):
    """(guided layer, fused deeper layers or None) -> (fused, fused as the hint layer)."""

    attention: nn.Module | None

    def __init__(self, channels: int, width: int, hint: Shape) -> None:
        super().__init__()
        self.size = (hint[1], hint[2])
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.leave = nn.Sequential(
            nn.Conv2d(width, hint[0], 3, padding=1, bias=False), nn.BatchNorm2d(hint[0])
        )
        self.attention = None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, guided: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.enter(guided)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, size=fused.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, size=self.size, mode="nearest")
        return fused, self.leave(fused)


def _as_map(layer: Tensor) -> Tensor:
    return layer[:, :, None, None] if layer.dim() == 2 else layer
