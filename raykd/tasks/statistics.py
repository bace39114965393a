"""Computations of metrics: means over samples, or functions of all responses of a split.

A mean, or a function of counts, is exact for any division of the samples among batches and
workers.  All other metrics are those of torchmetrics, on the responses of the whole split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

if TYPE_CHECKING:
    from torchmetrics import Metric

SIMILARITY_SAMPLES = 1000
"""Maximum number of samples whose pairwise similarities are compared, evenly spaced."""


IGNORED = 255
"""Target of a position that does not count."""


@dataclass(frozen=True)
class MeanStatistic:
    """Metric that is a mean over the samples, or over the positions that count.

    Attributes:
        sums: (response, targets) -> sum over the batch, a scalar on their device.
    """

    sums: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SplitStatistic:
    """Metric that is a function of all responses and targets of a split.

    Attributes:
        value: (response, targets), float64 or int64 tensors on the CPU -> the metric.
    """

    value: Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class CountStatistic:
    """Metric that is a function of counts.

    Attributes:
        counts: (response, targets) -> counts of the batch, int64 on their device; statistics may
            share them.
        value: counts of a split, float64 on the CPU -> the metric.
    """

    counts: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], float]


@dataclass(frozen=True)
class MergedStatistic:
    """Metric of torchmetrics that is updated batch by batch, and merged over the workers.

    Attributes:
        build: returns a new metric, without samples.
    """

    build: Callable[[], Metric]

    def value(self, states: Iterable[Mapping[str, Any]]) -> float:
        """Return the metric of all samples.

        Args:
            states: `metric_state` of the metrics of all workers.
        """
        metric = self.build()
        for state in states:
            metric.merge_state(dict(state))
        with warnings.catch_warnings():  # it was merged, not updated
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            return float(metric.compute())


Statistic = MeanStatistic | SplitStatistic | CountStatistic | MergedStatistic


def hits(response: Tensor, targets: Tensor) -> Tensor:
    """(B, C), (B,) -> number of samples with the largest score at their class."""
    return (response.argmax(1) == targets).sum()


def class_metric(
    name: str, reduce: Callable[[Tensor], Tensor] | None = None, **options: object
) -> SplitStatistic:
    """Return a metric of `torchmetrics.functional.classification` for (N, C) logits.

    Args:
        name: of the function, without `multiclass_`.
        reduce: maps the values of the classes to the metric; None: the function returns it.
        options: of the function.
    """

    def value(response: Tensor, targets: Tensor) -> float:
        from torchmetrics.functional import classification

        function = getattr(classification, f"multiclass_{name}")
        result = function(response.softmax(1), targets, response.shape[1], **options)
        if reduce is not None:
            present = targets.bincount(minlength=response.shape[1]) > 0
            result = reduce(result[present])
        return float(result)

    return SplitStatistic(value)


def label_hits(response: Tensor, targets: Tensor) -> Tensor:
    """(B, C) logits, (B, C) labels of 0 or 1 -> sum over samples of the share of right labels."""
    return ((response > 0) == (targets > 0)).double().mean(1).sum()


def whole_hits(response: Tensor, targets: Tensor) -> Tensor:
    """(B, C) logits, (B, C) labels of 0 or 1 -> number of samples whose labels are all right."""
    return ((response > 0) == (targets > 0)).all(1).sum()


def label_metric(name: str, **options: object) -> SplitStatistic:
    """Return a metric of `torchmetrics.functional.classification` for (N, C) logits of labels.

    It is the mean over the labels that occur in the split; 0 if none does.

    Args:
        name: of the function, without `multilabel_`.
        options: of the function.
    """

    def value(response: Tensor, targets: Tensor) -> float:
        from torchmetrics.functional import classification

        function = getattr(classification, f"multilabel_{name}")
        labels = targets.long()
        present = labels.sum(0) > 0
        values = function(response.sigmoid(), labels, labels.shape[1], average=None, **options)
        return float(values[present].mean()) if present.any() else 0.0

    return SplitStatistic(value)


def absolute_errors(scale: Sequence[float]) -> MeanStatistic:
    """Return the mean absolute error of (N, D) values, in the units of the targets."""
    units: dict[torch.device, Tensor] = {}  # one copy to each device: copies wait for it

    def sums(response: Tensor, targets: Tensor) -> Tensor:
        errors = (response - targets).abs().double()
        if scale:
            if errors.device not in units:
                units[errors.device] = torch.tensor(scale, dtype=errors.dtype).to(errors.device)
            errors = errors * units[errors.device]
        return errors.mean(1).sum()

    return MeanStatistic(sums)


def value_metric(name: str, scale: Sequence[float] = (), **options: object) -> SplitStatistic:
    """Return a metric of `torchmetrics.functional.regression`, mean over the D values.

    A correlation with a constant counts as 0.

    Args:
        name: of the function.
        scale: factor of the metric of each value; () for ones.
        options: of the function.
    """

    def value(response: Tensor, targets: Tensor) -> float:
        from torchmetrics.functional import regression

        function = getattr(regression, name)
        columns = zip(response.unbind(1), targets.unbind(1), strict=True)
        values = torch.stack([function(*pair, **options) for pair in columns]).double()
        if scale:
            values = values * torch.tensor(scale, dtype=values.dtype)
        return float(values.nan_to_num(0.0).mean())

    return SplitStatistic(value)


def cosines(response: Tensor, targets: Tensor) -> Tensor:
    """(B, D), (B, D) -> sum over samples of the cosine of the angle between the two vectors."""
    return cosine_similarity(response.double(), targets.double()).sum()


def similarity_correlation(response: Tensor, targets: Tensor) -> float:
    """Return Spearman's correlation of the cosine similarities of all pairs of samples.

    Of more than `SIMILARITY_SAMPLES` samples, as many at equal distances are compared.
    """
    from torchmetrics.functional.regression import spearman_corrcoef

    rows = torch.arange(len(response))
    if len(rows) > SIMILARITY_SAMPLES:
        rows = torch.linspace(0, len(rows) - 1, SIMILARITY_SAMPLES).long()
    above = torch.triu_indices(len(rows), len(rows), 1)
    similarities = []
    for vectors in (response[rows], targets[rows]):
        unit_vectors = normalize(vectors.double())
        similarities.append((unit_vectors @ unit_vectors.T)[above[0], above[1]])
    return float(spearman_corrcoef(*similarities).nan_to_num(0.0))


def position_hits(response: Tensor, targets: Tensor) -> Tensor:
    """(B, C, H, W), (B, H, W) -> number of positions with the largest score at their class."""
    return (response.argmax(1) == targets).sum()


def position_agreement(response: Tensor, teacher: Tensor) -> Tensor:
    """Count the positions with the same largest score, and all positions.

    Args:
        response: (B, C, H, W).
        teacher: (B, C, H, W) scores, or (B, H, W) numbers of the largest ones.
    """
    classes = teacher.argmax(1) if teacher.dim() == 4 else teacher
    agreeing = (response.argmax(1) == classes).sum()
    return torch.stack([agreeing, agreeing.new_tensor(classes.numel())])


def share(counts: Tensor) -> float:
    """(2,) -> the first count, divided by the second."""
    return float(counts[0] / counts[1])


def confusion(response: Tensor, targets: Tensor) -> Tensor:
    """(B, C, H, W), (B, H, W) -> (C, C) numbers of positions by class and predicted class."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    classes = response.shape[1]
    return multiclass_confusion_matrix(
        response, targets, classes, ignore_index=IGNORED, validate_args=False
    )


