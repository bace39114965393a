"""Knowledge distillation by singular value decomposition of feature maps."""

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

    Every map, as (places, channels), is compressed to its first `rank` right singular vectors V; to
    each of the teacher's the student's nearest of its first `rank` + 3 is taken, its sign turned;
    both are scaled by the teacher's singular values (of norm 1).  The value is the sum over channel
    pairs c, d and vectors of (R_s - R_t)^2, R = exp(-(V^k_c - V^l_d)^2 / 8) for neighbouring layers
    k, l, mean over the batch, sum over layers; Lee 2018 (ECCV, arXiv:1807.06819), its truncated
    decomposition, post-processing and radial basis functions, in the form of the authors' code and
    the CRD benchmark.  Needs two pairs at least.  Where channels differ the guided layers pass
    connectors.  The gradient of nearly equal singular values is damped, as the paper bounds it; a
    vector's sign, which the paper leaves open, is the one that makes its sum positive; directions
    whose singular value is only rounding error are ignored.
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


def aligned(candidates: Tensor, wanted: Tensor) -> Tensor:
    """(B, C, M), (B, C, N) -> (B, C, N): to each wanted vector the nearest line, sign turned."""
    cosines = candidates.detach().transpose(1, 2) @ wanted
    nearest = cosines.abs().argmax(dim=1, keepdim=True)
    signs = _signs(cosines.gather(1, nearest))
    chosen = nearest.expand(-1, candidates.shape[1], -1)
    return candidates.gather(2, chosen) * signs


def singular_vectors(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> (B, n), (B, C, n): the n <= count largest singular values and their right
    vectors of (places, channels), their sign such that no sum over channels is negative; a vector
    whose singular value is only rounding is 0."""
    matrix = features.flatten(2)
    wide = matrix.shape[1] <= matrix.shape[2]
    gram = matrix @ matrix.transpose(1, 2) if wide else matrix.transpose(1, 2) @ matrix
    squares, vectors = _Eigen.apply(gram)  # type: ignore[misc]
    squares, vectors = squares[:, :count], vectors[:, :, :count]
    if not wide:
        vectors = unit(matrix @ vectors, dim=1)
    rounding = torch.finfo(squares.dtype).eps * max(matrix.shape[1:]) * squares[:, :1]
    kept = (squares > rounding)[:, None]
    signs = _signs(vectors.detach().sum(dim=1, keepdim=True))
    return squares.clamp_min(0).sqrt().detach(), vectors * signs * kept


def _signs(values: Tensor) -> Tensor:
    """1 or -1."""
    return torch.where(values < 0, -1.0, 1.0).to(values.dtype)


class _Eigen(torch.autograd.Function):
    """Eigenvalues and vectors of symmetric matrices, largest first; the gradient of nearly equal
    ones is bounded: 1/d becomes d/(d^2 + e)."""

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
    """(B, C, n), (B, D, n) -> (B, C, D, n): a Gaussian of the differences of entries."""
    return torch.exp(-(first[:, :, None] - second[:, None]).square() / 8)
