"""Convolutions and linear layers in 8 bits: simulated while they are trained, then for real.

PyTorch's quantized tensors and the modules on them (`torch.ao.nn.quantized`) are on their way out
(pytorch/pytorch#184982, with 2.13); what stays are plain int8 tensors and the kernels of oneDNN,
to which its compiler lowers quantized networks.  Those are called here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = 127
"""Weights are whole numbers from -127 to 127, times a scale for each output channel."""

INPUTS = 127
"""Inputs are whole numbers from 0 to 127: on a CPU without VNNI instructions the sum of two
products must fit into 16 bits (PyTorch's own settings for x86 have the same)."""

MOMENTUM = 0.1
"""How far one batch moves an input's range."""

TINY = 1e-8


class Range(nn.Module):
    """The range of a tensor, and the rounding to 8 bits within it; shapes stay.

    In training the range follows the batches' least and largest values, by a moving average; in
    eval mode it stays.  Until it has seen a batch nothing is rounded.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", -torch.ones(()))  # below `low`: it has seen nothing

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.float()
        if self.training:
            self._see(inputs.detach())
        scale, zero = self.grid()
        rounded = torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, INPUTS)
        return torch.where(self.high < self.low, inputs, rounded)

    def grid(self) -> tuple[Tensor, Tensor]:
        """The step from one whole number to the next, and which of them is zero (int32)."""
        scale = ((self.high - self.low) / INPUTS).clamp_min(TINY)
        return scale, (-self.low / scale).round().clamp(0, INPUTS).int()

    @torch.no_grad()
    def _see(self, inputs: Tensor) -> None:
        low, high = inputs.amin().clamp_max(0), inputs.amax().clamp_min(0)
        first = self.high < self.low
        self.low.copy_(torch.where(first, low, self.low.lerp(low, MOMENTUM)))
        self.high.copy_(torch.where(first, high, self.high.lerp(high, MOMENTUM)))


class SimulatedConv2d(nn.Conv2d):
    """A convolution whose inputs and weights are rounded to 8 bits; gradients pass the rounding.

    Jacob 2018 (arXiv:1712.05877), section 3, with a scale for each output channel.
    """

    inputs: Range

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.inputs(input), rounded(self.weight), self.bias)


class SimulatedLinear(nn.Linear):
    """A linear layer whose inputs and weights are rounded to 8 bits, as `SimulatedConv2d`'s."""

    inputs: Range

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.inputs(input), rounded(self.weight), self.bias)


def simulated(layer: nn.Module) -> nn.Module:
    """The layer with its weights, to be trained in simulated 8 bits.

    Args:
        layer: a convolution or linear layer that can be (`can_be_int8`).
    """
    new = SimulatedConv2d if isinstance(layer, nn.Conv2d) else SimulatedLinear
    made = new.__new__(new)
    made.__dict__.update({**layer.__dict__, "_modules": {}})
    made.inputs = Range()
    return made


def can_be_int8(layer: nn.Module) -> bool:
    """Whether there is an 8 bit form of this layer."""
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def converted(network: nn.Module) -> nn.Module:
    """The network with the simulated layers exchanged for those that compute in 8 bits; in place.

    Raises:
        ValueError: one has seen no batch yet.
    """
    for path, layer in list(network.named_modules()):
        if isinstance(layer, SimulatedConv2d | SimulatedLinear):
            if bool(layer.inputs.high < layer.inputs.low):
                raise ValueError(
                    f"layer {path!r} has seen no inputs in training, and their range is not known; "
                    "train the network before it is converted"
                )
            made = Int8Conv2d(layer) if isinstance(layer, nn.Conv2d) else Int8Linear(layer)
            network.set_submodule(path, made)
    return network


def weight_scales(weight: Tensor) -> Tensor:
    """(outputs, ...) -> (outputs,): the step between whole numbers."""
    return (weight.detach().flatten(1).abs().amax(1) / WEIGHTS).clamp_min(TINY)


def rounded(weight: Tensor) -> Tensor:
    """The weight as 8 bits would hold it; the gradient of what comes back is its own."""
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHTS, WEIGHTS)


