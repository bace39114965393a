"""Boxes of classes in an image."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.registry import option
from raykd.tasks.base import LabelLoss, Task
from raykd.tasks.statistics import MeanStatistic, SplitStatistic, Statistic, average_precision
from raykd.tasks.user_metrics import UserMetric

BoxMetric = Literal["map", "map_50", "map_75"]

NO_BOX = -1
"""Class of a row that holds no box: images have different numbers of boxes."""

STATISTICS: Mapping[BoxMetric, SplitStatistic] = {
    "map": average_precision(),
    "map_50": average_precision(0.5),
    "map_75": average_precision(0.75),
}


@runtime_checkable
class Detector(Protocol):
    """Network whose responses are predictions at anchors; it has a loss of its own."""

    def box_losses(self, response: Tensor, targets: Tensor) -> Tensor:
        """(B, anchors, values), (B, boxes, 5) -> (B,) losses of the images."""
        ...

    def detections(self, response: Tensor) -> Tensor:
        """(B, anchors, values) -> (B, boxes, 6): corners, score and class, or `NO_BOX`."""
        ...

    def anchor_scores(self, response: Tensor) -> tuple[Tensor, Tensor]:
        """(B, anchors, values) -> (anchors, 4) corners, (B, anchors, classes) scores."""
        ...


@option
class Detection(Task):
    """Find the objects in an image: a box and a class for each of them.

    The targets are the boxes of an image, (B, boxes, 5): the corners x1, y1, x2, y2 in pixels and
    the class, which is -1 in rows without a box.  The label loss is the detector's own, of each
    image by itself; that of a batch is the mean over its images, so that it is the same for any
    division among workers.
    """

    kind = "boxes"
    train_metric = "anchor_accuracy"
    takes_graph = False
    exports = False
    package = "faster_coco_eval"

    name: Literal["detection"] = "detection"
    metrics: Annotated[
        tuple[BoxMetric | UserMetric, ...],
        Field(
            min_length=1,
            description="Metrics of the validation and test splits; FILE.py:NAME for your own. "
            "The first is the default objective of a search. map: mean over the IoU thresholds "
            "0.5, 0.55 ... 0.95",
        ),
    ] = ("map", "map_50")

    def for_network(self, network: nn.Module) -> Task:
        detector = next((each for each in network.modules() if isinstance(each, Detector)), None)
        if detector is None:
            raise ValueError(
                f"task 'detection' needs a detector, and {type(network).__name__} is none"
            )
        bound = copy.copy(self)
        vars(bound)["_detector"] = detector
        return bound

    @property
    def detector(self) -> Detector:
        """Network that `for_network` was called with."""
        detector = vars(self).get("_detector")
        assert detector is not None, "losses and metrics of a detection need its network"
        return detector

    def label_loss(self, targets: Tensor, outputs: int, *, smoothing: float = 0.0) -> LabelLoss:
        detector = self.detector
        return lambda response, boxes: detector.box_losses(response, boxes).mean()

    def loss_sum(self, response: Tensor, targets: Tensor) -> Tensor:
        return self.detector.box_losses(response, targets).double().sum()

    def summary(self, response: Tensor) -> Tensor:
        return self.detector.detections(response)

    def statistic(self, metric: str, scale: Sequence[float] = ()) -> Statistic:
        if metric == self.train_metric:
            return MeanStatistic(self._anchor_hits)
        return {str(name): statistic for name, statistic in STATISTICS.items()}[metric]

    def _anchor_hits(self, response: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images of the share of boxes whose closest anchor has their class.

        The closest anchor is that of the largest IoU.  An image without boxes counts as right.
        """
        anchors, scores = self.detector.anchor_scores(response)
        shares = []
        for classes, (boxes, labels) in zip(scores.argmax(2), boxes_of(targets), strict=True):
            if not len(boxes):
                shares.append(anchors.new_ones(()))
                continue
            closest = _overlaps(boxes, anchors.to(boxes.dtype)).argmax(1)
            shares.append((classes[closest] == labels).double().mean())
        return torch.stack([share.double() for share in shares]).sum()


def boxes_of(targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, boxes, 5) -> for each image (n, 4) corners and (n,) int64 classes of its boxes."""
    for rows in targets:
        real = rows[rows[:, 4] != NO_BOX]
        yield real[:, :4], real[:, 4].long()


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(N, 4), (M, 4) -> (N, M) intersections over unions."""
    from torchvision.ops import box_iou

    return box_iou(boxes, anchors)
