"""Layouts of all families of torchvision, timm and transformers, checked at two input sizes.

Nothing is downloaded or computed: the networks lie on the meta device.  Between two sizes of
picture the axes of places change and the axis of channels does not;
`raykd.models.introspection.axes` never looks at a
second size, so the two ways to tell them apart are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raykd.models import Signature
from raykd.models.adapters.huggingface import logits_only
from raykd.models.introspection.flops import SkipInit
from raykd.models.introspection.layers import Layer, discover_and_count

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
models = pytest.importorskip("torchvision.models")

Build = Callable[[int], nn.Module]

MOSTLY = 0.5
"""The least share of a network's layers whose layout must be known."""

NOT_HERE = frozenset({"dinat", "imagegpt", "perceiver", "shieldgemma2", "siglip2"})
"""They need another package, take no pictures (B, C, H, W), or cannot run on the meta device."""

SIDES = {"sequencer2d_l": 56}
"""Sides of pictures for networks that are slow at their usual size, as this one computes each row
and column in turn."""

SMALL = ("test", "atto", "femto", "pico", "nano", "xx", "tiny", "micro", "xs", "mini", "small")


def _smallest(names: list[str]) -> str:
    def rank(name: str) -> tuple[int, int, str]:
        place = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
        return place, len(name), name

    return min(names, key=rank)


def _timm_names() -> list[str]:
    """Return one model per module of timm."""
    registry: Any = __import__("timm.models._registry", fromlist=["_module_to_models"])
    models = set(timm.list_models())
    by_module = ([*models.intersection(names)] for names in registry._module_to_models.values())
    return sorted(_smallest(names) for names in by_module if names)


def _hf_names() -> list[str]:
    auto: Any = transformers.models.auto.modeling_auto
    return sorted({*auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES} - NOT_HERE)


def _torchvision_names() -> list[str]:
    by_module: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        by_module.setdefault(models.get_model_builder(name).__module__, []).append(name)
    return sorted(map(_smallest, by_module.values()))


def _channels(layer: Layer) -> int | None:
    """Return the axis that is treated as channels, without the batch axis."""
    layout = layer.layout
    if layout is None:
        return {2: 1, 3: 0}.get(len(layer.shape))
    if not layout.is_clear or layout.parts or len(layout.raw) != len(layout.shape):
        return None
    axis = layout.order[1 if len(layout.shape) == 3 else -1]
    return axis - (axis > layout.batch)


def _layers(build: Build, side: int) -> dict[str, Layer]:
    try:
        with torch.device("meta"):
            network = build(side)
    except NotImplementedError:  # it looks at the weights it draws
        with SkipInit():
            network = build(side).to("meta")
    layers, _ = discover_and_count(network.eval(), Signature((3, side, side), 10))
    return {layer.module: layer for layer in layers if layer.side == "output"}


def _compare(build: Build, size: int) -> None:
    first = _layers(build, size)
    clear = [layer for layer in first.values() if layer.layout is None or layer.layout.is_clear]
    assert len(clear) >= MOSTLY * len(first)
    try:
        second = _layers(build, 2 * size)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"its layouts are known; it takes pictures of one size only ({error})")
    wrong = []
    for name in first.keys() & second.keys():
        layer, second_layer = first[name], second[name]
        at = _channels(layer)
        if at is None or len(layer.raw_shape) != len(second_layer.raw_shape):
            continue
        pairs = zip(layer.raw_shape, second_layer.raw_shape, strict=True)
        changed = [i for i, (small, large) in enumerate(pairs) if small != large]
        if changed and at in changed:
            wrong.append(f"{name} {layer.type}: {layer.shape_text}, then {second_layer.shape_text}")
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", _torchvision_names())
def test_torchvision_layouts(name: str) -> None:
    def build(side: int) -> nn.Module:
        options: dict[str, Any] = {"image_size": side} if name.startswith("vit") else {}
        if name.startswith("maxvit"):
            options = {"input_size": (side, side)}
        return models.get_model(name, num_classes=10, **options)

    _compare(build, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", _timm_names())
def test_timm_layouts(name: str) -> None:
    usual = timm.get_pretrained_cfg(name)
    size = SIDES.get(name, usual.input_size[-1] if usual is not None else 224)

    def build(side: int) -> nn.Module:
        options = {"img_size": side} if usual is not None and usual.fixed_input_size else {}
        return timm.create_model(name, num_classes=10, **options)

    _compare(build, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", _hf_names())
def test_transformers_layouts(name: str) -> None:
    config = transformers.AutoConfig.for_model(name)
    config.num_labels = 10
    config.architectures = []
    usual = getattr(config, "image_size", 224)

    def build(side: int) -> nn.Module:
        if hasattr(config, "image_size"):
            config.image_size = [side, side] if isinstance(usual, list | tuple) else side
        return logits_only(transformers.AutoModelForImageClassification.from_config(config))

    _compare(build, usual if isinstance(usual, int) else 224)
