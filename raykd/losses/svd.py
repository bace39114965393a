"""Distillation by singular value decomposition of feature maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair, require_two_pairs
from raykd.losses.connectors import channels_connector
from raykd.losses.functional import unit
from raykd.losses.model_outputs import LossInputs
from raykd.registry import option


@option
class Svd(Loss):
    """Match the change of singular feature directions from layer to layer.

    Lee 2018 (ECCV, arXiv:1807.06819), with the truncated decomposition, post-processing and radial
    basis functions of the paper, in the form of the authors' code and the CRD benchmark. Each map,
    as (positions, channels), is reduced to its first `rank` right singular vectors V. For each
    vector of the teacher, the nearest of the first `rank` + 3 vectors of the student is used, with
    the sign of the teacher's. Both are scaled by the singular values of the teacher (normalized to
    norm 1). The loss is the sum over channel pairs c, d and vectors of (R_s - R_t)^2, with R =
    exp(-(V^k_c - V^l_d)^2 / 8) for neighboring layers k and l, mean over the batch, summed over
    layers.

    The loss needs at least two pairs.  If the numbers of channels differ, the guided layers pass
    connectors.  The gradient of nearly equal singular values is damped, as in the paper.  The paper
    leaves the sign of a vector open; here its sum is positive.  Directions whose singular value is
    rounding error are ignored.
    """

    knowledge = "relation"
    paper = "Lee 2018, arXiv:1807.06819"
    default_weight = 1.0
    weight_source = (
        "The 1 of mdistiller's configuration, as it is, for the CRD benchmark's formula (it "
        "gives no weight)."
    )
    default_pairs = "stages"
    least_pairs = 2

    name: Literal["svd"] = "svd"
    rank: Annotated[int, Field(ge=1, le=8, description="Number of singular vectors to keep")] = 1

    def build(self, context: LossContext) -> LossModule:
        require_two_pairs("svd", context)
        return _Compressed(self, context)


CANDIDATES = 3
"""How many more of the student's singular vectors are looked at than of the teacher's."""


class _Compressed(LossModule):
    def __init__(self, loss: Svd, context: LossContext) -> None:
        super().__init__(context)
        self.rank = loss.rank
        self.pairs = context.pairs
        self.connectors = nn.ModuleList(for_each_pair(context, channels_connector))

    def value(self, inputs: LossInputs) -> Tensor:
        compressed = [
            self._vectors(
                connect(inputs.student.layers[pair.guided]), inputs.teacher.layers[pair.hint]
            )
            for pair, connect in zip(self.pairs, self.connectors, strict=True)
        ]
        values = [
            (_change(ours, deeper) - _change(theirs, theirs_deeper)).square().sum(dim=(1, 2, 3))
            for (ours, theirs), (deeper, theirs_deeper) in pairwise(compressed)
        ]
        return torch.stack(values).sum(dim=0).mean()

    def _vectors(self, guided: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, vectors) of the student and of the teacher, aligned and scaled alike."""
        sizes, theirs = singular_vectors(hint, self.rank)
        _, candidates = singular_vectors(guided, self.rank + CANDIDATES)
        sizes = unit(sizes)[:, None]
        return aligned(candidates, theirs) * sizes, theirs * sizes


def aligned(candidates: Tensor, directions: Tensor) -> Tensor:
    """(B, C, M), (B, C, N) -> (B, C, N): nearest line to each direction, with its sign."""
    cosines = candidates.detach().transpose(1, 2) @ directions
    nearest = cosines.abs().argmax(dim=1, keepdim=True)
    signs = _signs(cosines.gather(1, nearest))
    chosen = nearest.expand(-1, candidates.shape[1], -1)
    return candidates.gather(2, chosen) * signs


def singular_vectors(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> (B, n), (B, C, n): largest singular values, n <= count, and right vectors.

    The matrices are (positions, channels). The sum of each vector over channels is not negative.
    A vector whose singular value is rounding error is 0.
    """
    matrix = features.flatten(2)
    wide = matrix.shape[1] <= matrix.shape[2]
    gram = matrix @ matrix.transpose(1, 2) if wide else matrix.transpose(1, 2) @ matrix
    squares, vectors = _Eigen.apply(gram)  # type: ignore[misc]
    squares, vectors = squares[:, :count], vectors[:, :, :count]
    if not wide:
        vectors = unit(matrix @ vectors, dim=1)
    rounding = torch.finfo(squares.dtype).eps * max(matrix.shape[1:]) * squares[:, :1]
    is_significant = (squares > rounding)[:, None]
    signs = _signs(vectors.detach().sum(dim=1, keepdim=True))
    return squares.clamp_min(0).sqrt().detach(), vectors * signs * is_significant


def _signs(values: Tensor) -> Tensor:
    """1 or -1."""
    return torch.where(values < 0, -1.0, 1.0).to(values.dtype)


class _Eigen(torch.autograd.Function):
    """Eigenvalues and eigenvectors of symmetric matrices, largest first.

    The gradient of nearly equal eigenvalues is bounded: 1/d becomes d/(d^2 + e).
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(-1), vectors.flip(-1)
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values[:, None, :] - values[:, :, None]
        least = torch.finfo(values.dtype).eps * values[:, :1, None].square()
        tiny = torch.finfo(values.dtype).tiny
        mixing = gaps / (gaps.square() + least + tiny) * (vectors.transpose(1, 2) @ gradients[1])
        gradient = vectors @ mixing @ vectors.transpose(1, 2)
        return (gradient + gradient.transpose(1, 2)) / 2


def _change(first: Tensor, second: Tensor) -> Tensor:
    """(B, C, n), (B, D, n) -> (B, C, D, n): Gaussian of the differences of entries."""
    return torch.exp(-(first[:, :, None] - second[:, None]).square() / 8)
