"""8-bit networks: simulated quantization equals the converted network."""

from __future__ import annotations

import copy
import io
from itertools import product
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.model_cases import DIGITS
from raykd.models import Cnn, Mixer, Model, Resnet
from raykd.models.compression import Quantized
from raykd.models.compression.int8 import (
    INPUT_MAX,
    InputRange,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    convert,
    round_weight,
    simulate,
)
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import Depthwise

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(3, 8, 3, padding=1), (4, 3, 9, 9)),
    (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), (2, 8, 9, 7)),
    (nn.Conv2d(8, 6, (1, 3), padding=(0, 2), dilation=2, groups=2), (2, 8, 8, 8)),
    (nn.Conv2d(5, 7, 1, bias=False), (3, 5, 4, 4)),
    (nn.Linear(10, 6), (4, 10)),
    (nn.Linear(10, 6, bias=False), (2, 7, 10)),
]


def _simulated(layer: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Return the layer with simulated quantization, calibrated on the returned inputs."""
    torch.manual_seed(0)
    simulated, inputs = simulate(copy.deepcopy(layer)), torch.randn(shape) + 0.3
    simulated(inputs)
    return simulated.eval(), inputs


def _converted(layer: nn.Module) -> Int8Layer:
    whole = next(convert(nn.Sequential(layer)).children())
    assert isinstance(whole, Int8Conv2d | Int8Linear)
    return whole


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernel", "float"])
def test_converted_layer_equals_simulated_layer(
    layer: nn.Module, shape: tuple[int, ...], kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: kernels)
    simulated, inputs = _simulated(layer, shape)
    whole = _converted(copy.deepcopy(simulated))
    assert whole.weight.dtype == torch.int8
    with torch.no_grad():
        expected, actual = simulated(inputs), whole(inputs)
        wide = simulated(5 * inputs), whole(5 * inputs)  # beyond the range, which cuts them off
        other = whole(inputs[:1])
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide[1], wide[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, actual[:1], rtol=1e-5, atol=1e-5)
    assert (actual - layer(inputs)).abs().max() < 0.15 * layer(inputs).std()  # a few steps of 127


@pytest.mark.parametrize(("layer", "shape"), LAYERS[:5:4], ids=["conv", "linear"])
def test_products_are_exact_integer_products(layer: Any, shape: tuple[int, ...]) -> None:
    """Compared with 64-bit integers: no overflow, no intermediate rounding."""
    simulated, inputs = _simulated(layer, shape)
    whole = _converted(simulated)
    numbers = ((inputs / whole.scale).round() + whole.zero).clamp(0, INPUT_MAX).long() - whole.zero
    if isinstance(whole, Int8Linear):
        sums = numbers @ whole.weight.long().T
        scales = whole.scales
    else:
        sums = F.conv2d(numbers.double(), whole.weight.double(), padding=1)
        scales = whole.scales[:, None, None]
    assert whole.bias is not None
    bias = whole.bias if isinstance(whole, Int8Linear) else whole.bias[:, None, None]
    torch.testing.assert_close(
        whole(inputs), (sums * whole.scale * scales + bias).float(), rtol=1e-5, atol=1e-5
    )


def test_weights_have_scale_per_output_and_gradient_passes() -> None:
    weight = torch.tensor([[1.27, -0.5, 0.004], [0.0127, 0.001, -0.002]], requires_grad=True)
    rounded = round_weight(weight)
    assert torch.allclose(rounded, torch.tensor([[1.27, -0.5, 0.0], [0.0127, 0.001, -0.002]]))
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))


def test_range_is_updated_only_in_training() -> None:
    input_range = InputRange().eval()
    inputs = torch.tensor([-1.0, 0.1, 3.0])
    assert torch.equal(input_range(inputs), inputs), "it has seen nothing"
    input_range.train()(inputs)
    assert (input_range.low.item(), input_range.high.item()) == (-1.0, 3.0)
    input_range(torch.tensor([-2.0, 4.0]))
    assert input_range.low.item() == pytest.approx(
        -1.1
    ) and input_range.high.item() == pytest.approx(3.1)
    input_range.eval()(torch.tensor([-50.0, 50.0]))
    assert input_range.high.item() == pytest.approx(3.1)
    assert torch.equal(input_range(torch.zeros(1)), torch.zeros(1)), "zero is a whole number"
    dead = InputRange()
    assert not dead(torch.zeros(3)).any() and dead.high == 0
    assert dead.eval()(torch.ones(3)).abs().max() < 1e-4


def test_converting_uncalibrated_layer_raises() -> None:
    with pytest.raises(ValueError, match="layer '0' has seen no inputs in training"):
        convert(nn.Sequential(simulate(nn.Linear(2, 2))))


def _trained(model: Model) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network trained on digits, and held-out digits."""
    torch.manual_seed(0)
    flat, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(flat / 16 - 0.5, dtype=torch.float32).view(-1, 1, 8, 8)
    targets, network = torch.tensor(labels), model.build(DIGITS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(80):
        rows = torch.randint(1400, (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(pictures[rows]), targets[rows]).backward()
        optimizer.step()
    return network.eval(), pictures[1400:], targets[1400:]


SOURCES = (
    Resnet(depth=8, width=8),
    Cnn(stages=(CnnStage(width=8), CnnStage(width=16, block=Depthwise(), squeeze_excite=True))),
    Mixer(depth=2, width=32),
)


@pytest.mark.parametrize(
    ("source", "ends"), [*product(SOURCES[:1], ["int8", "float"]), *product(SOURCES[1:], ["int8"])]
)
def test_converted_digits(source: Model, ends: Any) -> None:
    model = Quantized(base=source, ends=ends)
    network, pictures, targets = _trained(model)
    before = copy.deepcopy(network.state_dict())
    deployed = model.deployed(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        simulated_logits, logits = network(pictures), deployed(pictures)
    guesses, simulated_guesses = logits.argmax(1), simulated_logits.argmax(1)
    assert (guesses == targets).float().mean() > 0.7
    assert (guesses == simulated_guesses).float().mean() > 0.98
    assert (logits - simulated_logits).abs().mean() < 0.05 * simulated_logits.std()
    int8 = [module for module in deployed.modules() if isinstance(module, Int8Layer)]
    assert len(int8) > 3 and all(module.weight.dtype == torch.int8 for module in int8)
    plain = [module for module in deployed.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    assert len(plain) == (0 if ends == "int8" else 2)
    size, whole = (
        sum(tensor.nbytes for tensor in module.state_dict().values())
        for module in (deployed, network)
    )
    assert size < 0.6 * whole


def test_deployed_network_can_be_saved_copied_and_loaded() -> None:
    model = Quantized(base=Resnet(depth=8, width=4))
    network = model.build(DIGITS).train()
    network(torch.rand(8, 1, 8, 8))
    deployed, inputs = model.deployed(network), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        expected = deployed(inputs)  # its weights are laid out for the kernels now
        buffer = io.BytesIO()
        torch.save(deployed, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        assert torch.equal(loaded(inputs), expected)
        assert torch.equal(copy.deepcopy(deployed)(inputs), expected)
        other = model.build(DIGITS).train()
        other(torch.rand(8, 1, 8, 8))
        filled = model.deployed(other)
        assert not torch.equal(filled(inputs), expected)
        filled.load_state_dict(deployed.state_dict())
        assert torch.equal(filled(inputs), expected)


def test_state_of_simulated_network_contains_ranges() -> None:
    model = Quantized(base=Resnet(depth=8, width=4))
    network, inputs = model.build(DIGITS).train(), torch.rand(8, 1, 8, 8)
    network(inputs)
    copy_ = model.build(DIGITS)
    copy_.load_state_dict(network.state_dict())
    assert torch.equal(copy_.eval()(inputs), network.eval()(inputs))
    assert any(name.endswith("inputs.high") for name in network.state_dict())
