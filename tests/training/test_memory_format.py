"""Networks laid out for a CPU compute what they computed before."""

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


def shown(pictures: Tensor) -> Tensor:
    rows = torch.arange(len(pictures))
    inputs = to_memory_format(Batch(pictures, rows, rows)).inputs
    assert isinstance(inputs, Tensor)
    return inputs


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (1, 3), (1, 1), (3, 2)])
def test_gradients_are_those_of_the_usual_layout(channels: int, kernel: int, stride: int) -> None:
    """With oneDNN's mistake a 1x1 kernel with a stride got wrong ones, or the process died."""
    torch.manual_seed(0)
    usual = nn.Conv2d(channels, 8, kernel, stride, kernel // 2)
    laid = to_device(copy.deepcopy(usual), CPU)
    pictures = torch.randn(32, channels, 8, 8)
    for _ in range(5):
        expected, found = gradients(usual, pictures), gradients(laid, shown(pictures))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_only_small_strided_pointwise_layers_are_kept_apart() -> None:
    assert overruns(nn.Conv2d(4, 8, 1, 2))
    assert not overruns(nn.Conv2d(4, 8, 1, 1))
    assert not overruns(nn.Conv2d(4, 8, 3, 2))
    assert not overruns(nn.Conv2d(64, 8, 1, 2))


def test_a_layer_kept_apart_can_be_laid_out_again_copied_and_pickled() -> None:
    layer = to_device(to_device(nn.Conv2d(4, 8, 1, 2), CPU), CPU)
    assert len(layer._forward_pre_hooks) == 1
    pictures = torch.randn(2, 4, 8, 8)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(again(pictures), layer(pictures))


def test_the_rest_of_a_network_has_its_channels_innermost() -> None:
    network = to_device(nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)), CPU)
    given = network(shown(torch.randn(2, 4, 8, 8)))
    assert given.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(F.relu(given)).all()
