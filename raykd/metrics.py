"""Metrics of tasks: names, directions and units; imports no PyTorch, so that reports can use them.

A training measures a metric on several splits: `val_macro_f1` is the metric `macro_f1` on the
validation split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

Direction = Literal["max", "min"]
"""Better direction of a metric or cost."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Metric:
    """Facts of a metric.

    Attributes:
        direction: better direction.
        low, high: range of the values.
        is_share: whether its values are read as percentages, and differences as points.
    """

    direction: Direction
    low: float = 0.0
    high: float = 1.0
    is_share: bool = True


_CORRELATION = Metric("max", -1.0, is_share=False)
_ERROR = Metric("min", high=inf, is_share=False)

AGREEMENT = "teacher_agreement"
"""Metric of every task: likeness of the responses to those of the study's teacher."""

METRICS: dict[str, Metric] = {
    "accuracy": Metric("max"),
    "top5_accuracy": Metric("max"),
    "balanced_accuracy": Metric("max"),
    "macro_f1": Metric("max"),
    "worst_class_accuracy": Metric("max"),
    "matthews": _CORRELATION,
    "auroc": Metric("max"),
    "calibration_error": Metric("min"),
    "label_accuracy": Metric("max"),
    "subset_accuracy": Metric("max"),
    "mean_average_precision": Metric("max"),
    "map": Metric("max"),
    "map_50": Metric("max"),
    "map_75": Metric("max"),
    "anchor_accuracy": Metric("max"),
    "mean_iou": Metric("max"),
    "mean_dice": Metric("max"),
    "worst_class_iou": Metric("max"),
    "pixel_accuracy": Metric("max"),
    "r2": Metric("max", -inf, is_share=False),
    "mae": _ERROR,
    "rmse": _ERROR,
    "pearson": _CORRELATION,
    "spearman": _CORRELATION,
    "similarity_spearman": _CORRELATION,
    "cosine": _CORRELATION,
    AGREEMENT: Metric("max", -inf, is_share=False),
    "loss": _ERROR,
}
"""Metrics of the built-in tasks, and the label loss."""

_NUMBER = Metric("max", -inf, inf, is_share=False)


_declared: dict[str, Metric] = {}


def metric_name(text: str) -> str:
    """Return the name of a metric of a task; `metrics.py:Kappa` is called Kappa."""
    return text.rpartition(":")[2]


def declare_direction(name: str, direction: Direction) -> None:
    """Set the better direction of a metric of the user, as its study gives it."""
    if name not in METRICS:
        _declared[name] = replace(_NUMBER, direction=direction)


def facts_of(name: str) -> Metric:
    """Return the facts of a metric, by its name with or without a split.

    A name ending in "accuracy" is a share; any other unknown metric is a plain number.
    """
    if name in _declared:  # it may begin like a split
        return _declared[name]
    split, _, rest = name.partition("_")
    name = rest if split in SPLITS else name
    if name in _declared:
        return _declared[name]
    return METRICS.get(name, METRICS["accuracy"] if name.endswith("accuracy") else _NUMBER)


def task_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the task in the settings of a study; "" if there is none."""
    return str((settings.get("task") or {}).get("name", ""))


def lead_metric(settings: Mapping[str, Any]) -> str:
    """Return the metric by which the networks of a study are compared, without a split.

    It is the first objective that is a metric of the task, else the first metric of the task.

    Args:
        settings: the study as plain data; the task of a study of an older version is
            classification.
    """
    objectives = settings.get("search", {}).get("objectives", {})
    names = [name.removeprefix("val_") for name in objectives if name.startswith("val_")]
    task = settings.get("task") or {}
    listed = task.get("metrics", ["accuracy"])
    for text in listed:
        if ":" in text and f"val_{metric_name(text)}" in objectives:
            declare_direction(metric_name(text), objectives[f"val_{metric_name(text)}"])
    return next((name for name in names if name != "loss"), metric_name(listed[0]))
