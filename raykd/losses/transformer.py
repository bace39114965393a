"""Knowledge in the attention of transformers.

Hidden states of transformers are tokens (N, D), which `hint` compares (TinyBERT, Jiao 2020,
arXiv:1909.10351, hidden states based distillation: mean squared error through a linear connector).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PairLoss
from raykd.losses.connectors import kind_of, places_of, require
from raykd.losses.functional import or_one
from raykd.losses.shapes import Shape, check_features, check_maps
from raykd.registry import option


@option
class AttentionMap(PairLoss):
    """Match the attention between tokens.

    Layers are attention matrices (heads, N, N). `similarity: mse` is the mean over batch, heads
    and entries of (A_s - A_t)^2, for scores (as in the paper) or probabilities; TinyBERT, Jiao 2020
    (arXiv:1909.10351), attention based distillation. `similarity: kl` is KL(A_t || A_s) of the
    rows, mean over batch, heads and rows; MiniLM, Wang 2020 (arXiv:2002.10957), section 3.1; it
    needs probabilities. If the numbers of heads differ, means over heads are compared. The
    numbers of tokens must be equal.
    """

    knowledge = "feature"
    paper = "Jiao 2020, arXiv:1909.10351; Wang 2020, arXiv:2002.10957"
    default_weight = 1.0
    weight_source = "1 in both papers, whose losses are plain sums of such means."
    default_pairs = "last"
    same_shape = False

    name: Literal["attention_map"] = "attention_map"
    similarity: Annotated[
        Literal["mse", "kl"], Field(description="Similarity measure of two attention rows")
    ] = "mse"

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "attention_map", guided, hint)
        if guided[1:] != hint[1:]:
            raise ValueError(
                f"attention among {guided[1:]} tokens cannot be compared with {hint[1:]}; both "
                "networks must see as many tokens"
            )
        return nn.Identity()

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        module = super().judge(guided, hint)
        return _OnProbabilities(module) if self.similarity == "kl" else module

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        check_maps(self.name, guided, hint)
        if guided.shape[2:] != hint.shape[2:]:
            raise ValueError(
                f"attention_map: {tuple(guided.shape)} cannot be compared with "
                f"{tuple(hint.shape)}; both must be (batch, heads, tokens, tokens) with the same "
                "tokens"
            )
        if guided.shape[1] != hint.shape[1]:
            guided, hint = guided.mean(dim=1, keepdim=True), hint.mean(dim=1, keepdim=True)
        if self.similarity == "mse":
            return F.mse_loss(guided, hint)
        hint = hint.clamp_min(0)
        taught = hint / or_one(hint.sum(dim=-1, keepdim=True))
        learned = _log_rows(guided)
        return (torch.xlogy(taught, taught) - taught * learned).sum(dim=-1).mean()


@option
class ValueRelation(PairLoss):
    """Match the relations between the values of tokens.

    KL(R_t || R_s) of the rows, mean over batch, heads and rows, with R = softmax(V V^T / sqrt(d))
    and d the width of a head; MiniLM, Wang 2020 (arXiv:2002.10957), section 3.2. Layers are value
    projections (N, D), or maps, whose positions count as tokens. Widths may differ, and there is
    no connector; the numbers of tokens must be equal.
    """

    knowledge = "relation"
    paper = "Wang 2020, arXiv:2002.10957"
    default_weight = 1.0
    weight_source = "1 in the paper, which adds it to the attention's divergence as it is."
    default_pairs = "last"
    same_shape = False

    name: Literal["value_relation"] = "value_relation"
    heads: Annotated[int, Field(ge=1, description="Number of heads the values are split into")] = 1

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        for side, shape in (("guided", guided), ("hint", hint)):
            width = shape[0] if kind_of(shape) == "map" else shape[-1]
            if len(shape) == 1:
                raise ValueError(f"the {side} layer {shape} is an embedding and has no tokens")
            if width % self.heads:
                raise ValueError(
                    f"the {side} layer's width {width} has no {self.heads} equal heads"
                )
        if _tokens(guided) != _tokens(hint):
            raise ValueError(
                f"{_tokens(guided)} tokens cannot be related as {_tokens(hint)}; pair layers with "
                "as many tokens or places"
            )
        return nn.Identity()

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        learned, taught = self._relation(guided), self._relation(hint)
        check_features(self.name, learned, taught, same=True)
        return (taught.exp() * (taught - learned)).sum(dim=-1).mean()

    def _relation(self, layer: Tensor) -> Tensor:
        """(B, N, D) or (B, C, H, W) -> (B, heads, N, N) log-probabilities."""
        values = places_of(layer).unflatten(2, (self.heads, -1)).transpose(1, 2)
        scores = values @ values.transpose(2, 3) / values.shape[3] ** 0.5
        return F.log_softmax(scores, dim=3)


class _OnProbabilities(nn.Module):
    """Module that compares attention, and checks once that it is not negative."""

    def __init__(self, compare: nn.Module) -> None:
        super().__init__()
        self.compare = compare
        self.checked = False

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        """Compare two layers of probabilities.

        Raises:
            ValueError: a layer contains scores rather than probabilities.
        """
        if not self.checked and not _is_recorded():
            for side, layer in (("guided", guided), ("hint", hint)):
                if (layer < 0).any():  # waits for a GPU, in one step of a training
                    raise ValueError(
                        f"attention_map: similarity 'kl' compares probabilities and the {side} "
                        "layer holds negative values; name a layer after the softmax, or use "
                        "similarity 'mse'"
                    )
            self.checked = True
        return self.compare(guided, hint)


def _is_recorded() -> bool:
    """Return whether a CUDA graph is being captured; the CPU must not wait for the GPU then."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _log_rows(attention: Tensor) -> Tensor:
    """Return logarithms of rows with sum 1; a row of zeros counts as uniform, without gradient.

    The smallest positive number is added.  Clamping would remove the gradient of small values, and
    the values of a softmax can be smaller than any larger bound.
    """
    attention = attention.clamp_min(0)
    total = attention.sum(dim=-1, keepdim=True)
    rows = attention.masked_fill(total == 0, 1.0) + torch.finfo(attention.dtype).tiny
    return rows.log() - rows.sum(dim=-1, keepdim=True).log()


def _tokens(shape: Shape) -> int:
    return shape[1] * shape[2] if len(shape) == 3 else shape[0]
