"""Finding layers and stages in any module."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raykd.models import (
    Mlp,
    Resnet,
    Signature,
    discover,
    profile_model,
    profile_network,
    resolve,
    stage_aliases,
)
from raykd.models.introspection.flops import SkipInit

IMAGENET = Signature((3, 64, 64), 1000)


def _stages(model: nn.Module, signature: Signature = IMAGENET) -> list[str]:
    return [layer.module for layer in stage_aliases(discover(model, signature)).values()]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4", "fc"]),
        (
            "mobilenet_v2",
            [*(f"features.{number}" for number in (1, 3, 6, 13, 18)), "classifier.1"],
        ),
        (
            "regnet_y_400mf",
            [*(f"trunk_output.block{number}" for number in (1, 2, 3, 4)), "fc"],
        ),
    ],
)
def test_stages_of_unknown_networks(name: str, stages: list[str]) -> None:
    assert _stages(tv.get_model(name)) == stages


def test_stages_of_repeated_blocks() -> None:
    vit = tv.VisionTransformer(
        image_size=64, patch_size=16, num_layers=8, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (1, 3, 5, 7)]
    assert _stages(vit) == [*blocks, "heads.head"]
    assert resolve(discover(vit, IMAGENET), "stage1").shape == (17, 16)


@pytest.mark.parametrize(("depth", "ends"), [(1, [0]), (3, [0, 1, 2]), (6, [1, 2, 4, 5])])
def test_stages_of_perceptron(depth: int, ends: list[int]) -> None:
    aliases = dict(profile_model(Mlp(depth=depth, width=8), Signature((1, 8, 8), 10)).aliases)
    assert aliases.pop("embedding") == "classifier"
    expected = [f"blocks.{number}" for number in ends] if depth > 1 else ["blocks"]
    assert list(aliases.values()) == expected


def test_stages_of_plain_sequence() -> None:
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    aliases = stage_aliases(discover(plain, Signature((1, 8, 8), 10)))
    assert aliases["embedding"].shape == (16,)
    assert [aliases[f"stage{number}"].shape for number in (1, 2)] == [(32,), (16,)]


def test_single_layer_model_has_no_stage() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert list(stage_aliases(discover(linear, Signature((1, 8, 8), 10)))) == ["embedding"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_b_32", "squeezenet1_0"])
def test_macs_equal_pytorchs(name: str) -> None:
    signature = Signature((3, 224, 224), 1000) if name == "vit_b_32" else IMAGENET
    with torch.device("meta"):
        network = tv.get_model(name).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *signature.input_shape))
    assert profile_network(network, signature).macs == counter.get_total_flops() // 2


def test_unknown_layer_error_suggests_similar_names() -> None:
    layers = profile_model(Resnet(depth=8), Signature((1, 8, 8), 10)).ordered_layers
    with pytest.raises(ValueError, match=r"no layer 'stagge2'; did you mean 'stage2'") as error:
        resolve(layers, "stagge2")
    assert "stage1, stage2, stage3, embedding" in str(error.value)


def test_layer_can_be_requested_by_any_of_its_names() -> None:
    profile = profile_model(Mlp(depth=2, width=8), Signature((1, 8, 8), 10))
    by_alias, by_module = profile.resolve(["stage2", "blocks.1"])
    assert (by_alias.name, by_alias.module) == ("stage2", "blocks.1")
    assert (by_module.name, by_module.module) == ("blocks.1", "blocks.1")
    assert profile.layers["stage2"] == profile.layers["blocks.1"] == (8,)


class _Odd(nn.Module):
    """Modules that run twice, never, in place, return a pair, or an output without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.overwritten = nn.Linear(4, 4)
        self.inplace = nn.ReLU(inplace=True)
        self.shared = nn.Tanh()
        self.unused = nn.Linear(4, 4)
        self.recurrent = nn.GRU(4, 6, batch_first=True)
        self.constant = _Constant()
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.shared(self.first(inputs)) + self.constant(inputs)
        hidden = self.inplace(self.overwritten(hidden))
        outputs, _ = self.recurrent(self.shared(hidden)[:, None])
        return self.last(outputs[:, 0])


class _Constant(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ones(4)


def test_odd_layers() -> None:
    layers = discover(_Odd(), Signature((4,), 3))
    names = [layer.name for layer in layers]
    assert names == [
        *("first", "overwritten", "inplace", "shared", "recurrent", "last", "embedding")
    ]
    assert resolve(layers, "overwritten").overwritten
    for name in ("unused", "constant"):
        with pytest.raises(ValueError, match=f"module '{name}' cannot be read as a layer"):
            resolve(layers, name)
    assert resolve(layers, "recurrent").shape == (1, 6)
    assert resolve(layers, "embedding").shape == (6,)


@pytest.mark.timeout(60)
def test_profiling_ends_for_uninitialized_memory() -> None:
    """`trunc_normal_` redraws values outside its bounds, which unwritten memory may contain."""
    memory = torch.full((8,), 1e9)
    with SkipInit():
        nn.init.trunc_normal_(memory, std=0.02)
    assert memory.abs().max() <= 2


def test_profiles_are_cached() -> None:
    assert profile_model(Resnet(depth=8), IMAGENET) is profile_model(Resnet(depth=8), IMAGENET)


def test_profiling_does_not_import_compiler() -> None:
    program = (
        "import sys; from raykd.models import *\n"
        "profile_model(Resnet(depth=8), Signature((1, 8, 8), 10))\n"
        "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
