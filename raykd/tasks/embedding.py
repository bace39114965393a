"""Vectors of a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from raykd.registry import option
from raykd.tasks.base import LabelLoss, Task, is_labeled, without_unlabeled
from raykd.tasks.statistics import (
    MeanStatistic,
    SplitStatistic,
    Statistic,
    cosines,
    similarity_correlation,
)
from raykd.tasks.user_metrics import UserMetric

VectorMetric = Literal["similarity_spearman", "cosine", "teacher_agreement"]

STATISTICS: Mapping[VectorMetric, Statistic] = {
    "similarity_spearman": SplitStatistic(similarity_correlation),
    "cosine": MeanStatistic(cosines),
}


@option
class Embedding(Task):
    """Learn the vectors that a teacher gives the samples; no labels are needed.

    The targets are these vectors.  The loss on them is 1 minus the cosine of the angle between
    response and target, or the squared error, mean over the values.
    """

    kind = "real"
    train_metric = "cosine"
    takes_unlabeled = True

    name: Literal["embedding"] = "embedding"
    metrics: Annotated[
        tuple[VectorMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search",
        ),
    ] = ("similarity_spearman", "cosine")
    loss: Annotated[
        Literal["cosine", "mse"], Field(description="Loss on the vectors of the teacher")
    ] = "cosine"

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        if bool(is_labeled(targets).all()):
            return cosine_distance if self.loss == "cosine" else mse_loss
        return without_unlabeled(self._losses, targets)

    def _losses(self, response: Tensor, targets: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B,)."""
        if self.loss == "cosine":
            return 1 - cosine_similarity(response, targets)
        return mse_loss(response, targets, reduction="none").mean(1)

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        loss = self.label_loss(targets, response.shape[1])
        return loss(response, targets) * len(targets)

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        return {str(name): statistic for name, statistic in STATISTICS.items()}[metric]

    def agreement(self) -> Statistic:
        return STATISTICS["cosine"]

    def training_settings(self) -> Mapping[str, object]:
        return {} if self.loss == "cosine" else {"loss": self.loss}


def cosine_distance(response: Tensor, targets: Tensor) -> Tensor:
    """(B, D), (B, D) -> mean over the samples of 1 minus the cosine."""
    return 1 - cosine_similarity(response, targets).mean()