class Int8Layer(nn.Module):
    """What convolutions and linear layers in 8 bits share; for inference.

    Inputs are float32, are rounded to whole numbers, multiplied with int8 weights by a kernel of
    oneDNN, and come out as float32.  Where that kernel is not to be had (other devices) the same
    whole numbers are multiplied in float32.

    Args:
        layer: trained, with the range of its inputs.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    scale: Tensor
    zero: Tensor

    def __init__(self, layer: SimulatedConv2d | SimulatedLinear) -> None:
        super().__init__()
        scale, zero = layer.inputs.grid()
        scales = weight_scales(layer.weight)
        whole = (layer.weight.detach() / _each(scales, layer.weight)).round()
        self.register_buffer("weight", whole.clamp(-WEIGHTS, WEIGHTS).to(torch.int8))
        self.register_buffer("scales", scales)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self._ready: tuple[Tensor, float, int, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        whole = (inputs.float() / self.scale).round() + self.zero
        whole = whole.clamp_(0, INPUTS)
        if whole.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            weight = self.weight.float() * _each(self.scales, self.weight)
            return self._in_float((whole - self.zero) * self.scale, weight)
        if self._ready is None:
            scale, zero = self.scale.item(), int(self.zero)
            none = torch.zeros_like(self.scales, dtype=torch.int32)
            self._ready = (self._packed(scale, zero), scale, zero, none)
        return self._in_int8(whole.to(torch.uint8), *self._ready)

    def _packed(self, scale: float, zero: int) -> Tensor:
        """The weight as the kernel wants it."""
        raise NotImplementedError

    def _in_int8(
        self, inputs: Tensor, packed: Tensor, scale: float, zero: int, none: Tensor
    ) -> Tensor:
        raise NotImplementedError

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._ready = None  # the weight goes elsewhere
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **more: Any) -> None:
        self._ready = None
        super()._load_from_state_dict(*args, **more)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ready": None}  # made anew where it is loaded


class Int8Conv2d(Int8Layer):
    """A convolution in 8 bits: (B, C, H, W) float32 -> (B, C', H', W') float32."""

    def __init__(self, layer: SimulatedConv2d) -> None:
        super().__init__(layer)
        assert not isinstance(layer.padding, str), "such a layer is not simulated"
        self.stride = tuple(layer.stride)
        self.padding = tuple(layer.padding)
        self.dilation = tuple(layer.dilation)
        self.groups = layer.groups

    def _packed(self, scale: float, zero: int) -> Tensor:
        places = (self.stride, self.padding, self.dilation, self.groups)
        return torch.ops.onednn.qconv_prepack(
            self.weight.contiguous(), self.scales, scale, zero, *places, None
        )

    def _in_int8(
        self, inputs: Tensor, packed: Tensor, scale: float, zero: int, none: Tensor
    ) -> Tensor:
        places = (self.stride, self.padding, self.dilation, self.groups)
        given = (inputs, scale, zero, packed, self.scales, none, self.bias)
        return torch.ops.onednn.qconv_pointwise(
            *given, *places, 1.0, 0, torch.float32, "none", [], ""
        )

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        stride, padding, dilation = self.stride, self.padding, self.dilation
        return torch.conv2d(inputs, weight, self.bias, stride, padding, dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}"


class Int8Linear(Int8Layer):
    """A linear layer in 8 bits: (..., n) float32 -> (..., m) float32."""

    def _packed(self, scale: float, zero: int) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight.contiguous(), None)

    def _in_int8(
        self, inputs: Tensor, packed: Tensor, scale: float, zero: int, none: Tensor
    ) -> Tensor:
        given = (inputs, scale, zero, packed, self.scales, none, self.bias)
        return torch.ops.onednn.qlinear_pointwise(*given, 1.0, 0, torch.float32, "none", [], "")

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return F.linear(inputs, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"


def _each(scales: Tensor, weight: Tensor) -> Tensor:
    """(outputs,) as (outputs, 1, ...), to be multiplied with the weight."""
    return scales.view(-1, *[1] * (weight.dim() - 1))
