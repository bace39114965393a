"""CPU memory formats do not change results."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data import Batch, to_memory_format
from raykd.training.memory_format import overruns, to_device

CPU = torch.device("cpu")


def gradients(layer: nn.Module, pictures: Tensor) -> list[Tensor]:
    layer.zero_grad()
    layer(pictures).square().mean().backward()
    return [each.grad.clone() for each in layer.parameters() if each.grad is not None]


def channels_last(pictures: Tensor) -> Tensor:
    rows = torch.arange(len(pictures))
    inputs = to_memory_format(Batch(pictures, rows, rows)).inputs
    assert isinstance(inputs, Tensor)
    return inputs


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (1, 3), (1, 1), (3, 2)])
def test_gradients_equal_those_of_default_layout(channels: int, kernel: int, stride: int) -> None:
    """oneDNN computes wrong gradients for strided 1x1 kernels, or crashes."""
    torch.manual_seed(0)
    usual = nn.Conv2d(channels, 8, kernel, stride, kernel // 2)
    laid = to_device(copy.deepcopy(usual), CPU)
    pictures = torch.randn(32, channels, 8, 8)
    for _ in range(5):
        expected, actual = gradients(usual, pictures), gradients(laid, channels_last(pictures))
        for left, right in zip(expected, actual, strict=True):
            torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-6)


def test_only_small_strided_pointwise_layers_are_excluded() -> None:
    assert overruns(nn.Conv2d(4, 8, 1, 2))
    assert not overruns(nn.Conv2d(4, 8, 1, 1))
    assert not overruns(nn.Conv2d(4, 8, 3, 2))
    assert not overruns(nn.Conv2d(64, 8, 1, 2))


def test_excluded_layer_can_be_converted_copied_and_pickled() -> None:
    layer = to_device(to_device(nn.Conv2d(4, 8, 1, 2), CPU), CPU)
    assert len(layer._forward_pre_hooks) == 1
    pictures = torch.randn(2, 4, 8, 8)
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(duplicate(pictures), layer(pictures))


def test_other_layers_are_channels_last() -> None:
    network = to_device(nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)), CPU)
    output = network(channels_last(torch.randn(2, 4, 8, 8)))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(F.relu(output)).all()
