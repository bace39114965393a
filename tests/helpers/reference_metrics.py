"""Metrics of every task by modules of torchmetrics, on all samples at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import classification, regression
from torchmetrics.detection import MeanAveragePrecision

from raykd.tasks import Kind, Task
from raykd.tasks.statistics import IGNORED

Reference = Callable[[Tensor, Tensor], float]
"""(response, targets) of a split, or (response, response of the teacher) -> value."""

Make = Callable[[int, Tensor], Reference]
"""(number of outputs, units of each value) -> reference."""


def _of(module: Callable[..., Any], reduce: Any = None, **options: Any) -> Make:
    """Return a metric of classes or labels, of which `reduce` maps the values to one."""

    def make(outputs: int, scale: Tensor) -> Reference:
        def value(response: Tensor, targets: Tensor) -> float:
            size = "num_labels" if "Multilabel" in module.__name__ else "num_classes"
            result = module(**{size: outputs}, **options)(response, targets)
            return float(result if reduce is None else reduce(result))

        return value

    return make


def _of_scores(module: Callable[..., Any], **options: Any) -> Make:
    """Return a metric of probabilities of classes or labels."""

    def make(outputs: int, scale: Tensor) -> Reference:
        inner = _of(module, **options)(outputs, scale)
        is_labels = "Multilabel" in module.__name__

        def value(response: Tensor, targets: Tensor) -> float:
            scores = response.double().sigmoid() if is_labels else response.double().softmax(1)
            return inner(scores, targets.long() if is_labels else targets)

        return value

    return make


def _of_values(module: Callable[..., Any], *, columns: bool = False, **options: Any) -> Make:
    """Return a metric of values in their units; `columns`: the mean of those of the columns."""

    def make(outputs: int, scale: Tensor) -> Reference:
        def value(response: Tensor, targets: Tensor) -> float:
            pair = response.double() * scale, targets.double() * scale
            if not columns:
                return float(module(**options).double()(*(each.contiguous() for each in pair)))
            each = zip(*(side.unbind(1) for side in pair), strict=True)
            return float(torch.stack([module(**options)(*both) for both in each]).mean())

        return value

    return make


def _similarity_spearman(outputs: int, scale: Tensor) -> Reference:
    def value(response: Tensor, targets: Tensor) -> float:
        above = torch.ones(len(targets), len(targets)).triu(1).bool()
        sides = [normalize(each.double()) for each in (response, targets)]
        return float(regression.SpearmanCorrCoef()(*((u @ u.T)[above] for u in sides)))

    return value


def _average_precision(*thresholds: float) -> Make:
    def make(outputs: int, scale: Tensor) -> Reference:
        def value(response: Tensor, targets: Tensor) -> float:
            metric = MeanAveragePrecision(
                iou_thresholds=list(thresholds) or None, backend="faster_coco_eval"
            )
            best = [rows[rows[:, 5] >= 0] for rows in response]
            real = [rows[rows[:, 4] >= 0] for rows in targets]
            metric.update(
                [{"boxes": r[:, :4], "scores": r[:, 4], "labels": r[:, 5].int()} for r in best],
                [{"boxes": r[:, :4], "labels": r[:, 4].int()} for r in real],
            )
            return float(metric.compute()["map"])

        return value

    return make


def _agreement_of(make: Make, targets: Callable[[Tensor], Tensor]) -> Make:
    """Return a metric of the targets that follow from a teacher's response."""

    def made(outputs: int, scale: Tensor) -> Reference:
        reference = make(outputs, torch.ones(()))
        return lambda response, teacher: reference(response, targets(teacher))

    return made


def _largest(response: Tensor) -> Tensor:
    return response.argmax(1)


_dense = partial(_of, ignore_index=IGNORED)
_dense_accuracy = _dense(classification.MulticlassAccuracy, average="micro")
_accuracy = _of(classification.MulticlassAccuracy, average="micro")
_label_accuracy = _of_scores(classification.MultilabelAccuracy, average="micro")
_cosine = _of_values(regression.CosineSimilarity, reduction="mean")

REFERENCES: Mapping[Kind, Mapping[str, Make]] = {
    "softmax": {
        "accuracy": _accuracy,
        "top5_accuracy": _of(classification.MulticlassAccuracy, top_k=5, average="micro"),
        "balanced_accuracy": _of(classification.MulticlassRecall, average="macro"),
        "worst_class_accuracy": _of(classification.MulticlassRecall, torch.min, average=None),
        "macro_f1": _of(classification.MulticlassF1Score, average="macro"),
        "matthews": _of(classification.MulticlassMatthewsCorrCoef),
        "auroc": _of_scores(classification.MulticlassAUROC),
        "calibration_error": _of_scores(classification.MulticlassCalibrationError, n_bins=15),
        "teacher_agreement": _agreement_of(_accuracy, _largest),
    },
    "sigmoid": {
        "mean_average_precision": _of_scores(classification.MultilabelAveragePrecision),
        "macro_f1": _of_scores(classification.MultilabelF1Score),
        "auroc": _of_scores(classification.MultilabelAUROC),
        "label_accuracy": _label_accuracy,
        "subset_accuracy": _of_scores(classification.MultilabelExactMatch),
        "teacher_agreement": _agreement_of(_label_accuracy, lambda response: response > 0),
    },
    "real": {
        "r2": _of_values(regression.R2Score),
        "mae": _of_values(regression.MeanAbsoluteError),
        "rmse": _of_values(regression.MeanSquaredError, columns=True, squared=False),
        "spearman": _of_values(regression.SpearmanCorrCoef, columns=True),
        "pearson": _of_values(regression.PearsonCorrCoef, columns=True),
        "similarity_spearman": _similarity_spearman,
        "cosine": _cosine,
    },
    "dense": {
        "mean_iou": _dense(classification.MulticlassJaccardIndex),
        "mean_dice": _dense(classification.MulticlassF1Score),
        "worst_class_iou": _dense(classification.MulticlassJaccardIndex, torch.min, average="none"),
        "pixel_accuracy": _dense_accuracy,
        "teacher_agreement": _agreement_of(_accuracy, _largest),
    },
    "boxes": {
        "map": _average_precision(),
        "map_50": _average_precision(0.5),
        "map_75": _average_precision(0.75),
    },
}
"""References by the kind of a response and the name of a metric."""

VALUE_AGREEMENTS: Mapping[str, Make] = {
    "regression": _agreement_of(_of_values(regression.R2Score), lambda response: response),
    "embedding": _agreement_of(_cosine, lambda response: response),
}
"""References of `teacher_agreement` by the name of a task with real values."""


def reference_metric(
    cls: type[Task], name: str, outputs: int, scale: Sequence[float] = ()
) -> Reference:
    """Return the reference of a metric.

    Args:
        cls: task.
        name: of the metric; a new one gets its line above.
        outputs: classes, labels or values of a response.
        scale: units of the values.
    """
    if name == "teacher_agreement" and cls.kind == "real":
        make = VALUE_AGREEMENTS[cls.name]
    else:
        make = REFERENCES[cls.kind][name]
    return make(outputs, torch.tensor(scale or (1.0,)))
