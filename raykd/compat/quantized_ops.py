"""Private quantization operators of PyTorch (2.15).

`torch.export` and the ONNX exporter represent int8 networks by the operators of the library
`quantized_decomposed`.  PyTorch registers them in a private module; torchao, its successor,
registers the same names.
"""

from __future__ import annotations

from typing import Any

import torch


def quantized_decomposed() -> Any:
    """Return the library of quantize and dequantize operators, registered with PyTorch.

    The ONNX exporter turns them into QuantizeLinear and DequantizeLinear.
    """
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    return torch.ops.quantized_decomposed
