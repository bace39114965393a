"""Members of model families for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from raykd.models import (
    COMPRESSED_MODELS,
    MODELS,
    CompressedModel,
    Mixer,
    Mlp,
    MobilenetV2,
    Model,
    Resnet,
    Signature,
    Vgg,
    Vit,
)
from raykd.models.compression import LayerPruning
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import (
    Basic,
    Block,
    Bottleneck,
    Depthwise,
    Group,
    InvertedResidualBlock,
    Plain,
    Shuffle,
)
from raykd.models.zoo.crd_benchmark import Published

DIGITS = Signature((1, 8, 8), 10)
FASHION = Signature((1, 28, 28), 10)
CIFAR = Signature((3, 32, 32), 100)

SOURCES = tuple(Resnet(depth=depth, width=width) for depth, width in ((14, 4), (20, 4), (14, 6)))

# For each family: a small member, then the same with another depth and another width.
VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    **{cls.name: [{"base": source} for source in SOURCES] for cls in COMPRESSED_MODELS},
    "resnet": ({"depth": 8, "width": 4}, {"depth": 20, "width": 4}, {"depth": 8, "width": 6}),
    "wide_resnet": ({"depth": 10, "widen": 1}, {"depth": 22, "widen": 1}, {"depth": 10}),
    "vgg": ({"depth": 8, "width": 4}, {"depth": 19, "width": 4}, {"depth": 8, "width": 6}),
    "mobilenet_v2": (
        {"width_multiplier": 0.125, "expansion": 2},
        {"width_multiplier": 0.125, "expansion": 3},
        {"width_multiplier": 0.25, "expansion": 2},
    ),
    "shufflenet_v1": (
        {"width_multiplier": 0.25, "depths": (1, 1, 1)},
        {"width_multiplier": 0.25, "depths": (1, 3, 2)},
        {"width_multiplier": 0.5, "depths": (1, 1, 1)},
    ),
    "shufflenet_v2": (
        {"width": 8, "head": 32, "depths": (1, 1, 1)},
        {"width": 8, "head": 32, "depths": (2, 3, 1)},
        {"width": 12, "head": 32, "depths": (1, 1, 1)},
    ),
    "convnext": (
        {"width": 8, "depths": (1, 1, 1)},
        {"width": 8, "depths": (1, 2, 3)},
        {"width": 12, "depths": (1, 1, 1)},
    ),
    "cnn": (
        {"stages": (CnnStage(width=6), CnnStage(width=8, block=Depthwise()))},
        {"stages": (CnnStage(width=6, depth=2), CnnStage(width=8, depth=3, block=Depthwise()))},
        {"stages": (CnnStage(width=10), CnnStage(width=5, block=Depthwise()))},
    ),
    "vit": (
        {"depth": 4, "width": 16, "heads": 4},
        {"depth": 7, "width": 16, "heads": 4},
        {"depth": 4, "width": 24, "heads": 4},
    ),
    "mixer": ({"depth": 4, "width": 16}, {"depth": 7, "width": 16}, {"depth": 4, "width": 24}),
    "mlp": ({"depth": 4, "width": 8}, {"depth": 7, "width": 8}, {"depth": 4, "width": 12}),
    "unet": ({"depth": 2, "width": 3}, {"depth": 3, "width": 3}, {"depth": 2, "width": 5}),
    "retinanet": ({"width": 4, "channels": 8}, {"depth": 2, "width": 4}, {"width": 6}),
}

BLOCKS: tuple[Block, ...] = (
    Plain(),
    Basic(),
    Bottleneck(expansion=2),
    Depthwise(),
    InvertedResidualBlock(expansion=2),
    InvertedResidualBlock(expansion=1),
    Group(groups=2),
    Shuffle(),
)

# Members that differ in more than depth and width.
FAMILY_MEMBERS: dict[str, Sequence[dict[str, Any]]] = {
    "layer_pruning": (
        {"base": Vgg(depth=16, width=2), "keep": 0.3, "rule": "last"},
        {"base": Mlp(depth=5, width=6), "rule": "magnitude"},
    ),
    "channel_pruning": (
        {"base": MobilenetV2(width_multiplier=0.125, expansion=2), "keep": 0.75, "norm": "l2"},
        {"base": Vit(depth=2, width=16, heads=4, patch=2), "keep": 0.5},
    ),
    "low_rank": ({"base": Vit(depth=2, width=16, heads=4), "rank": 0.1, "operators": "linear"},),
    "separable": ({"base": SOURCES[0], "operator": "group", "groups": 2},),
    "quantized": (
        {"base": Mixer(depth=2, width=6), "ends": "float"},
        {"base": LayerPruning(base=SOURCES[0], keep=0.1)},
    ),
    "copy": ({"base": Mlp(depth=2, width=4), "inherit_weights": True},),
    "resnet": (
        {"block": "bottleneck", "depth": 11, "width": 2},
        {"stages": 4, "depth": 10, "width": 2, "stem_type": "imagenet"},
    ),
    "mobilenet_v2": (
        {"width_multiplier": 0.1, "expansion": 1, "variant": "imagenet"},
        {"width_multiplier": 0.1, "expansion": 2, "stem_stride": 1},
    ),
    "shufflenet_v1": (
        {"width_multiplier": 0.2, "depths": (2, 1, 1), "groups": 8, "variant": "imagenet"},
        {"width_multiplier": 0.1, "depths": (2, 1, 1), "groups": 1},
    ),
    "shufflenet_v2": ({"width": 4, "head": 8, "depths": (2, 1, 1), "stem_type": "imagenet"},),
    "convnext": ({"width": 4, "depths": (2,), "patch": 4, "kernel": 3, "expansion": 2},),
    "cnn": tuple(
        {
            "stem": 3,
            "stem_stride": 2,
            "stages": (
                CnnStage(width=4, block=block, squeeze_excite=True),
                CnnStage(width=6, depth=2, block=block, kernel=5, stride=1),
                CnnStage(width=2, block=block, kernel=1),
            ),
        }
        for block in BLOCKS
    ),
    "vit": ({"depth": 2, "width": 6, "heads": 3, "pooling": "mean", "mlp_ratio": 0.5, "patch": 2},),
    "mixer": ({"depth": 2, "width": 6, "token_ratio": 2, "mlp_ratio": 0.1, "patch": 1},),
}

# Members that learn the digits in a few steps, where the small ones above do not.
LEARNERS: dict[str, dict[str, Any]] = {
    "channel_pruning": {"base": Resnet(depth=14, width=8)},
    "mobilenet_v2": {"width_multiplier": 0.25, "stem_stride": 1},
    "cnn": {},
    "vit": {"depth": 4, "width": 32},
    "mixer": {"depth": 4, "width": 32},
    "mlp": {"depth": 2, "width": 32},
}

NAMES = tuple(
    name
    for name, cls in MODELS.members.items()
    if not issubclass(cls, Published) and "sample" in cls.gives
)
"""The families of classifiers; a network that has a name of its own is a member of one of them."""

DENSE_NAMES = tuple(name for name, cls in MODELS.members.items() if cls.gives == ("position",))
"""The families that only give a response for each position."""


def variants(name: str) -> list[Model]:
    """Return members of a family; the default for families that are not listed above."""
    return [MODELS[name](**fields) for fields in VARIANTS.get(name, ({},))]


def members(name: str) -> list[Model]:
    """Return members of a family that differ in all fields."""
    return [*variants(name), *(MODELS[name](**fields) for fields in FAMILY_MEMBERS.get(name, ()))]


def small(name: str) -> Model:
    return variants(name)[0]


def default(name: str) -> Model:
    """Return the model with default fields; compressed models get a base."""
    return MODELS[name](**({"base": Resnet()} if issubclass(MODELS[name], CompressedModel) else {}))


def learner(name: str) -> Model:
    return MODELS[name](**LEARNERS[name]) if name in LEARNERS else small(name)


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
