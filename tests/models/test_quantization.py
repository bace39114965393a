"""Networks in 8 bits: what is simulated is what is computed in the end."""

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


def _seen(layer: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The layer, simulated and trained on inputs that are returned."""
    torch.manual_seed(0)
    made, inputs = simulate(copy.deepcopy(layer)), torch.randn(shape) + 0.3
    made(inputs)
    return made.eval(), inputs


def _converted(layer: nn.Module) -> Int8Layer:
    whole = next(convert(nn.Sequential(layer)).children())
    assert isinstance(whole, Int8Conv2d | Int8Linear)
    return whole


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernel", "float"])
def test_a_converted_layer_is_the_simulated_one(
    layer: nn.Module, shape: tuple[int, ...], kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: kernels)
    made, inputs = _seen(layer, shape)
    whole = _converted(copy.deepcopy(made))
    assert whole.weight.dtype == torch.int8
    with torch.no_grad():
        expected, found = made(inputs), whole(inputs)
        wide = made(5 * inputs), whole(5 * inputs)  # beyond the range, which cuts them off
        other = whole(inputs[:1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide[1], wide[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, found[:1], rtol=1e-5, atol=1e-5)
    assert (found - layer(inputs)).abs().max() < 0.15 * layer(inputs).std()  # a few steps of 127


@pytest.mark.parametrize(("layer", "shape"), LAYERS[:5:4], ids=["conv", "linear"])
def test_products_are_those_of_whole_numbers(layer: Any, shape: tuple[int, ...]) -> None:
    """Against 64 bit integers: nothing overflows, nothing is rounded on the way."""
    made, inputs = _seen(layer, shape)
    whole = _converted(made)
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


def test_weights_have_a_scale_for_each_output_and_their_gradient_passes() -> None:
    weight = torch.tensor([[1.27, -0.5, 0.004], [0.0127, 0.001, -0.002]], requires_grad=True)
    held = round_weight(weight)
    assert torch.allclose(held, torch.tensor([[1.27, -0.5, 0.0], [0.0127, 0.001, -0.002]]))
    (held * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))


def test_a_range_follows_training_alone() -> None:
    one = InputRange().eval()
    inputs = torch.tensor([-1.0, 0.1, 3.0])
    assert torch.equal(one(inputs), inputs), "it has seen nothing"
    one.train()(inputs)
    assert (one.low.item(), one.high.item()) == (-1.0, 3.0)
    one(torch.tensor([-2.0, 4.0]))
    assert one.low.item() == pytest.approx(-1.1) and one.high.item() == pytest.approx(3.1)
    one.eval()(torch.tensor([-50.0, 50.0]))
    assert one.high.item() == pytest.approx(3.1)
    assert torch.equal(one(torch.zeros(1)), torch.zeros(1)), "zero is a whole number"
    dead = InputRange()
    assert not dead(torch.zeros(3)).any() and dead.high == 0
    assert dead.eval()(torch.ones(3)).abs().max() < 1e-4


def test_nothing_is_converted_that_has_seen_nothing() -> None:
    with pytest.raises(ValueError, match="layer '0' has seen no inputs in training"):
        convert(nn.Sequential(simulate(nn.Linear(2, 2))))


def _trained(model: Model) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that has learnt the digits, and those that it has not seen."""
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
    kept = model.deployed(network)
    assert all(torch.equal(before[name], held) for name, held in network.state_dict().items())
    with torch.no_grad():
        simulated_logits, logits = network(pictures), kept(pictures)
    guesses, others = logits.argmax(1), simulated_logits.argmax(1)
    assert (guesses == targets).float().mean() > 0.7
    assert (guesses == others).float().mean() > 0.98
    assert (logits - simulated_logits).abs().mean() < 0.05 * simulated_logits.std()
    int8 = [one for one in kept.modules() if isinstance(one, Int8Layer)]
    assert len(int8) > 3 and all(one.weight.dtype == torch.int8 for one in int8)
    plain = [one for one in kept.modules() if type(one) in (nn.Conv2d, nn.Linear)]
    assert len(plain) == (0 if ends == "int8" else 2)
    size, whole = (
        sum(held.nbytes for held in one.state_dict().values()) for one in (kept, network)
    )
    assert size < 0.6 * whole


def test_kept_as_a_file_copied_and_filled() -> None:
    model = Quantized(base=Resnet(depth=8, width=4))
    network = model.build(DIGITS).train()
    network(torch.rand(8, 1, 8, 8))
    kept, inputs = model.deployed(network), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        expected = kept(inputs)  # its weights are laid out for the kernels now
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        assert torch.equal(loaded(inputs), expected)
        assert torch.equal(copy.deepcopy(kept)(inputs), expected)
        other = model.build(DIGITS).train()
        other(torch.rand(8, 1, 8, 8))
        filled = model.deployed(other)
        assert not torch.equal(filled(inputs), expected)
        filled.load_state_dict(kept.state_dict())
        assert torch.equal(filled(inputs), expected)


def test_the_state_of_the_simulated_network_holds_its_ranges() -> None:
    model = Quantized(base=Resnet(depth=8, width=4))
    network, inputs = model.build(DIGITS).train(), torch.rand(8, 1, 8, 8)
    network(inputs)
    again = model.build(DIGITS)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(inputs), network.eval()(inputs))
    assert any(name.endswith("inputs.high") for name in network.state_dict())
