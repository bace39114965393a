"""What the tests of every model family share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from raykd.architecture import MODELS, Model, Task

DIGITS = Task((1, 8, 8), 10)
FASHION = Task((1, 28, 28), 10)
CIFAR = Task((3, 32, 32), 100)

# For each family: a small member, then the same with another depth and another width.
VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    "resnet": ({"depth": 8, "width": 4}, {"depth": 20, "width": 4}, {"depth": 8, "width": 6}),
    "wide_resnet": ({"depth": 10, "widen": 1}, {"depth": 22, "widen": 1}, {"depth": 10}),
    "vgg": ({"depth": 8, "width": 4}, {"depth": 19, "width": 4}, {"depth": 8, "width": 6}),
    "mlp": ({"depth": 4, "width": 8}, {"depth": 7, "width": 8}, {"depth": 4, "width": 12}),
}


def variants(name: str) -> list[Model]:
    """Members of a family; of one that is not listed above, its default."""
    return [MODELS[name](**fields) for fields in VARIANTS.get(name, ({},))]


def small(name: str) -> Model:
    return variants(name)[0]


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