def mean_iou(counts: Tensor) -> float:
    """Return the mean over the classes of intersection over union.

    Like torchmetrics' `MulticlassJaccardIndex`, it leaves out classes that are neither in the
    targets nor predicted.
    """
    return float(_ious(counts).mean())


def worst_class_iou(counts: Tensor) -> float:
    """Return the smallest intersection over union of a class."""
    return float(_ious(counts).min())


def mean_dice(counts: Tensor) -> float:
    """Return the mean over the classes of 2 I / (U + I), which is their F1."""
    ious = _ious(counts)
    return float((2 * ious / (1 + ious)).mean())


def _ious(counts: Tensor) -> Tensor:
    """Return the intersection over union of the classes that occur or are predicted."""
    both = counts.diag()
    either = counts.sum(0) + counts.sum(1) - both
    return (both / either)[either > 0]


def average_precision(*thresholds: float) -> SplitStatistic:
    """Return the mean average precision of boxes, of torchmetrics' `MeanAveragePrecision`.

    It is that of COCO: the mean over the classes that occur, and over IoU thresholds, of the
    precision at 101 recalls, with at most 100 boxes of an image.  Without any box in the targets
    it is 0.  Its responses are (N, boxes, 6): corners, score and class, and its targets (N, boxes,
    5): corners and class; a class below 0 marks a row without a box.

    Args:
        thresholds: of the IoU; none: 0.5, 0.55 ... 0.95.
    """

    def value(response: Tensor, targets: Tensor) -> float:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(
            iou_thresholds=list(thresholds) or None, backend="faster_coco_eval"
        )
        metric.warn_on_many_detections = False
        metric.update(predicted_boxes(response), true_boxes(targets))
        return max(0.0, float(metric.compute()["map"]))

    return SplitStatistic(value)


def predicted_boxes(response: Tensor) -> list[dict[str, Tensor]]:
    """(N, boxes, 6) corners, score and class -> boxes, scores and labels of each image."""
    images = [rows[rows[:, 5] >= 0] for rows in response]
    return [{"boxes": r[:, :4], "scores": r[:, 4], "labels": r[:, 5].long()} for r in images]


def true_boxes(targets: Tensor) -> list[dict[str, Tensor]]:
    """(N, boxes, 5) corners and class -> boxes and labels of each image."""
    images = [rows[rows[:, 4] >= 0] for rows in targets]
    return [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in images]
