"""Memory format of networks.

Channels-last images and kernels take 0.72 to 0.94 of the time of convolutions and batch norms on a
CPU (resnet, wide_resnet, vgg of depth 8 to 20; one core), and 0.35 to 0.92 on a GPU, in float32 and
bfloat16 (resnet of depth 8 to 50, vgg, mobilenet_v2; an H200; benchmarks/layout.py).  Results are
equal up to rounding.  There is no difference where the CPU cannot launch kernels as fast as the GPU
computes them, as for a resnet of depth 8 with batches of 128.

Exception: for strided 1x1 convolutions of few channels, oneDNN writes past its workspace when it
computes the gradients of the weights on CPUs without AVX-512.  Gradients are then wrong, or the
process hangs or crashes (uxlfoundation/oneDNN#6035; seen with PyTorch 2.15).  On CPUs such layers
get contiguous inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raykd.data import channels_last_for

FEW_CHANNELS = 16
"""Channels of a oneDNN block (8 or 16); with less than one block its workspace is too small."""


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to `device`, in place, with kernels in the format of its images."""
    model.to(device)
    if channels_last_for(device):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and overruns(module):
                _make_contiguous(module)
    return model


def overruns(layer: nn.Conv2d) -> bool:
    """Return whether oneDNN computes wrong gradients for this layer with channels-last inputs."""
    pointwise = layer.kernel_size == (1, 1) and layer.groups == 1
    return pointwise and max(layer.stride) > 1 and layer.in_channels < FEW_CHANNELS


def can_compile(model: nn.Module, device: torch.device) -> bool:
    """Return whether torch.compile may choose the memory formats, as it does on a CPU."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return device.type != "cpu" or not any(map(overruns, convolutions))


def _make_contiguous(layer: nn.Conv2d) -> None:
    layer.weight.data = layer.weight.data.contiguous()
    if _contiguous_inputs not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_contiguous_inputs)


def _contiguous_inputs(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    # Always a copy: `contiguous` would leave images of one channel as they are.
    return (inputs[0].clone(memory_format=torch.contiguous_format),)
