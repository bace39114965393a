"""Names of costs and objectives; imports no PyTorch, so that reports can use them."""

from __future__ import annotations

from typing import Literal, get_args

Direction = Literal["max", "min"]
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

OBJECTIVES: dict[str, Direction] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
    **dict.fromkeys(COSTS, "min"),
    "epoch_seconds": "min",
    "images_per_second": "max",
}
"""Metrics and costs that a search can optimize, each with its better direction."""
