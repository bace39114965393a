"""One class a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from raykd.registry import option
from raykd.tasks.base import UNLABELED, LabelLoss, Task
from raykd.tasks.statistics import MeanStatistic, Statistic, class_metric, hits
from raykd.tasks.user_metrics import UserMetric

ClassMetric = Literal[
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "worst_class_accuracy",
    "macro_f1",
    "matthews",
    "auroc",
    "calibration_error",
    "teacher_agreement",
]

STATISTICS: Mapping[ClassMetric, Statistic] = {
    "accuracy": MeanStatistic(hits),
    "top5_accuracy": class_metric("accuracy", average="micro", top_k=5),
    "balanced_accuracy": class_metric("recall", torch.mean, average=None),
    "worst_class_accuracy": class_metric("recall", torch.min, average=None),
    "macro_f1": class_metric("f1_score", average="macro"),
    "matthews": class_metric("matthews_corrcoef"),
    "auroc": class_metric("auroc", torch.mean, average=None),
    "calibration_error": class_metric("calibration_error", n_bins=15, norm="l1"),
}
"""Metrics; the calibration error has 15 bins (Guo 2017, arXiv:1706.04599, section 3)."""


@option
class Classification(Task):
    """Classify each sample as one of several classes.

    The response is the logits of a softmax, the label loss the cross-entropy (times the weight of
    the class of a sample, divided by the sum of these weights over the batch).  If some training
    samples are unlabeled, it is the sum over the labeled samples of a batch, divided by the
    expected number of them.
    """

    kind = "softmax"
    train_metric = "accuracy"
    takes_smoothing = True
    takes_unlabeled = True

    name: Literal["classification"] = "classification"
    metrics: Annotated[
        tuple[ClassMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search",
        ),
    ] = ("accuracy",)
    class_weights: Annotated[
        Literal["none", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...],
        Field(
            description="Weights of the classes in the label loss, in the order of the classes. "
            "balanced: inversely proportional to the number of training samples, mean 1 over them"
        ),
    ] = "none"
    sampling: Annotated[
        Literal["shuffle", "balanced"],
        Field(
            description="Training samples of an epoch. shuffle: each once; balanced: drawn with "
            "replacement, every class equally often on average"
        ),
    ] = "shuffle"

    @property
    def is_balanced(self) -> bool:
        return self.sampling == "balanced"

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        labeled = int((targets != UNLABELED).sum())
        if labeled < len(targets):
            factor = len(targets) / max(1, labeled)
            return partial(labeled_cross_entropy, smoothing=smoothing, factor=factor)
        loss = partial(cross_entropy, label_smoothing=smoothing)
        weights = self._weights(targets, outputs)
        return loss if weights is None else partial(loss, weight=weights)

    def _weights(self, targets: Tensor, classes: int) -> Tensor | None:
        if self.class_weights == "none":
            return None
        if self.class_weights == "balanced":
            counts = torch.bincount(targets, minlength=classes).double()
            occurring = (counts > 0).sum()
            return (len(targets) / (occurring * counts.clamp_min(1))).float()
        if len(self.class_weights) != classes:
            raise ValueError(
                f"task.class_weights has {len(self.class_weights)} weights for {classes} classes; "
                "give one for each class, or write `class_weights: balanced`"
            )
        return torch.tensor(self.class_weights, device=targets.device)

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(response, targets, reduction="sum")

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        return {str(name): statistic for name, statistic in STATISTICS.items()}[metric]

    def training_settings(self) -> Mapping[str, object]:
        settings = {"class_weights": self.class_weights, "sampling": self.sampling}
        return {key: value for key, value in settings.items() if value not in ("none", "shuffle")}


def labeled_cross_entropy(
    response: Tensor, targets: Tensor, *, smoothing: float, factor: float
) -> Tensor:
    """(B, C), (B,) -> `factor` / B times the sum of the cross-entropies of labeled samples.

    With `factor` = samples / labeled samples of a split, its mean over an epoch is the mean over
    the labeled samples, for any batches and any number of workers.
    """
    total = cross_entropy(
        response, targets, reduction="sum", ignore_index=UNLABELED, label_smoothing=smoothing
    )
    return total * (factor / len(targets))
