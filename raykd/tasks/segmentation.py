"""One class a position of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from raykd.registry import option
from raykd.tasks.base import LabelLoss, Task
from raykd.tasks.statistics import (
    IGNORED,
    CountStatistic,
    MeanStatistic,
    Statistic,
    confusion,
    mean_dice,
    mean_iou,
    position_hits,
    worst_class_iou,
)
from raykd.tasks.user_metrics import UserMetric

PositionMetric = Literal[
    "mean_iou", "mean_dice", "worst_class_iou", "pixel_accuracy", "teacher_agreement"
]

STATISTICS: Mapping[PositionMetric, Statistic] = {
    "mean_iou": CountStatistic(confusion, mean_iou),
    "mean_dice": CountStatistic(confusion, mean_dice),
    "worst_class_iou": CountStatistic(confusion, worst_class_iou),
    "pixel_accuracy": MeanStatistic(position_hits),
}


@option
class Segmentation(Task):
    """Classify each position of an image.

    The response is one score for each class and position, (B, C, H, W), the targets are class
    indices, (B, H, W), or 255 at positions that do not count.  The label loss of a batch is the sum
    of the cross-entropies of the positions that count, divided by their expected number, so that
    every position has the same weight in an epoch.
    """

    kind = "dense"
    train_metric = "pixel_accuracy"
    takes_smoothing = True

    name: Literal["segmentation"] = "segmentation"
    metrics: Annotated[
        tuple[PositionMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search",
        ),
    ] = ("mean_iou", "pixel_accuracy")

    def count(self, targets: Tensor) -> int | Tensor:
        return (targets != IGNORED).sum()

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        counted = int((targets != IGNORED).sum()) / max(1, len(targets))
        return partial(position_cross_entropy, smoothing=smoothing, counted=max(counted, 1.0))

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(response, targets, reduction="sum", ignore_index=IGNORED)

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        return {str(name): statistic for name, statistic in STATISTICS.items()}[metric]


def position_cross_entropy(
    response: Tensor, targets: Tensor, *, smoothing: float, counted: float
) -> Tensor:
    """(B, C, H, W), (B, H, W) -> sum of the cross-entropies, divided by B times `counted`.

    With `counted` = positions that count of an image, on average over a split, its mean over an
    epoch is the mean over these positions, for any batches and any number of workers.
    """
    total = cross_entropy(
        response, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
    )
    return total / (len(targets) * counted)
