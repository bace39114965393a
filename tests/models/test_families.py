"""Options of single families, and errors for invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from helpers.model_cases import BLOCKS, CIFAR, DIGITS, FASHION
from raykd.models import (
    MODELS,
    AnyModel,
    Cnn,
    Convnext,
    Mixer,
    MobilenetV2,
    Model,
    Resnet,
    ShufflenetV1,
    ShufflenetV2,
    Signature,
    Vgg,
    Vit,
    WideResnet,
    profile_model,
)
from raykd.models.base import format_option
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import Bottleneck, Group, InvertedResidualBlock, Shuffle


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Resnet(depth=10), r"3 stages of basic blocks, is 6n\+2 \(8, 14, .*not 10"),
        (lambda: Resnet(depth=2), "got 2; must be >= 8"),
        (lambda: Resnet(depth=20, block="bottleneck", stages=4), "is 14, 26, 50, 101, 152, not 20"),
        (lambda: Resnet(depth=14, block="bottleneck"), r"9n\+2 \(11, 20, .*not 14"),
        (lambda: WideResnet(depth=20), "6n.4.*not 20"),
        (lambda: Vgg(depth=9), "got 9; must be 8, 11, 13, 16 or 19"),  # type: ignore[arg-type]
        (lambda: Vit(patch=3), "3x3 patches do not divide 8x8; set patch to one of 1, 2, 4, 8"),
        (lambda: Mixer(patch=5), "mixer .* 5x5 patches do not divide 8x8"),
        (
            lambda: Vit(width=10, heads=4),
            "4 heads do not divide 10; set heads to one of 1, 2, 5, 10",
        ),
        (
            lambda: Convnext(patch=4, depths=(1, 1, 1)),
            "needs images of 16x16 or larger.*data is 8; set patch to 2 .*depths .2 at most",
        ),
        (lambda: Convnext(patch=9, depths=(1,)), "data is 8; set patch to 8"),
        (lambda: ShufflenetV2(width=7), "even, not 7; use 6 or 8"),
        (lambda: Cnn(stages=()), "at least 1 item"),
        (lambda: Cnn(stages=(None,)), r"at least one stage, got \[null\]"),
        (
            lambda: Cnn(stages=(CnnStage(width=4), CnnStage(width=5, block=Shuffle()))),
            "stage2 of the cnn: .* even, not 5",
        ),
    ],
)
def test_nonexistent_members_raise(make: Callable[[], Model], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        profile_model(make(), DIGITS)


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"name": "resnet", "depth": 10}, "resnet.depth"),
        ({"name": "resnet", "depth": 14, "block": "bottleneck"}, "resnet.depth"),
        ({"name": "wide_resnet", "depth": 20}, "wide_resnet.depth"),
        ({"name": "vgg", "depth": 9}, "vgg.depth"),
        ({"name": "mlp", "depth": 0}, "mlp.depth"),
        ({"name": "mobilenet_v2", "width_multiplier": 0}, "mobilenet_v2.width_multiplier"),
        ({"name": "shufflenet_v1", "groups": 5}, "shufflenet_v1.groups"),
        ({"name": "shufflenet_v1", "depths": (1, 2)}, "shufflenet_v1.depths"),
        ({"name": "shufflenet_v2", "width": 7}, "shufflenet_v2.width"),
        ({"name": "vit", "width": 10, "heads": 4}, "vit.heads"),
        ({"name": "convnext", "depths": ()}, "convnext.depths"),
        ({"name": "cnn", "stages": ()}, "cnn.stages"),
        ({"name": "cnn", "stages": [{"width": 4, "kernel": 4}]}, "cnn.stages.0.kernel"),
        ({"name": "cnn", "stages": [{"width": 4, "block": {"name": "cell"}}]}, "stages.0.block"),
    ],
)
def test_study_file_with_nonexistent_members_raises(written: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=place):
        TypeAdapter(AnyModel).validate_python(written)


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (1, [1, 1, 1, 1, 1]),
        (3, [3, 1, 1, 1, 1]),
        (8, [8, 4, 2, 1, 1]),
        (28, [28, 14, 7, 3, 3]),
        (64, [64, 32, 16, 8, 4]),
    ],
)
def test_vgg_pools_only_maps_larger_than_one_pixel(side: int, sides: list[int]) -> None:
    profile = profile_model(Vgg(width=2), Signature((1, side, side + 1), 10))
    assert [profile.layers[f"stage{number}"][1] for number in range(1, 6)] == sides


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (
            Resnet(stages=4, depth=10, width=2, stem_type="imagenet"),
            [(2, 8), (4, 4), (8, 2), (16, 1)],
        ),
        (Resnet(block="bottleneck", depth=11, width=2), [(8, 32), (16, 16), (32, 8)]),
        (MobilenetV2(), [(24, 16), (32, 8), (96, 4), (320, 2)]),
        (MobilenetV2(variant="imagenet"), [(24, 8), (32, 4), (96, 2), (320, 1)]),
        (MobilenetV2(stem_stride=1), [(24, 32), (32, 16), (96, 8), (320, 4)]),
        (ShufflenetV1(variant="imagenet"), [(240, 4), (480, 2), (960, 1)]),
        (Convnext(width=4), [(4, 32), (8, 16), (16, 8), (32, 4)]),
        (Convnext(width=4, patch=4, depths=(1, 1)), [(4, 8), (8, 4)]),
    ],
)
def test_stages_end_at_changes_of_resolution(model: Model, shapes: list[tuple[int, int]]) -> None:
    profile = profile_model(model, CIFAR)
    stages = [profile.layers[alias] for alias in profile.aliases if alias != "embedding"]
    assert stages == [(channels, side, side) for channels, side in shapes]


@pytest.mark.parametrize("depth", range(1, 13))
@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_token_stages_split_blocks_equally(family: str, depth: int) -> None:
    profile = profile_model(MODELS[family](depth=depth, width=8, patch=4), DIGITS)
    stages = {alias: layer for alias, layer in profile.layers.items() if alias.startswith("stage")}
    named = {alias: shape for alias, shape in stages.items() if "." not in alias}
    assert list(named) == [f"stage{number}" for number in range(1, min(depth, 4) + 1)]
    assert set(named.values()) == {(5, 8) if family == "vit" else (4, 8)}
    counts = [
        sum(name.count(".") == 1 for name in stages if name.startswith(alias)) for alias in named
    ]
    assert sum(counts) == depth and max(counts) - min(counts) <= 1


def test_stage_as_wide_as_logits_is_stage() -> None:
    widths = (4, 4, 4, 10)
    profile = profile_model(Cnn(stages=tuple(CnnStage(width=width) for width in widths)), DIGITS)
    assert profile.layers["stage4"] == (10, 1, 1) and "stage4" in profile.aliases


def test_cnn_follows_its_stages() -> None:
    stages = (
        CnnStage(width=6, depth=2, kernel=5),
        CnnStage(width=8, block=Bottleneck(expansion=4), squeeze_excite=True),
        CnnStage(width=4, depth=3, block=InvertedResidualBlock(expansion=2), stride=1),
    )
    network = Cnn(stem=3, stages=stages).build(FASHION)
    convolutions = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    spatial = [
        (module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0])
        for name, module in convolutions.items()
        if module.kernel_size != (1, 1)
    ]
    assert spatial == [
        (1, 3, 3, 1),
        (3, 6, 5, 1),
        (6, 6, 5, 1),
        (2, 2, 3, 2),
        (16, 16, 3, 1),
        (8, 8, 3, 1),
        (8, 8, 3, 1),
    ]
    assert sum("squeeze" in name for name in convolutions) == 2
    profile = profile_model(Cnn(stem=3, stages=stages), FASHION)
    assert [profile.layers[f"stage{n}"] for n in (1, 2, 3)] == [
        (6, 28, 28),
        (8, 14, 14),
        (4, 14, 14),
    ]


def test_null_stage_is_skipped() -> None:
    first, last = CnnStage(width=4), CnnStage(width=6)
    assert profile_model(Cnn(stages=(first, None, last)), DIGITS) == profile_model(
        Cnn(stages=(first, last)), DIGITS
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_blocks_accept_any_width(block: Any) -> None:
    for widths in ((2, 2), (4, 10), (10, 4)):
        for kernel in (1, 3, 7):
            stages = tuple(
                CnnStage(
                    width=width, depth=2, block=block, kernel=kernel, squeeze_excite=kernel > 1
                )  # pyright: ignore[reportArgumentType]
                for width in widths
            )
            logits = Cnn(stages=stages).build(DIGITS).eval()(torch.rand(2, 1, 8, 8))
            assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.parametrize(("width", "groups"), [(8, 4), (6, 2), (5, 1), (12, 4)])
def test_groups_divide_channels_evenly(width: int, groups: int) -> None:
    model = Cnn(stages=(CnnStage(width=width, block=Group(groups=4)),))
    convolutions = [m for m in model.build(DIGITS).modules() if isinstance(m, nn.Conv2d)]
    assert max(module.groups for module in convolutions) == groups


def test_channel_shuffle_mixes_both_halves() -> None:
    network = ShufflenetV2(width=8, head=8, depths=(2, 1, 1)).build(DIGITS).eval()
    unit = network.get_submodule("stage1.1")
    features = torch.rand(2, 8, 4, 4)
    assert torch.equal(unit(features)[:, ::2], features[:, :4])
    assert not torch.equal(unit(features)[:, 1::2], features[:, 4:])


@pytest.mark.parametrize(("patch", "kernel", "side"), [(1, 3, 32), (2, 2, 16), (4, 4, 8)])
def test_convnext_never_normalizes_single_pixels(patch: int, kernel: int, side: int) -> None:
    model = Convnext(patch=patch, width=4, depths=(1,))
    assert model.build(CIFAR).get_parameter("stem.conv.weight").shape == (4, 3, kernel, kernel)
    assert profile_model(model, CIFAR).layers["stage1"] == (4, side, side)


def test_position_embeddings_distinguish_patches() -> None:
    """Without them, attention and pooling are invariant to the order of patches."""
    torch.manual_seed(0)
    network = Vit(depth=2, width=16, heads=4, pooling="mean").build(DIGITS).eval()
    pictures = torch.rand(2, 1, 8, 8)
    turned = pictures.roll(4, dims=3)
    assert not torch.allclose(network(pictures), network(turned), atol=1e-5)
    nn.init.zeros_(network.get_parameter("embed.positions"))
    torch.testing.assert_close(network(pictures), network(turned), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "place", "spread"),
    [
        (Resnet(width=32), "stage2.0.conv1", (2 / (64 * 9)) ** 0.5),
        (MobilenetV2(), "classifier", 0.01),
        (Convnext(width=64), "stage1.0.mlp.fc1", 0.02),
        (Vit(width=64), "stage1.0.mlp.fc1", (2 / (64 + 256)) ** 0.5),
        (Mixer(width=64), "stage1.0.mlp.fc2", (1 / 256) ** 0.5),
    ],
)
def test_initial_weights_follow_documentation(model: Model, place: str, spread: float) -> None:
    torch.manual_seed(0)
    weight = model.build(CIFAR).get_parameter(f"{place}.weight")
    assert weight.std().item() == pytest.approx(spread, rel=0.03)


def test_option_text_is_that_of_study_file() -> None:
    assert format_option(Resnet()) == "resnet"
    assert format_option(Resnet(depth=8, stem=1)) == "{name: resnet, depth: 8, stem: 1}"
    assert (
        format_option(MobilenetV2(width_multiplier=0.5))
        == "{name: mobilenet_v2, width_multiplier: 0.5}"
    )
    stages = (CnnStage(width=4), CnnStage(width=8, depth=2, block=Group(groups=2)))
    assert format_option(Cnn(stages=stages, stem=None)) == (
        "{name: cnn, stages: [{width: 4}, {width: 8, depth: 2, block: {name: group, groups: 2}}]}"
    )
    assert repr(replace(stages[0], squeeze_excite=True)) == "{width: 4, squeeze_excite: true}"
