"""LayerHooks: outputs are captured during a forward, and hooks removed after it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helpers.model_cases import DIGITS, hooks_on
from raykd.models import LayerHooks, Resnet, discover, record_layers, resolve


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Resnet(depth=8, width=4).build(DIGITS)


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_captures_layer_outputs(network: nn.Module, inputs: Tensor) -> None:
    network.eval()
    layers = discover(network, DIGITS)
    taps = LayerHooks(network, [resolve(layers, "stage2"), resolve(layers, "embedding"), "stem.0"])
    logits, outputs = taps.run(inputs)
    assert taps.names == tuple(outputs) == ("stage2", "embedding", "stem.0")
    stem = network.get_submodule("stem")
    assert torch.equal(outputs["stem.0"], stem[0](inputs))  # pyright: ignore[reportIndexIssue]
    stage2 = network.get_submodule("stage2")(network.get_submodule("stage1")(stem(inputs)))
    assert torch.equal(outputs["stage2"], stage2)
    assert torch.equal(logits, network(inputs))
    assert hooks_on(network) == 0


def test_gradients_flow_through_captured_outputs(network: nn.Module, inputs: Tensor) -> None:
    LayerHooks(network, ["stage1"]).run(inputs).layers["stage1"].sum().backward()
    assert network.get_parameter("stem.0.weight").grad is not None
    assert network.get_parameter("stage2.0.conv1.weight").grad is None


def test_only_required_layers_run(network: nn.Module, inputs: Tensor) -> None:
    network.eval()
    taps, ran = LayerHooks(network, ["stage1", "stage2"]), []
    network.get_submodule("stage3").register_forward_hook(lambda *_: ran.append("stage3"))
    whole = taps.run(inputs).layers
    ran.clear()
    part = taps.layers_only(inputs)
    assert ran == []
    assert all(torch.equal(part[name], whole[name]) for name in whole)
    assert hooks_on(network) == 1
    assert LayerHooks(network, []).layers_only(inputs) == {}


def test_layer_that_runs_twice_gives_its_last_output(inputs: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.doubled = _Double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.doubled(self.doubled(inputs)).flatten(1)

    taps = LayerHooks(Twice(), ["doubled"])
    for _ in range(2):
        assert torch.equal(taps.layers_only(inputs)["doubled"], 4 * inputs)


class _Double(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * inputs


def test_record_layers_removes_its_hooks(network: nn.Module, inputs: Tensor) -> None:
    with record_layers(network, ["stage1", "stage3"]) as outputs:
        assert list(outputs) == ["stage1", "stage3"]
        network(inputs)
        first = outputs["stage3"]
        network(inputs + 1)
        assert not torch.equal(first, outputs["stage3"])
    assert hooks_on(network) == 0
    with pytest.raises(ValueError, match="'stage2' is not recorded; recorded are stage1, stage3"):
        outputs["stage2"]


def test_hooks_are_removed_after_exception(network: nn.Module, inputs: Tensor) -> None:
    def broken_off() -> None:
        with record_layers(network, ["stage1"]):
            network(inputs)
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    taps = LayerHooks(network, ["stage1"])
    with pytest.raises(RuntimeError):
        taps.run(torch.rand(2, 5, 8, 8))
    assert hooks_on(network) == 0
    assert taps.run(inputs).layers["stage1"].shape == (4, 4, 8, 8)


def test_nested_hooks(network: nn.Module, inputs: Tensor) -> None:
    with record_layers(network, ["stage1"]) as outer:
        network(inputs)
        before = outer["stage1"]
        inner = LayerHooks(network, ["stage2"]).run(inputs).layers
        assert hooks_on(network) == 1
        assert list(inner) == ["stage2"] and outer["stage1"] is not before
    assert hooks_on(network) == 0


def test_outputs_are_not_kept_alive(network: nn.Module, inputs: Tensor) -> None:
    taps = LayerHooks(network, ["stage1"])
    reference = weakref.ref(taps.run(inputs).layers["stage1"])
    cut = weakref.ref(taps.layers_only(inputs)["stage1"])
    gc.collect()
    assert reference() is None and cut() is None


def test_hooked_network_can_be_copied_and_saved(network: nn.Module, inputs: Tensor) -> None:
    taps = LayerHooks(network, ["stage1"])
    taps.run(inputs)
    assert hooks_on(copy.deepcopy(network)) == 0
    assert hooks_on(pickle.loads(pickle.dumps(network))) == 0


@pytest.mark.usefixtures("one_process")
def test_hooks_work_inside_distributed_data_parallel(network: nn.Module, inputs: Tensor) -> None:
    wrapped = DistributedDataParallel(network)
    logits, outputs = LayerHooks(wrapped, ["stage2"]).run(inputs)
    (logits.sum() + outputs["stage2"].sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_hooks_work_in_inference_mode(network: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        assert LayerHooks(network, ["stage1"]).run(inputs).layers["stage1"].is_inference()


class _Troubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.skipped = nn.Linear(8, 8)
        self.text = _Text()

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        return {"loss": self.text(), "logits": self.relu(self.linear(inputs))}


class _Text(nn.Module):
    def forward(self) -> str:
        return "no tensor"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("skipped", "'skipped' .* did not run"),
        ("text", "'text' .* returned no tensor"),
        ("linear", "'linear' .* overwritten in place"),
        ("liner", "no layer 'liner'; did you mean 'linear'"),
    ],
)
def test_unsupported_layers_raise(layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerHooks(_Troubled(), [layer]).run(torch.rand(2, 8))


def test_logits_of_mapping() -> None:
    logits, outputs = LayerHooks(_Troubled(), ["relu"]).run(torch.rand(2, 8))
    assert logits is outputs["relu"]


def test_duplicate_layer_names_raise(network: nn.Module) -> None:
    layer = resolve(discover(network, DIGITS), "stage1")
    assert LayerHooks(network, [layer, layer]).names == ("stage1",)
    with pytest.raises(ValueError, match="two layers are called 'stage1'"):
        LayerHooks(network, [layer, type(layer)("stage1", "stem", "Sequential", (4, 8, 8), 0.1)])
