"""Layouts: every layer is returned with channels before positions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raykd.models import LayerHooks, Signature, discover, resolve
from raykd.models.introspection.layers import Layer

TASK = Signature((3, 8, 8), 5)


class Custom(nn.Module):
    """A stem, a rearrangement, and a classifier."""

    def __init__(self, change: Callable[[Tensor], Tensor], channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.change = change
        self.seen = nn.Identity()
        self.head = nn.Linear(channels, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.stem(inputs)
        self.seen(self.change(stem))
        return self.head(stem.mean(dim=(2, 3)))


def as_map(change: Callable[[Tensor], Tensor], channels: int = 6) -> tuple[Layer, Tensor, Tensor]:
    """Return the layer after `change`, its captured tensor, and the stem's map (B, C, H, W)."""
    torch.manual_seed(0)
    network = Custom(change, channels)
    layers = discover(network, TASK)
    layer = resolve(layers, "seen")
    outputs = LayerHooks(network, [layer, "stem"]).run(torch.rand(3, 3, 8, 8))
    return layer, outputs.layers["seen"], outputs.layers["stem"]


def windows(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, windows, positions, C), windows of 4 x 4."""
    parts = features.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def grid(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, positions, positions, C): each inner axis holds distant positions."""
    parts = features.unflatten(3, (4, -1)).unflatten(2, (4, -1))
    return parts.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(1, 2)


@pytest.mark.parametrize("channels", [6, 8])  # 8: as many as rows and columns
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x, ""),
        (lambda x: x.permute(0, 2, 3, 1), "channels last"),
        (lambda x: x.permute(0, 3, 2, 1), "channels last"),
        (lambda x: x.permute(0, 2, 3, 1).contiguous(), "channels last"),
        (lambda x: x.permute(0, 2, 1, 3), "channels first"),
        (lambda x: x.transpose(2, 3), "channels first"),
        (lambda x: x.permute(2, 0, 1, 3), "samples not first"),
        (lambda x: x.unflatten(1, (2, -1)), "separate heads"),
        (windows, "windows"),
        (grid, "windows"),
    ],
)
def test_maps_are_captured_as_maps(
    change: Callable[[Tensor], Tensor], name: str, channels: int
) -> None:
    layer, tapped, stem = as_map(change, channels)
    assert layer.shape == (channels, 8, 8)
    assert ("" if layer.layout is None else layer.layout.name) == name
    assert torch.equal(tapped, stem)
    assert torch.equal(layer.restore(tapped), change(stem))


@pytest.mark.parametrize("channels", [6, 64])  # 64: as many as places
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), ""),
        (lambda x: x.flatten(2), "channels first"),
        (lambda x: x.flatten(2).permute(2, 0, 1), "samples not first"),
        (lambda x: x.flatten(2).unflatten(1, (2, -1)), "separate heads"),
        (lambda x: x.flatten(2).transpose(1, 2).unflatten(2, (2, -1)), "separate heads"),
        (
            lambda x: x.flatten(2).transpose(1, 2).unflatten(2, (2, -1)).transpose(1, 2),
            "separate heads",
        ),
        (lambda x: windows(x).flatten(1, 2), "windows"),
    ],
)
def test_tokens_are_captured_as_tokens(
    change: Callable[[Tensor], Tensor], name: str, channels: int
) -> None:
    layer, tapped, stem = as_map(change, channels)
    assert layer.shape == (64, channels)
    assert ("" if layer.layout is None else layer.layout.name) == name
    assert torch.equal(tapped, stem.flatten(2).transpose(1, 2))
    assert torch.equal(layer.restore(tapped), change(stem))


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda x: x.mean(dim=(2, 3)), (6,)),
        (lambda x: x.mean(dim=(2, 3), keepdim=True), (6, 1, 1)),
        (lambda x: x.mean(dim=1, keepdim=True), (1, 8, 8)),
        (lambda x: x.amax(dim=3), (8, 6)),
        (lambda x: nn.functional.avg_pool2d(x, 2).permute(0, 2, 3, 1), (6, 4, 4)),
        (lambda x: torch.cat([x, x], dim=1).permute(0, 2, 3, 1), (12, 8, 8)),
        (lambda x: x.permute(0, 2, 3, 1)[:, ::2, ::2], (6, 4, 4)),
        (lambda x: x.permute(0, 2, 3, 1) @ torch.ones(6, 9), (9, 8, 8)),
        (lambda x: torch.cat([x.flatten(2), torch.zeros(len(x), 6, 1)], 2), (65, 6)),
        (lambda x: torch.stack([sample.permute(1, 2, 0) for sample in x]), (6, 8, 8)),
        (lambda x: torch.cat([x.flatten(2), torch.zeros(len(x), 6, 1)], 2)[:, :, :64], (64, 6)),
    ],
)
def test_channel_axis_is_tracked_through_operations(
    change: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    layer, tapped, _ = as_map(change)
    assert layer.shape == shape
    assert tuple(tapped.shape) == (3, *shape)


def test_token_mixing_keeps_tokens() -> None:
    """A linear layer over the tokens, as in an MLP mixer, returns tokens."""
    layer, tapped, stem = as_map(lambda x: x.flatten(2) @ torch.ones(64, 10))
    assert layer.shape == (10, 6)
    assert torch.allclose(tapped[:, 3], stem.flatten(2).sum(dim=2), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: torch.stack([x.sum() + torch.arange(4.0)] * len(x)).unflatten(1, (2, 2)),
        lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),  # channels by channels
    ],
)
def test_unknown_layout_is_neither_map_nor_tokens(
    change: Callable[[Tensor], Tensor],
) -> None:
    layer, tapped, _ = as_map(change)
    assert len(layer.shape) == 4
    assert "unclear" in layer.shape_text
    assert tuple(tapped.shape) == (3, *layer.shape)


