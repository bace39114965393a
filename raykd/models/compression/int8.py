"""Int8 convolutions and linear layers: simulated in training, then converted.

PyTorch deprecates quantized tensors and their modules (`torch.ao.nn.quantized`; pytorch/pytorch
issue 184982, with 2.13).  Plain int8 tensors remain, and the oneDNN kernels to which its compiler
lowers quantized networks.  This module calls those kernels directly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.compat.quantized_ops import quantized_decomposed

Network = TypeVar("Network", bound=nn.Module)

WEIGHT_MAX = 127
"""Weights are integers from -127 to 127, times a scale per output channel."""

INPUT_MAX = 127
"""Inputs are integers from 0 to 127: on a CPU without VNNI instructions the sum of two products
must fit into 16 bits (PyTorch's defaults for x86 are the same)."""

MOMENTUM = 0.1
"""Weight of a batch in the moving average of an input range."""

TINY = 1e-8
"""Smallest scale."""


class InputRange(nn.Module):
    """Round a tensor to 8 bits within its range; the shape does not change.

    In training the range is a moving average of the minimum and maximum of each batch; in eval
    mode it is constant.  Nothing is rounded before the first batch.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", -torch.ones(()))  # below `low`: no batch yet

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.float()
        if self.training:
            self._update(inputs.detach())
        scale, zero = self.grid()
        rounded = torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, INPUT_MAX)
        return torch.where(self.high < self.low, inputs, rounded)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Return the scale (step between integers) and the zero point (int32)."""
        scale = ((self.high - self.low) / INPUT_MAX).clamp_min(TINY)
        return scale, (-self.low / scale).round().clamp(0, INPUT_MAX).int()

    @torch.no_grad()
    def _update(self, inputs: Tensor) -> None:
        low, high = inputs.amin().clamp_max(0), inputs.amax().clamp_min(0)
        first = self.high < self.low
        self.low.copy_(torch.where(first, low, self.low.lerp(low, MOMENTUM)))
        self.high.copy_(torch.where(first, high, self.high.lerp(high, MOMENTUM)))


class SimulatedConv2d(nn.Conv2d):
    """A convolution with inputs and weights rounded to 8 bits; gradients pass through.

    Jacob 2018 (arXiv:1712.05877), section 3, with a scale per output channel.
    """

    inputs: InputRange

    def forward(self, input: Tensor) -> Tensor:
        # `_conv_forward` is private in torch 2.15; subclasses of Conv2d in torch.ao use it too.
        return self._conv_forward(self.inputs(input), round_weight(self.weight), self.bias)


class SimulatedLinear(nn.Linear):
    """A linear layer with inputs and weights rounded to 8 bits, like `SimulatedConv2d`."""

    inputs: InputRange

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.inputs(input), round_weight(self.weight), self.bias)


def simulate(layer: nn.Module) -> nn.Module:
    """Return the layer, with its weights, for training in simulated 8 bits.

    Args:
        layer: a convolution or linear layer with an int8 form (`has_int8_form`).
    """
    cls = SimulatedConv2d if isinstance(layer, nn.Conv2d) else SimulatedLinear
    simulated = cls.__new__(cls)
    simulated.__dict__.update({**layer.__dict__, "_modules": {}})
    simulated.inputs = InputRange()
    return simulated


def has_int8_form(layer: nn.Module) -> bool:
    """Return whether this layer can be simulated and converted."""
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def convert(network: nn.Module) -> nn.Module:
    """Replace the simulated layers of a network, in place, by layers that compute in 8 bits.

    Raises:
        ValueError: a layer has not seen a batch in training.
    """
    for path, layer in list(network.named_modules()):
        if isinstance(layer, SimulatedConv2d | SimulatedLinear):
            if bool(layer.inputs.high < layer.inputs.low):
                raise ValueError(
                    f"layer {path!r} has seen no inputs in training, so their range is unknown; "
                    "train the network before converting it"
                )
            int8 = Int8Conv2d(layer) if isinstance(layer, nn.Conv2d) else Int8Linear(layer)
            network.set_submodule(path, int8)
    return network


def weight_scales(weight: Tensor) -> Tensor:
    """Return the scale per output channel: (outputs, ...) -> (outputs,)."""
    return (weight.detach().flatten(1).abs().amax(1) / WEIGHT_MAX).clamp_min(TINY)


def round_weight(weight: Tensor) -> Tensor:
    """Round a weight to 8 bits; the gradient passes through unchanged."""
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_MAX, WEIGHT_MAX)


class _Packed(NamedTuple):
    """Arguments of the int8 kernels that do not change between forwards.

    Attributes:
        weight: in the memory format of the kernel.
        scale, zero: of the inputs.
        weight_zeros: (outputs,) zero points of the weight, all 0.
    """

    weight: Tensor
    scale: float
    zero: int
    weight_zeros: Tensor

    def arguments(self, inputs: Tensor, scales: Tensor, bias: Tensor | None) -> tuple[object, ...]:
        """Return the first arguments of a kernel, in its order."""
        return (inputs, self.scale, self.zero, self.weight, scales, self.weight_zeros, bias)


