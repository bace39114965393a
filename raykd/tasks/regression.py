"""Real values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from raykd.registry import option
from raykd.tasks.base import LabelLoss, Task, is_labeled, without_unlabeled
from raykd.tasks.statistics import Statistic, absolute_errors, value_metric
from raykd.tasks.user_metrics import UserMetric

ValueMetric = Literal["r2", "mae", "rmse", "spearman", "pearson", "teacher_agreement"]


@option
class Regression(Task):
    """Predict one or several real values.

    Targets are standardized: each value has mean 0 and standard deviation 1 over the training
    samples.  The label loss compares standardized values, mean over them; the metrics `mae` and
    `rmse` are in the units of the data.  With several values, metrics are means over them.
    """

    kind = "real"
    train_metric = "mae"
    takes_unlabeled = True

    name: Literal["regression"] = "regression"
    metrics: Annotated[
        tuple[ValueMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search",
        ),
    ] = ("r2", "mae")
    loss: Annotated[
        Literal["mse", "huber", "l1"],
        Field(description="Label loss: squared errors, Huber's loss, or absolute errors"),
    ] = "mse"
    delta: Annotated[
        float,
        Field(
            gt=0,
            description="Error from which Huber's loss is linear, in standard deviations of the "
            "target",
        ),
    ] = 1.0

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        loss = mse_loss if self.loss == "mse" else l1_loss
        if self.loss == "huber":
            loss = partial(huber_loss, delta=self.delta)
        if bool(is_labeled(targets).all()):
            return loss
        return without_unlabeled(lambda *each: loss(*each, reduction="none").mean(1), targets)

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        loss = self.label_loss(targets, response.shape[1])
        return loss(response, targets) * len(targets)

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        if metric == "mae":
            return absolute_errors(scale)
        return {
            "r2": value_metric("r2_score"),
            "rmse": value_metric("mean_squared_error", scale, squared=False),
            "spearman": value_metric("spearman_corrcoef"),
            "pearson": value_metric("pearson_corrcoef"),
        }[metric]

    def training_settings(self) -> Mapping[str, object]:
        if self.loss == "huber":
            return {"loss": self.loss, "delta": self.delta}
        return {} if self.loss == "mse" else {"loss": self.loss}
