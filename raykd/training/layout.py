"""How pictures and kernels lie in memory.

With the channels innermost a CPU's convolutions and batch norms take 0.72 to 0.94 of the time
(resnet, wide_resnet, vgg of depth 8 to 20; one core), and compute the same up to rounding.  So do
a GPU's, in 0.35 to 0.92 of the time, in float32 and in bfloat16 (resnet of depth 8 to 50, vgg,
mobilenet_v2; an H200; benchmarks/layout.py); where the processor cannot launch kernels as fast as
the GPU computes them, as for a resnet of depth 8 at a batch of 128, it makes no difference.

One kind of convolution does not: for 1x1 kernels with a stride on few channels, oneDNN writes past
its workspace when it computes the weights' gradients on CPUs without AVX-512, and gives wrong
gradients, hangs or crashes (uxlfoundation/oneDNN#6035; seen with torch 2.15).  On CPUs such layers
get their inputs as torch lays them by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raykd.data import Batch, Inputs

FEW_CHANNELS = 16
"""oneDNN's blocks are of 8 or 16 channels; with less than one block its workspace is too small."""


def lay_out(model: nn.Module, device: torch.device) -> nn.Module:
    """Put a network on `device`, in place, its kernels as `laid_out` lays the pictures."""
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
    """Whether oneDNN's gradients of this layer cannot be trusted with the channels innermost."""
    pointwise = layer.kernel_size == (1, 1) and layer.groups == 1
    return pointwise and max(layer.stride) > 1 and layer.in_channels < FEW_CHANNELS


def can_compile(model: nn.Module, device: torch.device) -> bool:
    """Whether torch.compile may lay the network out, which on a CPU it does as it likes."""
    convolutions = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    return device.type != "cpu" or not any(map(overruns, convolutions))


def _make_contiguous(layer: nn.Conv2d) -> None:
    layer.weight.data = layer.weight.data.contiguous()
    if _contiguous_inputs not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_contiguous_inputs)


def _contiguous_inputs(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    # A copy always: `contiguous` would leave pictures of one channel as they are.
    return (inputs[0].clone(memory_format=torch.contiguous_format),)


def laid_out(batch: Batch) -> Batch:
    """The batch with its pictures' channels innermost, where that is the faster way."""
    return batch.map(_laid_out)


def _laid_out(inputs: Inputs) -> Inputs:
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not channels_last_for(inputs.device):
        return inputs
    # `contiguous` would leave pictures of one channel alone, whose strides then say nothing.
    if inputs.shape[1] == 1 and inputs.is_contiguous():
        height, width = inputs.shape[2:]
        return inputs.as_strided(inputs.shape, (height * width, 1, width, 1))
    return torch.empty_like(inputs, memory_format=torch.channels_last).copy_(inputs)


def channels_last_for(device: torch.device) -> bool:
    """Whether pictures, kernels and kept maps lie with their channels innermost on `device`."""
    return device.type in ("cpu", "cuda")  # on others not measured
