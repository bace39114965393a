"""Several labels a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from raykd.registry import option
from raykd.tasks.base import LabelLoss, Task, is_labeled, without_unlabeled
from raykd.tasks.statistics import (
    MeanStatistic,
    Statistic,
    label_hits,
    label_metric,
    whole_hits,
)
from raykd.tasks.user_metrics import UserMetric

LabelMetric = Literal[
    "mean_average_precision",
    "macro_f1",
    "auroc",
    "label_accuracy",
    "subset_accuracy",
    "teacher_agreement",
]

STATISTICS: Mapping[LabelMetric, Statistic] = {
    "mean_average_precision": label_metric("average_precision"),
    "macro_f1": label_metric("f1_score"),
    "auroc": label_metric("auroc"),
    "label_accuracy": MeanStatistic(label_hits),
    "subset_accuracy": MeanStatistic(whole_hits),
}


@option
class MultiLabel(Task):
    """Decide for each of several labels whether a sample has it.

    The response is one logit a label, the label loss the binary cross-entropy, mean over the
    labels.
    """

    kind = "sigmoid"
    train_metric = "label_accuracy"
    takes_unlabeled = True

    name: Literal["multi_label"] = "multi_label"
    metrics: Annotated[
        tuple[LabelMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search",
        ),
    ] = ("mean_average_precision",)
    positive_weights: Annotated[
        Literal["none", "balanced"] | tuple[Annotated[float, Field(gt=0)], ...],
        Field(
            description="Weights of the samples that have a label in its loss, in the order of "
            "the labels. balanced: samples without the label per sample with it"
        ),
    ] = "none"

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        labeled = is_labeled(targets)
        weights = self._weights(targets[labeled], outputs)
        loss = partial(binary_cross_entropy_with_logits, pos_weight=weights)
        if bool(labeled.all()):
            return loss
        losses = partial(loss, reduction="none")
        return without_unlabeled(lambda *each: losses(*each).mean(1), targets)

    def _weights(self, targets: Tensor, labels: int) -> Tensor | None:
        if self.positive_weights == "none":
            return None
        if self.positive_weights == "balanced":
            counts = (targets > 0).sum(0)
            return (len(targets) - counts).clamp_min(1) / counts.clamp_min(1)
        if len(self.positive_weights) != labels:
            raise ValueError(
                f"task.positive_weights has {len(self.positive_weights)} weights for {labels} "
                "labels; give one for each label, or write `positive_weights: balanced`"
            )
        return torch.tensor(self.positive_weights, device=targets.device)

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        losses = binary_cross_entropy_with_logits(response, targets, reduction="none")
        return losses.mean(1).sum()

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        return {str(name): statistic for name, statistic in STATISTICS.items()}[metric]

    def training_settings(self) -> Mapping[str, object]:
        weights = self.positive_weights
        return {} if weights == "none" else {"positive_weights": weights}
