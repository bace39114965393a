"""Peak activation memory, against manual sums and PyTorch's profiler."""

from __future__ import annotations

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from helpers.model_cases import DIGITS, VARIANTS
from raykd.models import (
    FAMILIES,
    Convnext,
    Mixer,
    Model,
    Resnet,
    Retinanet,
    ShufflenetV1,
    Signature,
    Text,
    Vit,
    profile_network,
)
from raykd.models.introspection.memory import peak_memory
from raykd.models.introspection.profile import build_without_init

TASK = Signature((3, 16, 16), 10)
PLACES = 16 * 16 * 4
"""Bytes of one channel."""


def test_plain_chain() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
    # The input is held throughout; the fullest moment is the ReLU's, with 8 channels twice.
    assert peak_memory(chain, TASK) == (3 + 8 + 8) * PLACES


def test_in_place_results_and_views_count_once() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Unflatten(1, (8, 256))
    )
    assert peak_memory(chain, TASK) == (3 + 8) * PLACES


class Block(nn.Module):
    """Residual block that keeps its input during two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs)) + inputs


def test_residual_block() -> None:
    # first's output goes when second is done with it: 3 + 5 + 3, then 3 + 3 + 3.
    assert peak_memory(Block(), TASK) == (3 + 5 + 3) * PLACES
    # In a sequence the second block's input is held, too.
    assert peak_memory(nn.Sequential(Block(), Block()), TASK) == (3 + 3 + 5 + 3) * PLACES


def test_memory_is_per_sample_and_half_floats_count_half() -> None:
    class Half(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.half().flatten(1)

    assert peak_memory(Half(), TASK) == 3 * PLACES + 3 * PLACES // 2


def test_texts() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 6)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return self.table(inputs["input_ids"]).mean(1)

    signature = Signature((7,), 10, Text(50))
    assert peak_memory(Embedded(), signature) == 2 * 7 * 8 + 7 * 6 * 4 + 6 * 4


@pytest.mark.parametrize(
    "model",
    [Convnext(depths=(1, 1, 2)), Vit(depth=2), Mixer(depth=2), ShufflenetV1(depths=(1, 2, 1))],
    ids=lambda model: model.name,
)
def test_peak_equals_profilers(model: Model) -> None:
    """For networks whose kernels allocate no workspace."""
    network = model.build(TASK)
    assert peak_memory(network, TASK) == pytest.approx(profiled(network), rel=0.01)


def profiled(network: nn.Module) -> int:
    """Return the peak of allocated bytes from the profiler's list of allocations."""
    network.eval()
    with torch.no_grad():
        network(torch.rand(1, *TASK.input_shape))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile_:
            network(torch.rand(1, *TASK.input_shape))
    assert profile_.profiler is not None and profile_.profiler.kineto_results is not None
    events = [e for e in profile_.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, live)
    return most


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_peak_is_between_largest_layer_and_sum(family: type[Model]) -> None:
    model = family(**VARIANTS[family.name][0])
    task = Signature((1, 32, 32), 10, boxes=True) if family is Retinanet else DIGITS
    network = build_without_init(model, task)
    sizes = [
        torch.Size(layer.shape).numel() * 4
        for layer in profile_network(network, task).ordered_layers
    ]
    inputs = torch.Size(task.input_shape).numel() * 4
    assert max(sizes) < peak_memory(network, task) <= inputs + 4 * sum(sizes)


def test_network_is_unchanged() -> None:
    network = Resnet(depth=8, width=4).build(TASK).train()
    network.get_submodule("stage1").eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert peak_memory(network, TASK) == peak_memory(network, TASK)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_parameters_and_macs_equal_published_figures(name: str) -> None:
    published = tv.get_model_weights(name).IMAGENET1K_V1.meta  # type: ignore[attr-defined]
    figures = profile_network(tv.get_model(name), Signature((3, 224, 224), 1000))
    assert figures.params == published["num_params"]
    assert figures.macs / 1e9 == pytest.approx(published["_ops"], rel=0.03)
