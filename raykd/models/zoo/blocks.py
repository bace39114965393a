"""Modules and initializations that several families share.

Torchvision has some of them, but its import takes as long as that of torch and imports the
compiler, its activations overwrite tensors that hooks read, and its kernel sizes and expansions
are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from raykd.models.introspection.stages import BLOCK_STAGES


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Build a 3x3 convolution that keeps the size at stride 1 and halves it at stride 2."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Build `conv` (no bias, padded to keep the size at stride 1), `bn` and an optional `act`."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return named(conv=conv, bn=nn.BatchNorm2d(outputs), act=act() if act else None)


def named(**parts: nn.Module | None) -> nn.Sequential:
    """Build a sequence of named parts; None is left out."""
    sequence = nn.Sequential()
    for name, part in parts.items():
        if part is not None:
            sequence.add_module(name, part)
    return sequence


def imagenet_stem(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Build a convolution and a 3x3 max-pooling, both with stride 2, which divide the size by 4."""
    conv = conv_bn(inputs, outputs, kernel, stride=2)
    return named(conv=conv, pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1))


def staged(
    stem: nn.Module,
    stages: Sequence[nn.Module],
    classifier: nn.Module,
    head: nn.Module | None = None,
    neck: nn.Module | None = None,
) -> nn.Sequential:
    """Build an image classifier of named parts; None is left out.

    The names are `stem`, `stage1`, `stage2`, ..., `head`, `pool` (a global average), `flatten`,
    `neck`, `classifier`.
    """
    return named(
        stem=stem,
        **numbered(stages),
        head=head,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        neck=neck,
        classifier=classifier,
    )


def numbered(stages: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Name stages `stage1`, `stage2`, ..., as `stages.py` expects."""
    return {f"stage{number}": stage for number, stage in enumerate(stages, start=1)}


def in_stages(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Group equal blocks into at most `BLOCK_STAGES` stages of (nearly) equal length.

    With fewer blocks, each one is a stage; with more, the number of stages is constant.
    """
    count = min(len(blocks), BLOCK_STAGES)
    ends = [-(-number * len(blocks) // count) for number in range(count + 1)]
    return [nn.Sequential(*blocks[start:end]) for start, end in pairwise(ends)]


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Build the identity, or a 1x1 convolution with batch-norm (He et al. 2016, option B)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """ReLU of the sum of `body` and `shortcut`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.body(inputs) + self.shortcut(inputs))


class InvertedResidual(nn.Module):
    """A body whose inputs are added to its outputs if the shape does not change.

    Args:
        body: see `inverted_residual`.
        adds: whether the inputs are added.
    """

    def __init__(self, body: nn.Module, *, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.body(inputs)
        return inputs + outputs if self.adds else outputs


def inverted_residual(
    inputs: int,
    outputs: int,
    hidden: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    act: Callable[[], nn.Module] = nn.ReLU,
    expands: bool = True,
    squeeze: nn.Module | None = None,
) -> InvertedResidual:
    """Build a 1x1 convolution to `hidden` channels, a depthwise and a linear 1x1 convolution.

    The inputs are added if the shape does not change (Sandler et al. 2018, arXiv:1801.04381,
    table 1).

    Args:
        inputs, outputs, hidden: numbers of channels.
        kernel, stride: of the depthwise convolution.
        act: activation of the first two convolutions.
        expands: whether there is a first convolution; if not, `hidden` equals `inputs`.
        squeeze: module after the depthwise convolution.
    """
    body = named(
        expand=conv_bn(inputs, hidden, act=act) if expands else None,
        depthwise=conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=act),
        squeeze=squeeze,
        project=conv_bn(hidden, outputs, act=None),
    )
    return InvertedResidual(body, adds=stride == 1 and inputs == outputs)


class SqueezeExcite(nn.Module):
    """Scale each channel of (B, C, H, W) by a gate of the means of all channels.

    Hu et al. 2018 (arXiv:1709.01507), eq. 2 to 4, with C / `reduction` hidden units.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = named(
            reduce=nn.Conv2d(channels, inner, 1),
            act=nn.ReLU(),
            expand=nn.Conv2d(inner, channels, 1),
            gate=nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features * self.excite(self.squeeze(features))


class Patches(nn.Module):
    """Linear embedding of image patches: (B, C, H, W) -> (B, tokens, width)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


class TokenMean(nn.Module):
    """Mean over tokens: (B, tokens, width) -> (B, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def patch_count(shape: tuple[int, int, int], patch: int, family: str) -> int:
    """Return the number of `patch` x `patch` patches in an image of (channels, height, width).

    Args:
        family: name of the model, for messages.

    Raises:
        ValueError: the patch size does not divide the image size.
    """
    _, height, width = shape
    if height % patch or width % patch:
        sides = [
            str(side)
            for side in range(1, min(height, width) + 1)
            if not (height % side or width % side)
        ]
        raise ValueError(
            f"{family} splits images into patches, and {patch}x{patch} patches do not divide "
            f"{height}x{width}; set patch to one of {', '.join(sides)}"
        )
    return (height // patch) * (width // patch)


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """Build a linear layer, GELU and a linear layer: (..., width) -> (..., width)."""
    return named(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))


def divisible(channels: float, by: int) -> int:
    """Round to the nearest multiple of `by` that is at least 90% of `channels`.

    As in the authors' MobileNets (Sandler et al. 2018, arXiv:1801.04381).
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def init_kaiming(network: nn.Module) -> None:
    """Initialize convolutions as He et al. 2015 (arXiv:1502.01852): normal, fan out.

    Other modules keep PyTorch's defaults (batch-norm: scale 1, shift 0).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_weights(network: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """Initialize convolutions and linear layers with `draw`, and their biases with 0.

    Other modules keep PyTorch's defaults (norms: scale 1, shift 0).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_normal(weight: Tensor) -> None:
    """Draw from a truncated normal distribution with standard deviation 0.02."""
    nn.init.trunc_normal_(weight, std=0.02)


def glorot_uniform(weight: Tensor) -> None:
    """Draw from the uniform distribution of Glorot & Bengio 2010, eq. 16; patches as linear."""
    nn.init.xavier_uniform_(weight.detach().flatten(1))


def lecun_normal(weight: Tensor) -> None:
    """Draw from a normal distribution of variance 1 / fan in, cut at two standard deviations.

    LeCun et al. 1998 (Efficient BackProp, section 4.6), as in JAX's libraries.
    """
    std = (weight[0].numel()) ** -0.5 / 0.87962566
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def small_classifier(inputs: int, classes: int) -> nn.Linear:
    """Build a linear layer with small weights: normal, standard deviation 0.01, biases 0."""
    linear = nn.Linear(inputs, classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear
