"""Base class of tasks: the meaning of a network's response, its label loss and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from raykd.metrics import Direction, facts_of
from raykd.registry import Registry, option
from raykd.tasks.statistics import (
    CountStatistic,
    MeanStatistic,
    Statistic,
    hits,
    label_hits,
    position_agreement,
    share,
    value_metric,
)
from raykd.tasks.user_metrics import user_metric_direction
from raykd.user_code import is_user_code

Kind = Literal["softmax", "sigmoid", "real", "dense", "boxes"]
"""Kind of a response: one of the classes, each label by itself, real values, one of the classes
for each position of an image, or boxes in an image."""

KINDS: Mapping[Kind, str] = {
    "softmax": "one class a sample (softmax)",
    "sigmoid": "several labels a sample (sigmoid)",
    "real": "real values",
    "dense": "one class a position (softmax)",
    "boxes": "boxes of classes in an image",
}
"""Kinds of responses, with their descriptions in messages."""

TARGETS: Mapping[Kind, str] = {
    "softmax": "classes",
    "sigmoid": "labels",
    "real": "values",
    "dense": "classes",
    "boxes": "classes",
}
"""Noun for the outputs of a response."""

ALL_KINDS: tuple[Kind, ...] = tuple(KINDS)

AGREEMENTS: Mapping[Kind, Statistic] = {
    "softmax": MeanStatistic(lambda response, teacher: hits(response, teacher.argmax(1))),
    "sigmoid": MeanStatistic(label_hits),
    "real": value_metric("r2_score"),
    "dense": CountStatistic(position_agreement, share),
}
"""Agreement with a teacher, of both responses, by their kind."""

UNLABELED = -100
"""Class of a sample without a label, which the label loss ignores; its values are NaN."""

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""(response, targets) -> scalar."""


@option
class Task:
    """Base class of tasks.

    The response is the tensor that a network returns, (B, C): class scores, label scores or
    values; class scores of positions, (B, C, H, W); or predictions at anchors, (B, anchors,
    values).  Losses on responses compare the student's
    with the teacher's; `kind` decides which of them fit.

    Class attributes:
        kind: kind of the response.
        train_metric: metric of the training samples, computed from the forward passes of the
            training; its statistic is a sum over the samples or positions of `count`.
        takes_smoothing: whether its label loss supports `train.label_smoothing`.
        takes_unlabeled: whether its label loss ignores samples without a label.
        takes_graph: whether a step is the same computation for any labels (`compile: graph`).
        exports: whether its networks can be exported; if not, their outputs need raykd.
        package: package that its metrics need, and raykd does not install by itself; may be empty.

    Attributes:
        metrics: metrics of the validation and test splits, the leading one first.
    """

    kind: ClassVar[Kind]
    train_metric: ClassVar[str]
    takes_smoothing: ClassVar[bool] = False
    takes_unlabeled: ClassVar[bool] = False
    takes_graph: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    package: ClassVar[str] = ""

    name: str
    metrics: tuple[str, ...]

    @property
    def lead(self) -> str:
        """Name of the leading metric."""
        return self.metric_names[0]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, as in `val_NAME`."""
        return tuple(text.rpartition(":")[2] for text in self.metrics)

    def direction(self, metric: str) -> Direction:
        """Return the better direction of a metric of this task.

        Raises:
            ValueError: it is code of the user that does not fit.
        """
        text = dict(zip(self.metric_names, self.metrics, strict=True)).get(metric, metric)
        if is_user_code(text):
            return user_metric_direction(text)
        return facts_of(metric).direction

    @property
    def is_balanced(self) -> bool:
        """True if the samples of an epoch are drawn with equal probability of each class."""
        return False

    def count(self, targets: Tensor) -> int | Tensor:
        """Return the number of samples, or positions, that losses and means are over."""
        return len(targets)

    def for_network(self, network: nn.Module) -> Task:
        """Return the task for the responses of a network, whose loss may be the network's own.

        Raises:
            ValueError: the task needs another kind of network.
        """
        return self

    def summary(self, response: Tensor) -> Tensor:
        """Return the part of a response that metrics of whole splits (`SplitStatistic`) read."""
        return response

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        """Return the loss on the labels.

        Args:
            targets: of the training split.
            outputs: values of a response (C).
            smoothing: label smoothing.
        """
        raise NotImplementedError

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        """Return the label loss of evaluations, unsmoothed and unweighted.

        It is summed over the samples or positions of `count`.
        """
        raise NotImplementedError

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        """Return the computation of a metric.

        Args:
            metric: one of `metrics`, or `train_metric`.
            scale: units of the targets per unit of the response, one a value; () for ones.
        """
        raise NotImplementedError

    def agreement(self) -> Statistic:
        """Return the agreement of a response with that of a teacher, in place of targets.

        By default it is the share of samples or positions with the same class, the share of equal
        labels, or the coefficient of determination of the teacher's values.
        """
        return AGREEMENTS[self.kind]

    def training_settings(self) -> Mapping[str, object]:
        """Return the settings that change trained weights, without those at their defaults."""
        return {}


def is_labeled(targets: Tensor) -> Tensor:
    """(B,) or (B, D) -> (B,) bool, whether a sample has a label."""
    if targets.is_floating_point():
        return ~targets.isnan().flatten(1).any(1)
    return targets != UNLABELED


def without_unlabeled(losses: LabelLoss, targets: Tensor) -> LabelLoss:
    """Return the mean over samples of a loss, which ignores samples without a label.

    If there are any, it is the sum over the labeled samples of a batch, divided by the expected
    number of them: its mean over an epoch is the mean over the labeled samples, for any batches
    and any number of workers.

    Args:
        losses: (response, targets) -> (B,) losses.
        targets: of the samples of an epoch.
    """
    labeled = int(is_labeled(targets).sum())
    if labeled == len(targets):
        return lambda response, values: losses(response, values).mean()
    factor = len(targets) / max(1, labeled)

    def loss(response: Tensor, values: Tensor) -> Tensor:
        mask = is_labeled(values)
        # NaN would reach the gradients of these samples even with a factor of 0
        complete = torch.where(mask[:, None], values, response.detach().to(values.dtype))
        return (losses(response, complete) * mask).sum() * (factor / len(values))

    return loss


TASKS = Registry("task", base=Task, entry_points="raykd.tasks")
"""Tasks that a study may name; `raykd.tasks` adds them."""


def is_exported(name: str) -> bool:
    """Return whether networks of a task can be exported; an unknown name is that of one."""
    cls: type[Task] | None = TASKS.members.get(name)
    return cls is None or cls.exports


AnyTask = Annotated[Task, TASKS]
"""Type of a field that holds a task."""
