"""Names of costs and objectives; imports no PyTorch, so that reports can use them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from raykd.metrics import METRICS, Direction, facts_of

Cost = Literal[
    "params",
    "macs",
    "memory",
    "latency",
    "batch_latency",
    "onnx_latency",
    "onnx_batch_latency",
]
"""Costs of a student, determined before it is trained."""

COSTS: tuple[Cost, ...] = get_args(Cost)
MEASURED: tuple[Cost, ...] = ("latency", "batch_latency", "onnx_latency", "onnx_batch_latency")
"""Costs that are measured; the others follow from the architecture."""


def objectives_of(metrics: Iterable[str], train_metrics: Iterable[str]) -> dict[str, Direction]:
    """Return the metrics and costs that a search can optimize, each with its better direction.

    Args:
        metrics: metrics of the validation split.
        train_metrics: metrics of the training samples.
    """
    names = [f"val_{name}" for name in (*metrics, "loss")]
    names += [f"train_{name}" for name in (*train_metrics, "loss")]
    return {
        **{name: facts_of(name).direction for name in names},
        **dict.fromkeys(COSTS, "min"),
        "epoch_seconds": "min",
        "images_per_second": "max",
    }


OBJECTIVES = objectives_of(*[[name for name in METRICS if name != "loss"]] * 2)
"""Objectives of any built-in task."""
