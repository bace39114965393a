"""Tests of the private quantization operators of PyTorch."""

import torch

from raykd.compat.quantized_ops import quantized_decomposed


def test_quantize_and_dequantize_round_to_grid() -> None:
    ops = quantized_decomposed()
    values = torch.tensor([-1.0, 0.0, 0.24, 0.26, 9.0])
    integers = ops.quantize_per_tensor(values, 0.5, 2, 0, 127, torch.uint8)
    assert integers.tolist() == [0, 2, 2, 3, 20]
    floats = ops.dequantize_per_tensor(integers, 0.5, 2, 0, 127, torch.uint8)
    assert floats.tolist() == [-1.0, 0.0, 0.0, 0.5, 9.0]


def test_dequantize_per_channel_has_scale_for_each_channel() -> None:
    ops = quantized_decomposed()
    integers = torch.tensor([[1, 2], [3, -4]], dtype=torch.int8)
    zeros = torch.zeros(2, dtype=torch.int64)
    scales = torch.tensor([0.5, 2.0])
    floats = ops.dequantize_per_channel(integers, scales, zeros, 0, -127, 127, torch.int8)
    assert floats.tolist() == [[0.5, 1.0], [6.0, -8.0]]
