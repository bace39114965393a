"""Stems of convolutional networks fitted to the pictures at hand."""

from __future__ import annotations

from torch import nn

from raykd.models.weights.transfer import first_convolution
from raykd.models.zoo.blocks import initialise


def fit_stem(network: nn.Module, channels: int, *, small: bool, model: str) -> None:
    """Exchange the first convolution, in place, for one that takes these pictures.

    Args:
        network: its first convolution is its stem.
        channels: of the pictures.
        small: one of 3x3 without stride, and no pooling between it and the next convolution, as
            in He et al. 2016 (arXiv:1512.03385), section 4.2, for pictures of 32x32.
        model: the network's name, for messages.

    Raises:
        ValueError: it has no such stem.
    """
    name = first_convolution(network)
    if name is None:
        raise ValueError(f"{model} has no convolution whose channels could be fitted to pictures")
    stem = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    if small:
        if stem.stride == stem.kernel_size and stem.kernel_size != (1, 1):
            raise ValueError(
                f"`stem: small` is for convolutional stems; {model} cuts pictures into patches of "
                f"{stem.kernel_size[0]}x{stem.kernel_size[1]}: make these smaller by `args`"
            )
        _without_pooling(network, name)
    if small or stem.in_channels != channels:
        fitted = _fitted(stem, channels, small)
        initialise(fitted)
        network.set_submodule(name, fitted)


def _fitted(stem: nn.Conv2d, channels: int, small: bool) -> nn.Conv2d:
    has_bias = stem.bias is not None
    if small:
        return nn.Conv2d(channels, stem.out_channels, 3, stride=1, padding=1, bias=has_bias)
    return nn.Conv2d(
        channels,
        stem.out_channels,
        (stem.kernel_size[0], stem.kernel_size[1]),
        stride=(stem.stride[0], stem.stride[1]),
        padding=stem.padding,  # type: ignore[arg-type]
        dilation=(stem.dilation[0], stem.dilation[1]),
        bias=has_bias,
    )


def _without_pooling(network: nn.Module, stem: str) -> None:
    """Leave out the pooling between the stem and the convolution after it."""
    seen = False
    for name, module in list(network.named_modules()):
        if name == stem:
            seen = True
        elif seen and isinstance(module, nn.Conv2d):
            return
        elif seen and isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            network.set_submodule(name, nn.Identity())