def swin(library: str) -> nn.Module:
    if library == "torchvision":
        from torchvision.models.swin_transformer import SwinTransformer

        return SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5)
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 2),
        num_classes=5,
    )


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_swin_is_read_channels_last(library: str) -> None:
    network = swin(library).eval()
    layers = discover(network, Signature((3, 32, 32), 5))
    first, second = (resolve(layers, f"stage{number}") for number in (1, 2))
    assert (first.shape, second.shape) == ((12, 8, 8), (24, 4, 4))
    assert first.shape_text == "8x8x12 channels last"
    inputs = torch.rand(2, 3, 32, 32)
    outputs = LayerHooks(network, [second, second.module]).run(inputs)
    raw = outputs.layers[second.module]
    assert raw.shape == (2, 4, 4, 24)
    assert torch.equal(outputs.layers["stage2"], raw.permute(0, 3, 1, 2))
    assert outputs.layers["stage2"].data_ptr() == raw.data_ptr()  # a view, not a copy


def test_attention_transfer_on_swin_sums_over_channels() -> None:
    from raykd.losses import LOSSES

    network = swin("torchvision").eval()
    layer = resolve(discover(network, Signature((3, 32, 32), 5)), "stage2")
    features = LayerHooks(network, [layer]).run(torch.rand(2, 3, 32, 32)).layers["stage2"]
    guided = torch.rand(2, 7, 4, 4)
    places = [side.square().sum(dim=1).flatten(1) for side in (guided, features)]
    ours, theirs = (side / side.norm(dim=1, keepdim=True) for side in places)
    loss = LOSSES.members["at"]()
    assert torch.allclose(loss(guided, features), (ours - theirs).norm(dim=1).mean(), atol=1e-5)


def inplace_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(216, 5),
    )


def test_layer_overwritten_in_place_can_be_captured() -> None:
    """The network's output is unchanged; the captured layer has its values before the overwrite."""
    network, inputs = inplace_network(), torch.rand(4, 3, 8, 8)
    other = copy.deepcopy(network)
    other[2] = nn.ReLU()
    layer = resolve(discover(network, TASK), "1")
    assert layer.overwritten
    outputs, expected = (
        LayerHooks(network, [layer]).run(inputs),
        LayerHooks(other, ["1"]).run(inputs),
    )
    assert (expected.layers["1"] < 0).any()
    assert torch.equal(outputs.layers["1"], expected.layers["1"])
    assert torch.equal(outputs.logits, expected.logits)
    for outputs_ in (outputs, expected):
        (outputs_.logits.square().sum() + outputs_.layers["1"].square().sum()).backward()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_overwritten_layers_are_not_stages_or_default_candidates() -> None:
    from torchvision.models import resnet18

    from raykd.models.introspection.profile import profile_network
    from raykd.study.checks.layer_pairs import layers_for

    profile = profile_network(resnet18(num_classes=5), Signature((3, 32, 32), 5))
    assert profile.resolve(["layer1.0.bn1"])[0].shape == (64, 8, 8)
    assert profile.aliases["stage1"] == "layer1"
    assert "layer1.0.bn1" not in layers_for([profile])["all"]


class Odd(nn.Module):
    """Modules that are not layers, each for a different reason."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.parts = nn.ModuleList([nn.Linear(4, 4)])
        self.auxiliary = nn.Linear(4, 3)
        body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.scripted: Any = torch.jit.trace(body, torch.rand(2, 4))
        self.silent = Silent()
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.scripted(self.body(inputs))
        hidden = self.parts[0](hidden)
        if self.training:
            self.auxiliary(hidden)
        self.silent(hidden)
        return self.weighed(hidden)


class Silent(nn.Module):
    def forward(self, inputs: Tensor) -> None:
        return None


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("auxiliary", "does not call it in evaluation"),
        ("parts", "ModuleList only contains other modules"),
        ("scripted.0", "scripted or traced"),
        ("silent", "returns NoneType"),
        ("weighed.parametrizations.weight", "no axis for the samples"),
        ("absent", "there is no layer 'absent'"),
    ],
)
def test_error_states_why_module_is_not_layer(name: str, reason: str) -> None:
    layers = discover(Odd(), Signature((4,), 3))
    assert {"body", "scripted", "parts.0", "weighed"} <= {layer.name for layer in layers}
    with pytest.raises(ValueError, match=reason):
        resolve(layers, name)
