"""Students with low-rank layers: each is a product of two smaller ones."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel, find_classifier, replace_module
from raykd.registry import option

Operators = Literal["all", "convolution", "linear"]
"""Layer types to factorize."""


@option
class LowRank(CompressedModel):
    """The teacher with low-rank factorized layers: each becomes a product of two.

    A linear layer from n to m units becomes one from n to r and one from r to m, a k x k
    convolution one of k x k with r channels and one of 1x1 (Zhang 2015, arXiv:1505.06798, section
    2.1, without its correction for the non-linearity), with r = `rank` x the full rank.  Weights
    are from the singular value decomposition, whose product is the nearest to the teacher's weights
    of all pairs of that rank.  Layers that would not get smaller, the classifier and grouped
    convolutions are not changed.  The number of parameters must be known before the teacher is
    trained, so the rank is the same fraction for all layers and does not depend on the kept energy
    of each layer.
    """

    paper = "Zhang 2015, arXiv:1505.06798"

    name: Literal["low_rank"] = "low_rank"
    rank: Annotated[
        float, Field(gt=0, le=1, description="Rank as a fraction of the full rank of the layer")
    ] = 0.25
    operators: Annotated[Operators, Field(description="Layer types to factorize")] = "all"

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        classifier = find_classifier(network, signature)
        for path, layer in list(network.named_modules()):
            if path == classifier or not _is_factorizable(layer, self.operators):
                continue
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            outputs, inputs = layer.weight.flatten(1).shape
            rank = max(1, round(self.rank * min(outputs, inputs)))
            if rank * (outputs + inputs) < outputs * inputs:
                pair = factorize(layer, rank, with_weights=with_weights)
                network = replace_module(network, path, pair)
        return network


class Factorized(nn.Sequential):
    """A layer as the product of two: `reduce`, then `expand`.

    `weight` and `bias` are those of the product, for networks that read them.
    """

    def __init__(self, reduce: nn.Module, expand: nn.Module) -> None:
        super().__init__()
        self.add_module("reduce", reduce)
        self.add_module("expand", expand)

    @property
    def weight(self) -> Tensor:
        reduce, expand = (_weight(part) for part in self)
        return (expand.flatten(1) @ reduce.flatten(1)).unflatten(1, reduce.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        bias = self[1].bias
        assert bias is None or isinstance(bias, Tensor)
        return bias


def factorize(layer: nn.Conv2d | nn.Linear, rank: int, *, with_weights: bool = True) -> Factorized:
    """Build the pair of layers whose product is nearest to a dense one.

    Args:
        layer: a linear layer, or a convolution without groups.
        rank: rank of the product; at full rank the product equals the layer.
        with_weights: set the weights; if false they are arbitrary.
    """
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        reduce: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        expand: nn.Module = nn.Linear(rank, layer.out_features, bias)
    else:
        reduce = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        expand = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
    if with_weights:
        _set_weights(layer, reduce, expand, rank)
    return Factorized(reduce, expand)


@torch.no_grad()
def _set_weights(layer: nn.Module, reduce: nn.Module, expand: nn.Module, rank: int) -> None:
    left, right = factor_pair(_weight(layer).flatten(1), rank)
    _weight(reduce).copy_(right.view_as(_weight(reduce)))
    _weight(expand).copy_(left.view_as(_weight(expand)))
    if layer.bias is not None:
        assert isinstance(expand.bias, Tensor) and isinstance(layer.bias, Tensor)
        expand.bias.copy_(layer.bias)


def factor_pair(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Split (..., m, n) into (..., m, rank) and (..., rank, n) with the nearest product.

    Both factors get the square roots of the singular values, so that they learn equally fast.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[..., :rank].sqrt()
    return left[..., :, :rank] * roots[..., None, :], roots[..., :, None] * right[..., :rank, :]


def _is_factorizable(layer: nn.Module, operators: Operators) -> bool:
    if type(layer) is nn.Linear:
        return operators != "convolution"
    return type(layer) is nn.Conv2d and layer.groups == 1 and operators != "linear"


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
