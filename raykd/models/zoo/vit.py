"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import (
    Patches,
    TokenMean,
    glorot_uniform,
    in_stages,
    init_weights,
    named,
    numbered,
    patch_count,
    perceptron,
)
from raykd.registry import option


def _heads(width: int, heads: int) -> int:
    if width % heads:
        divisors = [str(number) for number in range(1, width + 1) if width % number == 0]
        raise ValueError(
            f"the heads of a vit must divide its width, and {heads} heads do not divide {width}; "
            f"set heads to one of {', '.join(divisors)}, or width to a multiple of {heads}"
        )
    return heads


def _valid_heads(heads: int, info: ValidationInfo) -> int:
    return _heads(info.data["width"], heads) if "width" in info.data else heads


@option
class Vit(Model):
    """Vision transformer (ViT, DeiT): attention over the patches of an image.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), eq. 1 to 4: patches of `patch` x `patch`, each
    mapped to a token plus a learned position; `depth` blocks of self-attention with `heads` heads
    and an MLP of `mlp_ratio` x `width` hidden units, each after a layer-norm and with a shortcut;
    a layer-norm and a linear classifier of the class token (`pooling: token`) or of the mean of
    the tokens (`pooling: mean`, without a class token).  The networks of DeiT (Touvron et al.
    2021, arXiv:2012.12877), without their distillation token, have patch 16, depth 12, and width
    192 with 3 heads (Ti), 384 with 6 (S) or 768 with 12 (B).

    The blocks form up to four stages of equal length with outputs (tokens, width); four or more
    blocks form four.  Linear layers, including that of the patches, are initialized with the
    uniform distribution of Glorot & Bengio 2010 and biases with 0, as in the paper's code and He
    et al. 2022 (arXiv:2111.06377); positions and class token with a normal distribution with
    standard deviation 0.02.  DeiT uses 0.02 for all weights, which suits large widths only.  There
    is no dropout and no stochastic depth.
    """

    paper = "Dosovitskiy 2021, arXiv:2010.11929"

    name: Literal["vit"] = "vit"
    patch: Annotated[int, Field(ge=1, description="Patch size. Must divide the image size")] = 4
    depth: Annotated[int, Field(ge=1, description="Number of blocks")] = 6
    width: Annotated[int, Field(ge=1, description="Embedding size of a token")] = 128
    heads: Annotated[
        int,
        Field(ge=1, description="Number of attention heads. Must divide the width"),
        AfterValidator(_valid_heads),
    ] = 4
    mlp_ratio: Annotated[
        float, Field(gt=0, description="Ratio of the hidden units of the MLP to the width")
    ] = 4.0
    pooling: Annotated[Literal["token", "mean"], Field(description="Input of the classifier")] = (
        "token"
    )

    def build(self, signature: Signature) -> nn.Module:
        shape = image_shape(signature, self.name)
        count = patch_count(shape, self.patch, self.name)
        heads = _heads(self.width, self.heads)
        hidden = max(1, round(self.width * self.mlp_ratio))
        blocks = [_Block(self.width, heads, hidden) for _ in range(self.depth)]
        with_token = self.pooling == "token"
        network = named(
            embed=_Embed(Patches(shape[0], self.width, self.patch), count, self.width, with_token),
            **numbered(in_stages(blocks)),
            norm=nn.LayerNorm(self.width, eps=1e-6),
            pool=_ClassToken() if with_token else TokenMean(),
            classifier=nn.Linear(self.width, signature.classes),
        )
        init_weights(network, glorot_uniform)
        return network


class _Embed(nn.Module):
    """Embed patches after an optional class token: (B, C, H, W) -> (B, tokens, width)."""

    def __init__(self, patches: Patches, count: int, width: int, with_token: bool) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = _init_tokens(1, width) if with_token else None
        self.positions = _init_tokens(count + with_token, width)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.positions


class _Block(nn.Module):
    """Transformer block: (B, tokens, width) -> (B, tokens, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = perceptron(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    (B, tokens, width) -> (B, tokens, width).  Unlike in `nn.MultiheadAttention`, the projections
    are modules, so that hooks can read them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).flatten(2))


class _ClassToken(nn.Module):
    """Select the first token: (B, tokens, width) -> (B, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def _init_tokens(tokens: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(1, tokens, width), std=0.02))
