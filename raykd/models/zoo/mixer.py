"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Model, Signature, image_shape
from raykd.models.zoo.blocks import (
    Patches,
    TokenMean,
    in_stages,
    init_weights,
    lecun_normal,
    named,
    numbered,
    patch_count,
    perceptron,
)
from raykd.registry import option


@option
class Mixer(Model):
    """MLP-Mixer: alternating MLPs over the patches of an image and over their channels.

    Tolstikhin et al. 2021 (arXiv:2105.01601), eq. 1: patches of `patch` x `patch`, each mapped to
    a token; `depth` blocks of an MLP across the tokens (`token_ratio` x `width` hidden units) and
    one across the channels (`mlp_ratio` x `width`), each after a layer-norm and with a shortcut;
    a layer-norm, the mean of the tokens and a linear classifier.  Mixer-S/16 is `patch: 16, depth:
    8, width: 512`, Mixer-B/16 `patch: 16, depth: 12, width: 768`.

    The blocks form up to four stages of equal length with outputs (tokens, width); four or more
    blocks form four.  Weights are initialized with LeCun's normal distribution and biases with 0,
    as in the paper's code (appendix E), except for its classifier of zeros, so that all layers
    learn from the first step.  There is no dropout and no stochastic depth.
    """

    paper = "Tolstikhin 2021, arXiv:2105.01601"

    name: Literal["mixer"] = "mixer"
    patch: Annotated[int, Field(ge=1, description="Patch size. Must divide the image size")] = 4
    depth: Annotated[int, Field(ge=1, description="Number of blocks")] = 6
    width: Annotated[int, Field(ge=1, description="Embedding size of a token")] = 128
    token_ratio: Annotated[
        float,
        Field(gt=0, description="Ratio of the hidden units of the token-mixing MLP to the width"),
    ] = 0.5
    mlp_ratio: Annotated[
        float,
        Field(gt=0, description="Ratio of the hidden units of the channel-mixing MLP to the width"),
    ] = 4.0

    def build(self, signature: Signature) -> nn.Module:
        shape = image_shape(signature, self.name)
        count = patch_count(shape, self.patch, self.name)
        network = named(
            patches=Patches(shape[0], self.width, self.patch),
            **numbered(in_stages([self._block(count) for _ in range(self.depth)])),
            norm=nn.LayerNorm(self.width, eps=1e-6),
            pool=TokenMean(),
            classifier=nn.Linear(self.width, signature.classes),
        )
        init_weights(network, lecun_normal)
        return network

    def _block(self, count: int) -> nn.Module:
        across = max(1, round(self.width * self.token_ratio))
        return _Block(count, self.width, across, max(1, round(self.width * self.mlp_ratio)))


class _Block(nn.Module):
    """Mixer block: (B, tokens, width) -> (B, tokens, width)."""

    def __init__(self, count: int, width: int, across: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = perceptron(count, across)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = perceptron(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.token_mlp(self.norm1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.mlp(self.norm2(tokens))
