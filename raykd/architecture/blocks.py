"""Pieces that several families are built from."""

from __future__ import annotations

from torch import nn


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the picture's size at stride 1 and halves it at stride 2."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)


def initialise(network: nn.Module) -> None:
    """Convolutions from the normal distribution of He et al. 2015 (arXiv:1502.01852), fan out.

    Other modules keep PyTorch's defaults (batch-norm: scale 1, shift 0).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
