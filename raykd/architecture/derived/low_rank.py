"""Students whose layers are products of two smaller ones."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture.derived.derived import Derived, classifier_of, replaced
from raykd.architecture.model import Task
from raykd.option import option

Operators = Literal["all", "convolution", "linear"]
"""Which layers are changed."""


@option
class LowRank(Derived):
    """The teacher with low-rank factorized layers: each becomes a product of two.

    A linear layer of n to m becomes one of n to r and one of r to m, a convolution of k x k one of
    k x k to r channels and one of 1x1 (Zhang 2015, arXiv:1505.06798, section 2.1, without its
    correction for the non-linearity), with r = `rank` x the largest rank that it could have.
    Weights come from the singular value decomposition: of all pairs of that rank their product is
    nearest to the teacher's.  A layer that would not get smaller stays whole, and so do the
    classifier and convolutions in groups.  How many parameters there are must be known before the
    teacher is trained, so the rank is a share, the same for all layers, and does not follow the
    kept energy of each one.
    """

    paper = "Zhang 2015, arXiv:1505.06798"

    name: Literal["low_rank"] = "low_rank"
    rank: Annotated[
        float, Field(gt=0, le=1, description="Rank as a fraction of the full rank of the layer")
    ] = 0.25
    operators: Annotated[Operators, Field(description="Layer types to factorize")] = "all"

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        classifier = classifier_of(network, task)
        for path, layer in list(network.named_modules()):
            if path == classifier or not _factorisable(layer, self.operators):
                continue
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            outputs, inputs = layer.weight.flatten(1).shape
            rank = max(1, round(self.rank * min(outputs, inputs)))
            if rank * (outputs + inputs) < outputs * inputs:
                network = replaced(network, path, factorised(layer, rank, weighed=weighed))
        return network


class Factorised(nn.Sequential):
    """`reduce`, then `expand`: a layer as the product of two.

    Networks whose own code looks at the layer's `weight` or `bias` find the product's.
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


def factorised(layer: nn.Conv2d | nn.Linear, rank: int, *, weighed: bool = True) -> Factorised:
    """The two layers, `reduce` and `expand`, whose product is nearest to a dense one.

    Args:
        layer: linear, or a convolution without groups.
        rank: of the product; at the full rank the product is the layer.
        weighed: whether they are given weights, too.
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
    if weighed:
        _fill(layer, reduce, expand, rank)
    return Factorised(reduce, expand)


@torch.no_grad()
def _fill(layer: nn.Module, reduce: nn.Module, expand: nn.Module, rank: int) -> None:
    left, right = halves(_weight(layer).flatten(1), rank)
    _weight(reduce).copy_(right.view_as(_weight(reduce)))
    _weight(expand).copy_(left.view_as(_weight(expand)))
    if layer.bias is not None:
        assert isinstance(expand.bias, Tensor) and isinstance(layer.bias, Tensor)
        expand.bias.copy_(layer.bias)


def halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(..., m, n) -> (..., m, rank) and (..., rank, n), whose product is nearest to it.

    Each has the roots of the singular values, so that neither learns faster than the other.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[..., :rank].sqrt()
    return left[..., :, :rank] * roots[..., None, :], roots[..., :, None] * right[..., :rank, :]


def _factorisable(layer: nn.Module, operators: Operators) -> bool:
    if type(layer) is nn.Linear:
        return operators != "convolution"
    return type(layer) is nn.Conv2d and layer.groups == 1 and operators != "linear"


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