class Int8Layer(nn.Module):
    """Base of the int8 convolution and linear layer; for inference.

    Float32 inputs are rounded to integers and multiplied with int8 weights by a oneDNN kernel;
    outputs are float32.  Where that kernel is not available (other devices), the same integers are
    multiplied in float32.

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
        integers = (layer.weight.detach() / _per_output(scales, layer.weight)).round()
        self.register_buffer("weight", integers.clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8))
        self.register_buffer("scales", scales)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self._packed: _Packed | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        integers = (inputs.float() / self.scale).round() + self.zero
        integers = integers.clamp_(0, INPUT_MAX)
        if not _has_kernels(integers.device):
            weight = self.weight.float() * _per_output(self.scales, self.weight)
            return self._in_float((integers - self.zero) * self.scale, weight)
        if self._packed is None:
            scale, zero = self.scale.item(), int(self.zero)
            zeros = torch.zeros_like(self.scales, dtype=torch.int32)
            self._packed = _Packed(self._pack(scale, zero), scale, zero, zeros)
        return self._in_int8(integers.to(torch.uint8), self._packed)

    def _pack(self, scale: float, zero: int) -> Tensor:
        """Return the weight in the memory format of the kernel."""
        raise NotImplementedError

    def _in_int8(self, inputs: Tensor, packed: _Packed) -> Tensor:
        raise NotImplementedError

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._packed = None  # the weight moves to another device or type
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **more: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **more)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}  # packed again after loading


class Int8Conv2d(Int8Layer):
    """A convolution in 8 bits: (B, C, H, W) float32 -> (B, C', H', W') float32."""

    def __init__(self, layer: SimulatedConv2d) -> None:
        super().__init__(layer)
        assert not isinstance(layer.padding, str), "such a layer is not simulated"
        self.stride = tuple(layer.stride)
        self.padding = tuple(layer.padding)
        self.dilation = tuple(layer.dilation)
        self.groups = layer.groups

    def _pack(self, scale: float, zero: int) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return torch.ops.onednn.qconv_prepack(
            self.weight.contiguous(), self.scales, scale, zero, *geometry, None
        )

    def _in_int8(self, inputs: Tensor, packed: _Packed) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        arguments = packed.arguments(inputs, self.scales, self.bias)
        return torch.ops.onednn.qconv_pointwise(
            *arguments, *geometry, 1.0, 0, torch.float32, "none", [], ""
        )

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        stride, padding, dilation = self.stride, self.padding, self.dilation
        return torch.conv2d(inputs, weight, self.bias, stride, padding, dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}"


class Int8Linear(Int8Layer):
    """A linear layer in 8 bits: (..., n) float32 -> (..., m) float32."""

    def _pack(self, scale: float, zero: int) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight.contiguous(), None)

    def _in_int8(self, inputs: Tensor, packed: _Packed) -> Tensor:
        arguments = packed.arguments(inputs, self.scales, self.bias)
        return torch.ops.onednn.qlinear_pointwise(*arguments, 1.0, 0, torch.float32, "none", [], "")

    def _in_float(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return F.linear(inputs, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}"


class QuantizeDequantize(nn.Module):
    """An int8 layer in the form that ONNX runtimes recognize: int8 weights, rounded inputs.

    Inputs are quantized and dequantized, weights are stored in int8 and dequantized, products are
    float32 (QDQ format).  Runtimes with int8 kernels fuse these operators.  The integers are those
    of the layer.

    Args:
        layer: the int8 layer.
    """

    def __init__(self, layer: Int8Layer) -> None:
        super().__init__()
        self.layer = layer
        self.ops = quantized_decomposed()
        self.scale, self.zero = float(layer.scale), int(layer.zero)
        self.register_buffer("zeros", torch.zeros_like(layer.scales, dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        layer, grid = self.layer, (self.scale, self.zero, 0, INPUT_MAX, torch.uint8)
        # An ONNX quantizer saturates at 255, the layer at INPUT_MAX.
        low, high = -self.zero * self.scale, (INPUT_MAX - self.zero) * self.scale
        integers = self.ops.quantize_per_tensor(inputs.float().clamp(low, high), *grid)
        weight = self.ops.dequantize_per_channel(
            layer.weight, layer.scales, self.zeros, 0, -WEIGHT_MAX, WEIGHT_MAX, torch.int8
        )
        return layer._in_float(self.ops.dequantize_per_tensor(integers, *grid), weight)


def quantize_dequantize(network: Network) -> Network:
    """Return a copy of a network whose int8 layers are in the form for ONNX runtimes."""
    network = copy.deepcopy(network)
    for path, layer in list(network.named_modules()):
        if isinstance(layer, Int8Layer):
            network.set_submodule(path, QuantizeDequantize(layer))
    return network


def _has_kernels(device: torch.device) -> bool:
    """Return whether int8 kernels run here; a traced network must not depend on them."""
    if torch.compiler.is_compiling():  # pyright: ignore[reportPrivateImportUsage]
        return False
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def _per_output(scales: Tensor, weight: Tensor) -> Tensor:
    """Reshape (outputs,) to (outputs, 1, ...), to be multiplied with the weight."""
    return scales.view(-1, *[1] * (weight.dim() - 1))
