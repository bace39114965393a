"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.models.base import Model, Task, picture_shape
from raykd.models.zoo.blocks import (
    Patches,
    TokenMean,
    glorot_uniform,
    in_stages,
    named,
    numbered,
    patch_count,
    perceptron,
    start,
)
from raykd.registry import option


def _heads(width: int, heads: int) -> int:
    if width % heads:
        fit = [str(number) for number in range(1, width + 1) if width % number == 0]
        raise ValueError(
            f"a vit's heads share its width equally, and {heads} heads do not divide {width}; "
            f"set heads to one of {', '.join(fit)}, or width to a multiple of {heads}"
        )
    return heads


def _valid_heads(heads: int, info: ValidationInfo) -> int:
    return _heads(info.data["width"], heads) if "width" in info.data else heads


@option
class Vit(Model):
    """Vision transformer (ViT, DeiT): attention over the patches of an image.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), eq. 1 to 4: patches of `patch` x `patch`, each
    mapped to a token, a learned position added to each; `depth` blocks of self-attention with
    `heads` heads and a perceptron of `mlp_ratio` x `width` hidden units, both behind a layer-norm
    and beside a shortcut; a layer-norm and a linear classifier of the class token (`pooling:
    token`) or of the tokens' mean (`pooling: mean`, without a class token).  The networks of DeiT
    (Touvron et al. 2021, arXiv:2012.12877), their distillation token left out: patch 16, depth 12,
    and width 192 with 3 heads (Ti), 384 with 6 (S) or 768 with 12 (B).

    The blocks make up to four stages of equal length, whose outputs are (tokens, width); with four
    blocks and more there are four.  Linear layers, the patches' one too, start from the uniform
    distribution of Glorot & Bengio 2010, biases at 0, as in the paper's code and He et al. 2022
    (arXiv:2111.06377); positions and class token from a normal one with standard deviation 0.02.
    DeiT's 0.02 for all weights suits large widths only.  Dropout and stochastic depth are left out.
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

    def build(self, task: Task) -> nn.Module:
        shape = picture_shape(task, self.name)
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
            classifier=nn.Linear(self.width, task.classes),
        )
        start(network, glorot_uniform)
        return network


class _Embed(nn.Module):
    """(B, C, H, W) -> (B, tokens, width): a class token, if there is one, and the patches."""

    def __init__(self, patches: Patches, count: int, width: int, with_token: bool) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = _drawn(1, width) if with_token else None
        self.positions = _drawn(count + with_token, width)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.patches(pictures)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.positions


class _Block(nn.Module):
    """(B, tokens, width) -> the same."""

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
    """Self-attention of several heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    (B, tokens, width) -> the same.  `nn.MultiheadAttention` would do, but its projections run as
    no modules, so that nothing inside it could be tapped.
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
    """(B, tokens, width) -> (B, width): the first token."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def _drawn(tokens: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(1, tokens, width), std=0.02))
