"""Adapt the stem of a convolutional network to the images of the data."""

from __future__ import annotations

from torch import nn

from raykd.models.weights.load import first_convolution
from raykd.models.zoo.blocks import init_kaiming


def fit_stem(network: nn.Module, channels: int, *, small: bool, model: str) -> None:
    """Replace the first convolution, in place, by one for images of the data.

    Args:
        network: network whose first convolution is its stem.
        channels: channels of the images.
        small: use a 3x3 convolution with stride 1, and no pooling before the next convolution, as
            in He et al. 2016 (arXiv:1512.03385), section 4.2, for images of 32x32.
        model: name of the model, for messages.

    Raises:
        ValueError: the network has no such stem.
    """
    name = first_convolution(network)
    if name is None:
        raise ValueError(f"{model} has no convolution to adapt to the channels of the images")
    stem = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    if small:
        if stem.stride == stem.kernel_size and stem.kernel_size != (1, 1):
            raise ValueError(
                f"`stem: small` is for convolutional stems; {model} splits images into patches of "
                f"{stem.kernel_size[0]}x{stem.kernel_size[1]}; set a smaller patch size in `args`"
            )
        _remove_pooling(network, name)
    if small or stem.in_channels != channels:
        conv = _adapted_stem(stem, channels, small)
        init_kaiming(conv)
        network.set_submodule(name, conv)


def _adapted_stem(stem: nn.Conv2d, channels: int, small: bool) -> nn.Conv2d:
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


def _remove_pooling(network: nn.Module, stem: str) -> None:
    """Remove the pooling between the stem and the next convolution."""
    is_after_stem = False
    for name, module in list(network.named_modules()):
        if name == stem:
            is_after_stem = True
        elif is_after_stem and isinstance(module, nn.Conv2d):
            return
        elif is_after_stem and isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            network.set_submodule(name, nn.Identity())
